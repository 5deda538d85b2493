//! Entries whose holders died more than once. One of their events may be why: a module or a reply that takes the process with it. So
//! their events are handled one at a time, each noted in Redis before it is touched; an event that is found noted was in hand
//! when its process died, and ends as a dead letter. An event costs four processes at most, and its neighbours nothing.
//!
//! Likewise retries, which are leased one by one: one that was leased twice with no outcome is handled alone.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Context, Delivery, intake::Intake, retries, work};
use crate::{
    deliver::Target,
    model::{Event, Key},
    settle::{Item, Open},
    store,
    stream::{self, Entry, consumer::Claims, due::Due},
};

/// Between two looks at whether an event's deliveries are out of hand.
const LOOK: Duration = Duration::from_millis(2);

/// What a dead letter says.
const WHY: &str = "the processes that had it in hand died";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("Postgres does not say what is in the entry")]
    Store(#[from] store::Error),
    #[error("Redis does not take the note")]
    Stream(#[from] stream::Error),
}

/// Takes entries one after the other, each event alone.
pub(super) async fn take_carefully(
    intake: Intake,
    mut claims: Claims,
    entries: Vec<Entry>,
    term: u64,
    stop: watch::Receiver<bool>,
) {
    for entry in entries {
        if *stop.borrow() {
            return;
        }
        if !intake.context.opened.insert(&entry) {
            continue;
        }
        tracing::warn!(batch = %entry.span.first, "a batch whose holders died is taken event by event");
        if let Err(error) = take_one(&intake, &mut claims, &entry, term, &stop).await {
            tracing::debug!(error = crate::chain(&error), "the batch comes again");
            intake.context.opened.remove(&entry.id);
        }
    }
}

async fn take_one(
    intake: &Intake,
    claims: &mut Claims,
    entry: &Entry,
    term: u64,
    stop: &watch::Receiver<bool>,
) -> Result<(), Error> {
    let first = entry.span.first.0;
    let suspect = claims.suspect(first).await?;
    let Some((_, owed, settled)) = intake.load(std::slice::from_ref(entry), true).await?.pop() else {
        intake.context.opened.remove(&entry.id);
        return Ok(());
    };
    let open = Arc::new(Open::new(entry.id.clone(), first, term, true));
    let never = &mut watch::channel(false).1;
    for event in &owed.batch.events {
        if *stop.borrow() {
            // Not with one noted: it would be taken for what this process ended of.
            intake.context.opened.remove(&entry.id);
            return Ok(claims.forget_suspect(first).await?);
        }
        if suspect == Some(event.id.0) {
            bury(intake, entry, event, owed.webhooks(event), &settled, &open).await;
        } else {
            claims.note_suspect(first, event.id.0).await?;
            intake.hand_over(entry, event, owed.webhooks(event), &settled, &open, never).await;
        }
        while !open.is_alone() {
            tokio::time::sleep(LOOK).await;
        }
    }
    intake.context.recorder.settle(Item { record: None, entry: Some(open), permit: None }).await;
    Ok(claims.forget_suspect(first).await?)
}

/// Makes one retry alone.
pub(super) async fn retry_carefully(
    context: Arc<Context>,
    mut due: Due,
    key: Key,
    until: Instant,
    term: u64,
) {
    let (event, webhook) = key;
    tracing::warn!(%event, %webhook, "a retry whose holders died is made alone");
    if let Err(error) = retry_one(&context, &mut due, key, until, term).await {
        tracing::debug!(error = crate::chain(&*error), "the retry comes again");
    }
}

async fn retry_one(
    context: &Arc<Context>,
    due: &mut Due,
    key: Key,
    until: Instant,
    term: u64,
) -> Result<(), retries::Failure> {
    let deadly = due.is_noted(key).await?;
    let Some(row) = retries::look_up(context, due, &[key]).await?.pop() else {
        return Ok(due.forget_note(key).await?);
    };
    if deadly {
        if let Some(delivery) = context.retry_of(row, until, term).await? {
            tracing::error!(event = %key.0, "a retry that processes die of ends as a dead letter");
            context.metrics.dispatch.poisoned.increment(1);
            work::dead_without_call(context, delivery, "poison", WHY).await;
        }
        return Ok(due.forget_note(key).await?);
    }
    due.note(key).await?;
    let taken = retries::take(context, due, row, until, term).await;
    while context.leases.holds(&key) {
        tokio::time::sleep(LOOK).await;
    }
    // Whatever came of it, this process lives: a note that stayed would convict it.
    due.forget_note(key).await?;
    if let Some(wait) = taken? {
        // Without an outcome it stays a suspect.
        due.keep(&[(key, i64::try_from(wait.as_millis())?)]).await?;
    }
    Ok(())
}

/// Ends what is owed of an event as dead letters, without touching it.
async fn bury(
    intake: &Intake,
    entry: &Entry,
    event: &Arc<Event>,
    webhooks: &[Arc<Target>],
    settled: &HashSet<Key>,
    open: &Arc<Open>,
) {
    tracing::error!(event = %event.id, "an event that processes die of ends as a dead letter");
    for target in webhooks.iter().filter(|t| t.webhook.eligible(&event.kind, entry.span.version)) {
        if settled.contains(&(event.id, target.webhook.id)) {
            continue;
        }
        open.add();
        intake.context.metrics.dispatch.poisoned.increment(1);
        let delivery = Delivery::first(event.clone(), target.clone(), open.clone(), None);
        work::dead_without_call(&intake.context, delivery, "poison", WHY).await;
    }
}
