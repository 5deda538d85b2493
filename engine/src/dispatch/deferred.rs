//! What a fast lane has no room for at the moment waits beside its open stream entry: as a name, without a permit or a row, and
//! beyond the first megabytes without its payload. Parking a delivery in Postgres costs more than making it (ADR 0008), and a lane
//! that makes thousands a second is there in a moment. The entry stays pending, so a crash loses nothing, and whoever claims it reads what is settled first.
//!
//! Lanes that are slow, or have an open breaker, get nothing here: an ack never waits for a slow endpoint.

mod queue;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

pub(super) use self::queue::Deferred;
use self::queue::{Inner, Waiting};
use super::{
    Context, Delivery, Permit,
    budget::{Ask, Bytes},
    parking, work,
};
use crate::{
    deliver::Target,
    lane::{Lane, Load, PULL_MAX},
    model::{Event, EventId, State, Try, WebhookId},
    settle::{Item, Open},
    store,
};

/// Longest time that a delivery waits here, and longest that it may be expected to: what the schedule takes for near.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Deliveries of one step.
const STEP_MAX: usize = 1024;

/// Payload bytes of one step; one delivery goes whatever its size.
const STEP_BYTES_MAX: usize = 8 << 20;

/// Given to the schedule in one go, of one webhook: who does it has other lanes to look after, and comes again in a quarter second.
const OUT_MAX: usize = 8192;

/// Between two steps that found no lane with room.
const PAUSE: Duration = Duration::from_millis(5);

/// With so many lanes waiting, the pause is twice as long: each look at all of them costs.
const LANES: usize = 1000;

/// One that gets its turn.
struct Picked {
    webhook: WebhookId,
    waiting: Waiting,
    permit: Permit,
}

impl Context {
    /// Whether a delivery may wait beside its entry; then it does.
    pub(super) fn defer(&self, target: &Target, load: Load, event: &Arc<Event>, entry: &Arc<Open>) -> bool {
        let waiting = Waiting {
            event: event.id,
            account: event.account,
            size: u32::try_from(event.payload.len()).unwrap_or(u32::MAX),
            entry: entry.clone(),
            kept: Some(event.clone()),
        };
        // Not while Redis is not as it was left: who makes its index again has to find in Postgres what is in hand.
        let taken = target.webhook.state == State::Active
            && self.gate.epoch().is_some()
            && self.deferred.push(target.webhook.id, load, waiting);
        if taken {
            self.metrics.lane.deferred.increment(1);
        }
        taken
    }
}

/// Brings back what waits, as the lanes find room.
pub(super) async fn run(context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    loop {
        let outcome = step(&context).await;
        let rest = async {
            match outcome {
                Ok(0) => pause(&context).await,
                // The others on this thread have their turn.
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::debug!(error = crate::chain(&error), "deferred deliveries wait for Postgres");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = crate::stopped(&mut stop) => return,
            () = rest => {}
        }
    }
}

/// After a step that had nothing to do.
async fn pause(context: &Context) {
    let lanes = context.deferred.inner().turns.len();
    if lanes == 0 {
        context.deferred.came.notified().await;
    }
    tokio::time::sleep(PAUSE + PAUSE.mul_f64(lanes as f64 / LANES as f64)).await;
}

/// Hands a number of deliveries to lanes that have room for them. Returns how many.
async fn step(context: &Arc<Context>) -> Result<usize, store::Error> {
    let picked = pick(context);
    if picked.is_empty() {
        return Ok(0);
    }
    let n = picked.len();
    let events = match again(context, &picked).await {
        Ok(events) => events,
        Err(error) => {
            put_back(context, picked);
            return Err(error);
        }
    };
    let mut targets = HashMap::new();
    let mut left = picked.into_iter();
    while let Some(Picked { webhook, waiting, permit }) = left.next() {
        let target = match targets.entry(webhook) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(unknown) => {
                match context.registry.webhook(waiting.account, webhook).await {
                    Ok(target) => unknown.insert(target),
                    Err(error) => {
                        let one = Picked { webhook, waiting, permit };
                        put_back(context, std::iter::once(one).chain(left).collect());
                        return Err(error);
                    }
                }
            }
        };
        resume(context, events.get(&waiting.event), target.as_ref(), (webhook, waiting, permit)).await;
    }
    Ok(n)
}

/// The events of which only the names were kept.
async fn again(context: &Context, picked: &[Picked]) -> Result<HashMap<EventId, Arc<Event>>, store::Error> {
    let names = picked.iter().map(|picked| &picked.waiting).filter(|waiting| waiting.kept.is_none());
    let ids: HashSet<EventId> = names.map(|waiting| waiting.event).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    context.metrics.lane.deferred_read.increment(ids.len() as u64);
    context.store.events_of(&ids.into_iter().collect::<Vec<_>>()).await
}

/// Who comes next: each webhook in turn, within its lane's room and the budget.
fn pick(context: &Context) -> Vec<Picked> {
    let mut inner = context.deferred.inner();
    let (mut picked, mut bytes) = (Vec::new(), 0);
    for _ in 0..inner.turns.len() {
        if picked.len() >= STEP_MAX || bytes >= STEP_BYTES_MAX {
            break;
        }
        let Some(webhook) = inner.turns.pop_front() else { break };
        let lane = context.lanes.of(webhook);
        let (room, load) = (lane.room(), lane.load());
        // A step reads payloads from Postgres, and a statement costs as much as some forty rows: not for the few places that have just
        // come free in a queue that is still long.
        if room < PULL_MAX && room < load.queued {
            inner.turns.push_back(webhook);
            continue;
        }
        let mut permits = Vec::new();
        let taken = inner.take(webhook, room, |waiting| {
            let ask = Ask { account: waiting.account, busy: load.busy, slow: load.slow };
            let size = waiting.size as usize;
            let permit = (bytes < STEP_BYTES_MAX)
                .then(|| context.first_budget.try_permit(ask, size, &mut Bytes::default()).ok())
                .flatten();
            bytes += size;
            let permitted = permit.is_some();
            permits.extend(permit);
            permitted
        });
        if inner.queues.contains_key(&webhook) {
            inner.turns.push_back(webhook);
        }
        let taken = taken.into_iter().zip(permits);
        picked.extend(taken.map(|(waiting, permit)| Picked { webhook, waiting, permit }));
    }
    picked
}

/// In the order that they had.
fn put_back(context: &Context, picked: Vec<Picked>) {
    let mut inner = context.deferred.inner();
    for Picked { webhook, waiting, .. } in picked.into_iter().rev() {
        inner.put_back(webhook, waiting);
    }
}

/// One delivery goes to its lane, under its webhook's settings of now.
async fn resume(
    context: &Arc<Context>,
    event: Option<&Arc<Event>>,
    target: Option<&Arc<Target>>,
    (webhook, waiting, permit): (WebhookId, Waiting, Permit),
) {
    let Waiting { event: id, account, entry, kept, .. } = waiting;
    let Some(event) = kept.or_else(|| event.cloned()) else {
        context.metrics.dispatch.orphans.increment(1);
        let item = Item { record: None, entry: Some(entry), permit: Some(permit) };
        return context.recorder.settle(item).await;
    };
    let Some(target) = target else {
        return work::webhook_gone(context, account, (id, webhook), Try::FIRST, Some(entry)).await;
    };
    let delivery = Delivery::first(event, target.clone(), entry, Some(permit));
    work::admit(context, delivery).await;
}

/// Gives to the schedule what is here for too long, and all of lanes that turned out to be slow or have opened their breaker. Everything,
/// when Redis is not as it was left.
pub(super) async fn turn_out(context: &Arc<Context>) {
    for (webhook, out) in overdue(context) {
        let lane = context.lanes.of(webhook);
        // Without its settings the defaults will do.
        let target = context.registry.webhook(out[0].account, webhook).await.unwrap_or_default();
        for waiting in out {
            schedule(context, &lane, webhook, target.as_deref(), waiting).await;
        }
    }
}

fn overdue(context: &Context) -> Vec<(WebhookId, Vec<Waiting>)> {
    let now = Instant::now();
    let mut inner = context.deferred.inner();
    let webhooks: Vec<WebhookId> = inner.turns.iter().copied().collect();
    let mut out = Vec::new();
    for webhook in webhooks {
        let load = context.lanes.of(webhook).load();
        let all = load.slow || load.open || context.gate.epoch().is_none();
        let taken = inner.take(webhook, OUT_MAX, |waiting| all || now - waiting.entry.since > WAIT_MAX);
        if !taken.is_empty() {
            out.push((webhook, taken));
        }
    }
    let Inner { queues, turns, .. } = &mut *inner;
    turns.retain(|webhook| queues.contains_key(webhook));
    out
}

async fn schedule(
    context: &Context,
    lane: &Lane<Delivery>,
    webhook: WebhookId,
    target: Option<&Target>,
    waiting: Waiting,
) {
    let Waiting { event, account, entry, .. } = waiting;
    if !context.fence.holds(entry.term) {
        return context.opened.remove(&entry.id);
    }
    let own = target.map(|target| target.webhook.own.clone()).unwrap_or_default();
    let (wait, reason) = parking::overflow(context, lane, &own);
    let mut record = work::nothing_yet(account, (event, webhook), Try::FIRST, entry.origin, false);
    record.later = Some(parking::later(context, &own, &record, Try::FIRST.attempt, wait, reason));
    context.recorder.settle(Item { record: Some(record), entry: Some(entry), permit: None }).await;
}
