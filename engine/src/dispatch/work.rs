//! Making deliveries. Each lane has as many workers as it has requests in flight; a worker takes the lane's
//! next delivery when it has done one, and ends when there is none.

use std::{
    pin::pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::{
    Context, Delivery, latency,
    parking::{again, later, park, shelve, turn_away},
    shelf, spans,
    transforms::{self, Shaped},
};
use crate::{
    deliver::{Content, Verdict, outcome},
    failpoint,
    lane::{Admission, Kind, Lane, Outcome},
    metrics::Metrics,
    model::{AccountId, Key, Pin, State, Timestamp, Try, is_operational},
    retry::schedule,
    settle::{Item, Open},
    store::{
        failing::Cause,
        settle::{Attempt, Origin, Record, Status},
    },
};

/// How long a delivery rests when this process has no file descriptors left.
const OUT_OF_FILES: Duration = Duration::from_secs(2);

/// Gives a delivery to its lane.
pub(super) async fn admit(context: &Arc<Context>, delivery: Delivery) {
    match delivery.target.webhook.state {
        State::Active => {}
        State::Paused => {
            context.metrics.lane.shelved_paused.increment(1);
            return shelve(context, delivery, "paused").await;
        }
        State::Disabled => {
            return dead_without_call(context, delivery, "webhook_disabled", "the webhook is disabled").await;
        }
        State::Deleted => {
            return dead_without_call(context, delivery, "webhook_deleted", "the webhook is deleted").await;
        }
    }
    let lane = context.lanes.of(delivery.target.webhook.id);
    let kind = if delivery.was_scheduled { Kind::Retry } else { Kind::First };
    let allowed = context.allowed(&delivery.target.webhook);
    match lane.admit(delivery, kind, allowed) {
        Admission::Start(delivery) => start(context, &lane, delivery),
        Admission::Queued => {}
        Admission::Full(delivery) => turn_away(context, delivery).await,
        Admission::Shelve(delivery) => {
            context.metrics.lane.shelved_breaker.increment(1);
            shelve(context, delivery, "breaker").await;
        }
    }
}

/// Starts a worker for a delivery that its lane counts as in flight.
pub(super) fn start(context: &Arc<Context>, lane: &Arc<Lane<Delivery>>, delivery: Delivery) {
    let mut workers = context.workers.lock().unwrap_or_else(PoisonError::into_inner);
    // The set keeps what has ended until it is asked.
    while workers.try_join_next().is_some() {}
    workers.spawn(worker(context.clone(), lane.clone(), delivery));
}

type Timer<'a> = std::pin::Pin<&'a mut Sleep>;

/// What a worker's deliveries are timed by, one after the other.
struct Timers<'a> {
    /// How long a delivery holds its entry open.
    hold: Timer<'a>,
    /// How long a call may take.
    call: Timer<'a>,
}

async fn worker(context: Arc<Context>, lane: Arc<Lane<Delivery>>, first: Delivery) {
    let (hold, call) = (pin!(tokio::time::sleep(Duration::ZERO)), pin!(tokio::time::sleep(Duration::ZERO)));
    let mut timers = Timers { hold, call };
    let mut next = Some(first);
    while let Some(delivery) = next {
        let webhook = delivery.target.webhook.id;
        let wait = lane.reserve();
        if !wait.is_zero() {
            context.metrics.lane.rate_waits.increment(1);
            tokio::time::sleep(wait).await;
        }
        let begun = Instant::now();
        // Telling that a webhook is disabled must not disable the next.
        let counts = !is_operational(&delivery.event.kind);
        let outcome = deliver(&context, &mut timers, delivery, begun).await;
        if counts || outcome == Outcome::Delivered {
            lane.note_health(outcome);
        }
        let after = lane.done(outcome, begun.elapsed());
        if let Some(more) = after.more {
            start(&context, &lane, more);
        }
        if let Some(change) = after.change {
            shelf::changed(&context, webhook, &lane, change).await;
        }
        for delivery in after.shelve {
            context.metrics.lane.shelved_breaker.increment(1);
            shelve(&context, delivery, "breaker").await;
        }
        next = after.next;
    }
}

/// Whether nobody else can be sending it by now.
fn may_send(context: &Context, delivery: &Delivery, timeout: Duration, now: Instant) -> bool {
    let lease_over = delivery.lease.as_ref().is_some_and(|lease| now + timeout >= lease.until());
    !lease_over && context.fence.held(delivery.term, now)
}

/// One attempt from the decision to send it, at `begun`, to its record.
async fn deliver(
    context: &Arc<Context>,
    timers: &mut Timers<'_>,
    mut delivery: Delivery,
    begun: Instant,
) -> Outcome {
    failpoint::hit_with("event", &delivery.event.kind);
    let timeout = delivery.target.webhook.own.timeout.unwrap_or(context.config.deliver.timeout);
    if !may_send(context, &delivery, timeout, begun) {
        return drop_unsent(context, delivery);
    }
    let hold_over = begun + context.config.dispatch.hold;
    timers.hold.as_mut().reset(hold_over);
    let shaped = if delivery.target.webhook.transform.is_none() && delivery.pin.is_none() {
        Shaped::original()
    } else {
        let (event, target) = (delivery.event.clone(), delivery.target.clone());
        let shaping = transforms::shape(context, event, target, delivery.pin);
        let shaped = held(context, &mut delivery, timers.hold.as_mut(), None, shaping).await;
        // It may have waited long for its turn.
        if !may_send(context, &delivery, timeout, Instant::now()) {
            return drop_unsent(context, delivery);
        }
        shaped
    };
    match shaped {
        Shaped::Send { content, pin, note } => {
            let sent = Sent { version: pin.version, body: content.body(&delivery.event), note };
            send(context, timers, delivery, content, sent).await
        }
        withheld => withhold(context, delivery, withheld).await,
    }
}

/// Others may be sending it by now. Its entry is pending, or its retry leased.
fn drop_unsent(context: &Context, delivery: Delivery) -> Outcome {
    context.metrics.dispatch.fenced.increment(1);
    abandon(context, delivery);
    Outcome::Unknown
}

/// What goes out at this attempt.
struct Sent {
    /// Of the transform that made it.
    version: i32,
    body: Bytes,
    /// What went wrong before, if the original goes out because of it.
    note: Option<String>,
}

impl Sent {
    fn pin(&self) -> Pin {
        let hash = (self.version > 0).then(|| transforms::hash(&self.body));
        Pin { version: self.version, hash }
    }
}

/// Makes the call, and settles what comes of it.
async fn send(
    context: &Arc<Context>,
    timers: &mut Timers<'_>,
    mut delivery: Delivery,
    content: Content,
    sent: Sent,
) -> Outcome {
    let before = delivery.pin.and_then(|pin| pin.hash);
    if before.is_some() && before != sent.pin().hash {
        context.metrics.transform.changed_body.increment(1);
        let (event, webhook) = (delivery.event.id, delivery.target.webhook.id);
        crate::logs::warn_seldom!(%event, %webhook, "a transform made another body than at the attempt before");
    }
    let timeout = delivery.target.webhook.own.timeout.unwrap_or(context.config.deliver.timeout);
    let (tried, now) = (delivery.tried, Timestamp::now());
    let request = delivery.target.request(&delivery.event, tried, now, &content, sent.body.clone());
    let Some(mut request) = request else { return unsigned(context, delivery).await };
    let span = spans::begin(&context.tracer, &delivery.event, &mut request);
    let call = context.client.call_by(timers.call.as_mut(), request, timeout);
    let done = held(context, &mut delivery, timers.hold.as_mut(), Some(&sent), call).await;
    failpoint::hit("replied");
    let verdict = outcome::judge(done, context.kept);
    if matches!(verdict, Verdict::Unsent) {
        context.metrics.deliver.out_of_files.increment(1);
        park(context, delivery, OUT_OF_FILES, "out_of_files").await;
        return Outcome::Unknown;
    }
    latency::note(&context.metrics.deliver, &delivery.event, tried, &verdict);
    let outcome = meaning(&verdict);
    let disabled = matches!(verdict, Verdict::Gone(_)) && disable(context, &delivery).await;
    let record = record(context, &delivery, verdict, disabled, Some(&sent));
    if let Some(span) = span {
        spans::end(context, span, &delivery, &record);
    }
    settle(context, delivery, record).await;
    outcome
}

/// A failed attempt: whoever set the keys of this process may mend it before the last one. The registry has told.
async fn unsigned(context: &Context, delivery: Delivery) -> Outcome {
    context.metrics.deliver.unsigned.increment(1);
    let error = "the secret of this webhook cannot be read at the moment".to_owned();
    withhold(context, delivery, Shaped::Failed { code: "secret_unreadable", error }).await
}

/// Settles a delivery that its transform does not let go, or not now.
async fn withhold(context: &Context, delivery: Delivery, shaped: Shaped) -> Outcome {
    let record = match shaped {
        Shaped::Send { .. } | Shaped::Wait => {
            context.metrics.transform.waited.increment(1);
            park(context, delivery, transforms::PARKED, "transform").await;
            return Outcome::Unknown;
        }
        Shaped::Filter { version, code, reason } => {
            context.metrics.deliver.filtered.increment(1);
            let mut record = blank(&delivery);
            record.attempt = Some(unsent(Status::Filtered, code, reason, Some(version)));
            record
        }
        Shaped::Failed { code, error } => {
            let attempt = unsent(Status::Failed, code, error, None);
            record(context, &delivery, Verdict::Retry { attempt, after: None }, false, None)
        }
    };
    settle(context, delivery, record).await;
    Outcome::Withheld
}

/// The row of an attempt at which nothing was sent.
fn unsent(status: Status, reason_code: &'static str, error: String, transform: Option<i32>) -> Attempt {
    let error = Some(error);
    Attempt { status, code: None, body: None, error, reason_code, duration_ms: 0, transform }
}

async fn settle(context: &Context, delivery: Delivery, record: Record) {
    let item = Item { record: Some(record), entry: delivery.entry, permit: delivery.permit };
    context.recorder.settle(item).await;
}

/// Does some work for a delivery. When the hold is over before it ends, the entry is let go and the work goes on.
async fn held<F: Future>(
    context: &Context,
    delivery: &mut Delivery,
    hold: Timer<'_>,
    sent: Option<&Sent>,
    work: F,
) -> F::Output {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = hold, if delivery.entry.is_some() => {}
    }
    release_entry(context, delivery, sent).await;
    work.await
}

/// What a verdict says of the endpoint.
fn meaning(verdict: &Verdict) -> Outcome {
    match verdict {
        Verdict::Delivered(_) => Outcome::Delivered,
        Verdict::Gone(_) => Outcome::Refused,
        Verdict::Unsent => Outcome::Unknown,
        Verdict::Retry { attempt, .. } => match (attempt.code, attempt.reason_code) {
            (Some(408 | 425 | 429), _) => Outcome::Failed,
            (Some(400..500), _) => Outcome::Refused,
            (_, "timeout") => Outcome::TimedOut,
            _ => Outcome::Failed,
        },
    }
}

/// The work goes on, but its entry need not wait for it: what is owed stands in the schedule instead.
async fn release_entry(context: &Context, delivery: &mut Delivery, sent: Option<&Sent>) {
    context.metrics.lane.parked_held.increment(1);
    let own = &delivery.target.webhook.own;
    let wait = own.timeout.unwrap_or(context.config.deliver.timeout) + context.config.dispatch.margin;
    let mut record = blank(delivery);
    let mut row = later(context, own, &record, delivery.tried.attempt, wait, "in_flight");
    row.pin = sent.map(Sent::pin);
    record.later = Some(row);
    context.recorder.settle(Item { record: Some(record), entry: delivery.entry.take(), permit: None }).await;
    delivery.was_scheduled = true;
    // Whoever takes up the row does so then.
    let key = (delivery.event.id, delivery.target.webhook.id);
    delivery.lease = Some(context.leases.note(key, Instant::now() + wait));
    delivery.permit = delivery.permit.take().map(|permit| context.first_budget.slow_down(permit));
}

/// Forgets a delivery that is not ours to make any more. Its entry must not be acked by us.
pub(super) fn abandon(context: &Context, delivery: Delivery) {
    if let Some(entry) = &delivery.entry {
        context.opened.remove(&entry.id);
    }
}

/// Ends a delivery as a dead letter without a call.
pub(super) async fn dead_without_call(
    context: &Context,
    delivery: Delivery,
    code: &'static str,
    reason: &str,
) {
    let record = buried(blank(&delivery), code, reason);
    let item = Item { record: Some(record), entry: delivery.entry, permit: delivery.permit };
    context.recorder.settle(item).await;
}

/// Ends a delivery, whose webhook is not there or has a URL that cannot be read. Without an entry it comes from the schedule.
pub(super) async fn webhook_gone(
    context: &Context,
    account: AccountId,
    key: Key,
    tried: Try,
    entry: Option<Arc<Open>>,
) {
    let origin = entry.as_ref().map_or(Origin::Schedule, |entry| entry.origin);
    let record = buried(
        nothing_yet(account, key, tried, origin, entry.is_none()),
        "webhook_gone",
        "the webhook is not there any more",
    );
    context.recorder.settle(Item { record: Some(record), entry, permit: None }).await;
}

fn buried(mut record: Record, code: &'static str, reason: &str) -> Record {
    record.attempt = Some(unsent(Status::Dead, code, reason.to_owned(), None));
    record.dead = Some(reason.to_owned());
    record
}

pub(super) fn blank(delivery: &Delivery) -> Record {
    let key = (delivery.event.id, delivery.target.webhook.id);
    nothing_yet(delivery.event.account, key, delivery.tried, delivery.origin, delivery.was_scheduled)
}

/// A record that says nothing.
pub(super) fn nothing_yet(
    account: AccountId,
    (event, webhook): Key,
    tried: Try,
    origin: Origin,
    was_scheduled: bool,
) -> Record {
    Record { event, webhook, account, tried, was_scheduled, origin, attempt: None, later: None, dead: None }
}

/// What to write for a verdict on what was sent, if anything was.
fn record(
    context: &Context,
    delivery: &Delivery,
    verdict: Verdict,
    disabled: bool,
    sent: Option<&Sent>,
) -> Record {
    let Metrics { deliver, .. } = &*context.metrics;
    let mut record = blank(delivery);
    let answers = meaning(&verdict) == Outcome::Refused;
    let mut attempt = match verdict {
        Verdict::Delivered(mut attempt) => {
            deliver.delivered.increment(1);
            attempt.error = sent.and_then(|sent| sent.note.clone());
            attempt
        }
        // Parked before it comes to a record.
        Verdict::Unsent => return record,
        Verdict::Gone(attempt) => {
            deliver.dead.increment(1);
            let and = if disabled { "; the webhook was disabled" } else { "" };
            record.dead = Some(format!("the endpoint answered 410 Gone{and}"));
            attempt
        }
        Verdict::Retry { mut attempt, after } => {
            let tries = delivery.tried.attempt;
            match context.policy.of(&delivery.target.webhook.own).wait(tries, after, schedule::random()) {
                Some(wait) => {
                    deliver.retried.increment(1);
                    let mut row = again(context, delivery, &record, wait, answers);
                    row.pin = sent.map(Sent::pin);
                    record.later = Some(row);
                }
                None => {
                    deliver.dead.increment(1);
                    attempt.status = Status::Dead;
                    let last = attempt.error.as_deref().unwrap_or("no reason known");
                    record.dead = Some(format!("all {tries} attempts failed; the last: {last}"));
                }
            }
            attempt
        }
    };
    // Of what went out as it came and arrived, the row says nothing more.
    let says_more =
        |sent: &&Sent| sent.version > 0 || attempt.status != Status::Success || sent.note.is_some();
    attempt.transform = sent.filter(says_more).map(|sent| sent.version);
    record.attempt = Some(attempt);
    record
}

/// 410 says that the endpoint will not come back: its webhook gets nothing more until somebody enables it.
/// Returns whether that is done.
async fn disable(context: &Context, delivery: &Delivery) -> bool {
    let webhook = delivery.target.webhook.id;
    match context.store.disable_webhook(webhook, Cause::Gone, context.instance).await {
        Ok(done) => {
            if let Some(told) = done {
                // One that does not fit waits in Postgres, as every batch does.
                if let Some(span) = told {
                    context.stream.send(span, false);
                }
                context.metrics.webhooks.disabled_gone.increment(1);
                tracing::info!(%webhook, "webhook disabled: its endpoint answered 410 Gone");
            }
            true
        }
        Err(error) => {
            crate::logs::warn_seldom!(%webhook, error = crate::chain(&error), "webhook not disabled");
            false
        }
    }
}
