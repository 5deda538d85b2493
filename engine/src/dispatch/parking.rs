//! Taking deliveries out of memory: what is written for one that waits in Postgres.

use std::time::Duration;

use tokio::time::Instant;

use super::{Context, Delivery, work};
use crate::{
    lane::{Lane, Overflow, Why},
    model::Own,
    settle::Item,
    store::settle::{Later, Record, SHELVED},
};

/// How much later than promised a retry may come to be made.
const GRACE: Duration = Duration::from_secs(10);

/// Takes a delivery out of memory: beside its open entry where its lane soon comes to it, or else into the schedule.
pub(super) async fn turn_away(context: &Context, delivery: Delivery) {
    let lane = context.lanes.of(delivery.target.webhook.id);
    if let Some(entry) = &delivery.entry
        && context.fence.holds(delivery.term)
        && context.defer(&delivery.target, lane.load(), &delivery.event, entry)
    {
        return;
    }
    let (wait, reason) = overflow(context, &lane, &delivery.target.webhook.own);
    park(context, delivery, wait, reason).await;
}

/// Puts a delivery into the schedule without an attempt.
pub(super) async fn park(context: &Context, delivery: Delivery, wait: Duration, reason: &'static str) {
    if !context.fence.holds(delivery.term) {
        return work::abandon(context, delivery);
    }
    let mut record = work::blank(&delivery);
    let next = delivery.tried.attempt;
    record.later = Some(later(context, &delivery.target.webhook.own, &record, next, wait, reason));
    let item = Item { record: Some(record), entry: delivery.entry, permit: delivery.permit };
    context.recorder.settle(item).await;
}

/// Puts a delivery into the schedule without a time: it waits for its lane's word, and holds nothing meanwhile.
pub(super) async fn shelve(context: &Context, delivery: Delivery, reason: &'static str) {
    let wait = shelf_time(context, &delivery.target.webhook.own, reason);
    park(context, delivery, wait, reason).await;
}

/// For how long the schedule keeps one more delivery of a lane that has no room, and why.
pub(super) fn overflow(context: &Context, lane: &Lane<Delivery>, own: &Own) -> (Duration, &'static str) {
    let (reason, counter) = match lane.overflow() {
        Overflow::Park(wait) => {
            context.metrics.lane.parked_full.increment(1);
            return (wait, "parked");
        }
        Overflow::Shelve(Why::Breaker) => ("breaker", &context.metrics.lane.shelved_breaker),
        Overflow::Shelve(Why::Backlog) => ("backlog", &context.metrics.lane.shelved_backlog),
    };
    counter.increment(1);
    (shelf_time(context, own, reason), reason)
}

/// How long something may stay on the shelf.
fn shelf_time(context: &Context, own: &Own, reason: &str) -> Duration {
    let terms = context.policy.of(own);
    // Behind a breaker no time goes into calls.
    if reason == "breaker" { terms.patience() } else { terms.expiry() }
}

/// The row of a delivery that is tried again after `wait`. A failed probe for whose retry there is no time goes back to the shelf:
/// with a promise it would outlive everything it stood there with, and then wait for an endpoint that does not work. One that
/// `answers`, though with a refusal, has its breaker closed.
pub(super) fn again(
    context: &Context,
    delivery: &Delivery,
    record: &Record,
    wait: Duration,
    answers: bool,
) -> Later {
    let (own, next) = (&delivery.target.webhook.own, delivery.tried.attempt + 1);
    let left = delivery.probe_until.map(|until| until.saturating_duration_since(Instant::now()));
    match left.filter(|left| !answers && *left < wait + GRACE) {
        Some(left) => later(context, own, record, next, left, "breaker"),
        None => later(context, own, record, next, wait, "retry"),
    }
}

/// The row of a delivery that waits.
pub(super) fn later(
    context: &Context,
    own: &Own,
    record: &Record,
    next_attempt: i16,
    wait: Duration,
    reason: &'static str,
) -> Later {
    let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    // A retry that is promised is made; what is shelved goes when its time is up.
    let expiry =
        if SHELVED.contains(&reason) { wait } else { context.policy.of(own).expiry().max(wait + GRACE) };
    Later {
        next_attempt,
        delay_ms: ms(wait),
        expires_ms: ms(expiry),
        reason,
        pin: None,
        existing: record.was_scheduled,
    }
}
