//! Brings back what is due: leases members of `due` while there is room for retries, reads their rows, and
//! hands them to their lanes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Context, Delivery, work};
use crate::{
    model::Key,
    store::scheduled::Owed,
    stream::due::{Due, LEASE_MAX},
};

/// Pause when nothing was due. It bounds how late a retry is.
const IDLE: Duration = Duration::from_millis(50);

/// Pause when something was: Redis has others to serve between two script calls.
const BUSY: Duration = Duration::from_millis(1);

pub(super) async fn run(context: Arc<Context>, mut due: Due, mut stop: watch::Receiver<bool>) {
    loop {
        let pause = match round(&context, &mut due).await {
            Ok(0) => IDLE,
            Ok(_) => BUSY,
            Err(error) => {
                tracing::debug!(error = crate::chain(&*error), "retries wait");
                Duration::from_millis(500)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = crate::stopped(&mut stop) => return,
        }
    }
}

/// Leases once. Returns how many members came.
async fn round(
    context: &Arc<Context>,
    due: &mut Due,
) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let room = context.retry_budget.free().min(LEASE_MAX);
    if room == 0 || context.retry_budget.is_full() || !context.fence.holds() {
        return Ok(0);
    }
    // From queue to reply, and time to record it: a lease that ends earlier sends twice.
    let lease = context.config.dispatch.hold + context.config.deliver.timeout + work::MARGIN;
    let until = Instant::now() + lease;
    let keys = due.lease(room, i64::try_from(lease.as_millis())?).await?;
    if keys.is_empty() {
        return Ok(0);
    }
    context.metrics.retry.leased.increment(keys.len() as u64);
    let owed = context.store.owed(&keys).await?;
    forget_stale(context, due, &keys, &owed).await?;
    let mut early = Vec::new();
    for row in owed {
        if row.due_in_ms > 1000 {
            early.push((row.key, row.due_in_ms));
        } else {
            take(context, row, until).await?;
        }
    }
    if !early.is_empty() {
        // The row was moved on while its member was not: the row is right.
        let keys: Vec<Key> = early.iter().map(|(key, _)| *key).collect();
        due.remove(&keys).await?;
        due.feed(&early).await?;
    }
    Ok(keys.len())
}

/// Members without a row are settled; rows without an event can never be.
async fn forget_stale(
    context: &Context,
    due: &mut Due,
    keys: &[Key],
    owed: &[Owed],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let rows: HashSet<Key> = owed.iter().map(|o| o.key).collect();
    let mut gone: Vec<Key> = keys.iter().copied().filter(|key| !rows.contains(key)).collect();
    let orphans: Vec<Key> = owed.iter().filter(|o| o.event.is_none()).map(|o| o.key).collect();
    if !orphans.is_empty() {
        context.metrics.dispatch.orphans.increment(orphans.len() as u64);
        context.store.drop_orphans(&orphans).await?;
        gone.extend(&orphans);
    }
    if !gone.is_empty() {
        context.metrics.retry.stale.increment(gone.len() as u64);
        due.remove(&gone).await?;
    }
    Ok(())
}

async fn take(
    context: &Arc<Context>,
    row: Owed,
    until: Instant,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(event) = row.event else { return Ok(()) };
    let Some(target) = context.registry.webhook(event.account, row.key.1).await? else {
        work::webhook_gone(context, event.account, row.key, row.tried).await;
        return Ok(());
    };
    let permit = context.retry_budget.acquire(event.payload.len()).await;
    let delivery = Delivery {
        event,
        target,
        tried: row.tried,
        was_scheduled: true,
        entry: None,
        leased_until: Some(until),
        permit,
    };
    if row.expired {
        context.metrics.retry.expired.increment(1);
        work::dead_without_call(
            context,
            delivery,
            "expired",
            "its time was up before an attempt could be made",
        )
        .await;
    } else {
        work::admit(context, delivery).await;
    }
    Ok(())
}
