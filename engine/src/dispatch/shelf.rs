//! What lanes want done outside of memory: probes of endpoints whose breaker is open, and bringing back what is shelved.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{Context, Delivery, budget::Ask, retries, work};
use crate::{
    failpoint,
    lane::{Change, Errand, Lane, Load, PULL_MAX},
    model::{AccountId, Key, State, WebhookId},
    stream::{
        breaker::Turn,
        due::{Due, LEASE_MAX},
    },
};

/// Between looks at the lanes.
const LOOK: Duration = Duration::from_millis(100);

/// Looks between two searches of the schedule for shelved work that no lane here knows of.
const SEARCH_EVERY: u32 = 10;

/// Between two steps of a pull, when the lane takes them at once, and when it does not.
const STEP: Duration = Duration::from_millis(5);
const SLOW_STEP: Duration = Duration::from_millis(50);

/// And when `due` or the budget takes no more: what is pulled then waits in the schedule, and the lane's room is as large as before.
const CROWDED: Duration = Duration::from_secs(1);

/// A step of no fewer is worth a query right after the one before.
const LARGE: usize = 250;

/// Deliveries that one probe looks at which are over.
const OVER_MAX: usize = 64;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs errands until stopped.
pub(super) async fn run(context: Arc<Context>, due: Due, mut stop: watch::Receiver<bool>) {
    let (mut turn, mut errands) = (0u32, JoinSet::new());
    loop {
        rest(LOOK, &mut stop).await;
        if *stop.borrow() {
            break;
        }
        while errands.try_join_next().is_some() {}
        if turn.is_multiple_of(SEARCH_EVERY)
            && let Err(error) = search(&context).await
        {
            tracing::debug!(error = crate::chain(&*error), "shelved work not looked for");
        }
        turn = turn.wrapping_add(1);
        for (webhook, lane) in context.lanes.all() {
            match lane.errand() {
                None => {}
                Some(Errand::Probe) => {
                    drop(errands.spawn(probe(context.clone(), due.clone(), webhook, lane)))
                }
                Some(Errand::Pull) => {
                    errands.spawn(pull(context.clone(), due.clone(), webhook, lane, stop.clone()));
                }
            }
        }
    }
    // What they still put into lanes, the drain takes out again.
    while errands.join_next().await.is_some() {}
}

/// Until the time is over, or it is time to stop.
async fn rest(time: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = crate::stopped(stop) => {}
    }
}

/// Finds lanes' shelved work, also that of dispatchers which are no more.
async fn search(context: &Context) -> Result<(), Failure> {
    let known: HashSet<WebhookId> = context
        .lanes
        .all()
        .into_iter()
        .filter(|(_, lane)| lane.standing().open)
        .map(|(webhook, _)| webhook)
        .collect();
    let (ended, mut found): (Vec<_>, Vec<_>) =
        context.store.shelved_webhooks().await?.into_iter().partition(|(_, ended)| *ended);
    // Nothing is sent for these: their work comes back to end as dead letters, whatever the breaker says.
    ended.into_iter().for_each(|(webhook, _)| context.lanes.of(webhook).close());
    found.retain(|(webhook, _)| !known.contains(webhook));
    let found: Vec<WebhookId> = found.into_iter().map(|(webhook, _)| webhook).collect();
    let open = context.breakers.clone().are_open(&found).await?;
    for (webhook, open) in found.into_iter().zip(open) {
        context.lanes.of(webhook).note_shelved(open);
    }
    Ok(())
}

/// A breaker has changed: the other dispatchers are told.
pub(super) async fn changed(context: &Context, webhook: WebhookId, lane: &Lane<Delivery>, change: Change) {
    let mut breakers = context.breakers.clone();
    let told = match change {
        Change::Opened => {
            context.metrics.lane.opened.increment(1);
            tracing::info!(%webhook, "breaker open: nothing is sent but probes");
            breakers.open(webhook).await
        }
        Change::StillOpen => breakers.open(webhook).await,
        Change::Closed => {
            context.metrics.lane.closed.increment(1);
            tracing::info!(%webhook, "breaker closed");
            lane.note_shelved(false);
            breakers.close(webhook).await
        }
    };
    if let Err(error) = told {
        tracing::debug!(error = crate::chain(&error), "others will notice by themselves");
    }
}

async fn probe(context: Arc<Context>, due: Due, webhook: WebhookId, lane: Arc<Lane<Delivery>>) {
    match try_probe(&context, due, webhook, &lane).await {
        Ok(true) => context.metrics.lane.probes.increment(1),
        Ok(false) => {}
        Err(error) => {
            tracing::debug!(%webhook, error = crate::chain(&*error), "no probe");
            lane.put_off_probe();
        }
    }
}

/// Sends the oldest shelved delivery. Returns whether it did.
async fn try_probe(
    context: &Arc<Context>,
    mut due: Due,
    webhook: WebhookId,
    lane: &Arc<Lane<Delivery>>,
) -> Result<bool, Failure> {
    let lease = context.lease();
    let (term, until) = (context.fence.term(), Instant::now() + lease);
    let lease_ms = i64::try_from(lease.as_millis())?;
    let mut breakers = context.breakers.clone();
    match breakers.turn(webhook, lease_ms).await? {
        Turn::Probe => {}
        Turn::Wait => {
            lane.put_off_probe();
            return Ok(false);
        }
        Turn::Closed => {
            lane.close();
            return Ok(false);
        }
    }
    let delivery = match oldest(context, &mut due, webhook, lease_ms, until, term).await {
        Ok(Oldest::Ours(delivery)) => *delivery,
        Ok(Oldest::Nothing) => {
            // The next one that comes is the probe.
            breakers.close(webhook).await?;
            lane.close();
            return Ok(false);
        }
        Ok(Oldest::Theirs) => {
            breakers.open(webhook).await?;
            lane.put_off_probe();
            return Ok(false);
        }
        Err(error) => {
            // Or nobody would probe until our turn ends.
            breakers.open(webhook).await?;
            return Err(error);
        }
    };
    if delivery.target.webhook.state != State::Active {
        lane.close();
        work::admit(context, delivery).await;
        return Ok(false);
    }
    lane.begin_probe();
    work::start(context, lane, delivery);
    Ok(true)
}

/// What the shelf has for a probe.
enum Oldest {
    Ours(Box<Delivery>),
    /// Whoever shelved it has not taken it out of `due` yet, or has it in hand again: what is sent then nobody holds back. Or many
    /// were over, and whether there is another one is not known.
    Theirs,
    /// Nothing is owed that could be sent.
    Nothing,
}

/// Takes the oldest shelved delivery in hand. One that is over by now (its time is up, its event is gone) says nothing of the
/// endpoint, nor of whether there are others.
async fn oldest(
    context: &Context,
    due: &mut Due,
    webhook: WebhookId,
    lease_ms: i64,
    until: Instant,
    term: u64,
) -> Result<Oldest, Failure> {
    for _ in 0..OVER_MAX {
        let Some(key) = context.store.pull_shelved(webhook, 1).await?.pop() else {
            return Ok(Oldest::Nothing);
        };
        // Its row is due now; in `due` with our lease on it nobody else takes it meanwhile.
        if due.take(&[key], lease_ms, true, &context.gate).await?.is_empty() {
            return Ok(Oldest::Theirs);
        }
        match claimed(context, due, key, until, term).await {
            Ok(Some(delivery)) => return Ok(Oldest::Ours(Box::new(delivery))),
            Ok(None) => {}
            Err(error) => {
                due.release(&[key]).await?;
                return Err(error);
            }
        }
    }
    Ok(Oldest::Theirs)
}

/// The delivery behind a member of `due` that is ours.
async fn claimed(
    context: &Context,
    due: &mut Due,
    key: Key,
    until: Instant,
    term: u64,
) -> Result<Option<Delivery>, Failure> {
    let Some(row) = context.store.owed(&[key], context.spare_ms()).await?.pop() else { return Ok(None) };
    let left = Duration::from_millis(row.expires_in_ms.try_into().unwrap_or_default());
    let Some(mut delivery) = context.retry_of(row, until, term).await? else { return Ok(None) };
    delivery.probe_until = Some(Instant::now() + left);
    context.lengthen(due, &mut delivery).await?;
    Ok(Some(delivery))
}

/// Brings shelved work back as fast as the lane takes it.
async fn pull(
    context: Arc<Context>,
    due: Due,
    webhook: WebhookId,
    lane: Arc<Lane<Delivery>>,
    mut stop: watch::Receiver<bool>,
) {
    let left = match try_pull(&context, due, webhook, &lane, &mut stop).await {
        Ok(left) => left,
        Err(error) => {
            tracing::debug!(%webhook, error = crate::chain(&*error), "what was pulled comes with the schedule");
            rest(CROWDED, &mut stop).await;
            true
        }
    };
    lane.pulled(left);
}

/// Pulls until the lane or the budget has no room. Returns whether there may be more.
async fn try_pull(
    context: &Arc<Context>,
    mut due: Due,
    webhook: WebhookId,
    lane: &Lane<Delivery>,
    stop: &mut watch::Receiver<bool>,
) -> Result<bool, Failure> {
    let account = context.store.account_of(webhook).await?;
    while !*stop.borrow() && lane.pull_room() > 0 {
        let room = lane.pull_room().min(match account {
            Some(account) => permits(context, account, lane),
            // They end as dead letters, which takes none.
            None => PULL_MAX,
        });
        if room == 0 {
            rest(CROWDED, stop).await;
            break;
        }
        let step = pull_step(context, &mut due, webhook, room).await?;
        if step.pulled < room {
            return Ok(false);
        }
        let pause = if step.taken < step.pulled {
            CROWDED
        } else if room >= LARGE {
            STEP
        } else {
            SLOW_STEP
        };
        rest(pause, stop).await;
    }
    Ok(true)
}

/// How many more deliveries of a lane the budget has room for: where only its reserve is left, one of an idle lane.
fn permits(context: &Context, account: AccountId, lane: &Lane<Delivery>) -> usize {
    let Load { busy, slow, .. } = lane.load();
    let left = |busy| context.retry_budget.left(Ask { account, busy, slow });
    left(true).max(if busy { 0 } else { left(false).min(1) })
}

/// What one step of a pull came to.
struct Pulled {
    /// They left the shelf.
    pulled: usize,
    /// And went to their lane. For the others there is no room in `due` or in the budget (payloads may be large), or somebody has
    /// them in hand.
    taken: usize,
}

/// Takes so many from the shelf and hands them to their lane. By way of a lease like that of others, which comes when it comes, the
/// lane would not know how many are on their way, and one that hangs would call for thousands.
async fn pull_step(
    context: &Arc<Context>,
    due: &mut Due,
    webhook: WebhookId,
    room: usize,
) -> Result<Pulled, Failure> {
    let (lease, term) = (context.lease(), context.fence.term());
    let until = Instant::now() + lease;
    if !context.fence.holds(term) || context.gate.epoch().is_none() {
        return Err("nothing can be taken in hand now".into());
    }
    let keys = context.store.pull_shelved(webhook, room as i64).await?;
    context.metrics.lane.pulled.increment(keys.len() as u64);
    let taken = due.take(&keys, i64::try_from(lease.as_millis())?, false, &context.gate).await?;
    failpoint::hit("leased");
    context.metrics.retry.leased.increment(taken.len() as u64);
    let (mut left, mut crowded) = (taken.chunks(LEASE_MAX), 0);
    while let Some(some) = left.next() {
        match retries::hand_out(context, due, some.to_vec(), until, term).await {
            Ok(more) => crowded += more,
            Err(error) => {
                // Or they would wait for the lease to end.
                due.release(&left.flatten().copied().collect::<Vec<Key>>()).await?;
                return Err(error);
            }
        }
    }
    Ok(Pulled { pulled: keys.len(), taken: taken.len() - crowded })
}
