//! Brings scheduled work into `due` as its time comes near. It only adds: whatever a lost Redis command or
//! a wiped Redis left out is back after the next pass.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{metrics::Metrics, store::Store, stream::due::Due};

/// Pause between passes. It bounds how late a retry comes whose place in Redis was lost.
const PASS: Duration = Duration::from_secs(1);

/// Rows one pass looks at. The recorder adds what it schedules itself; the feeder finds the rest.
const PASS_MAX: i64 = 5000;

/// Shelved deliveries dead-lettered by one statement, and statements of one pass.
const EXPIRE_MAX: u64 = 1000;
const EXPIRE_STEPS: usize = 20;

/// Feeds `due` until stopped. `spare_ms` is what is left after a pause to what waited in it.
pub async fn run(
    store: Store,
    mut due: Due,
    horizon: Duration,
    spare_ms: i64,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let horizon_ms = i64::try_from(horizon.as_millis()).unwrap_or(i64::MAX);
    loop {
        if let Err(error) = pass(&store, &mut due, (horizon_ms, spare_ms), &metrics).await {
            tracing::debug!(error = crate::chain(&*error), "nothing fed into due");
        }
        tokio::select! {
            () = tokio::time::sleep(PASS) => {}
            () = crate::stopped(&mut stop) => return,
        }
    }
}

async fn pass(
    store: &Store,
    due: &mut Due,
    (horizon_ms, spare_ms): (i64, i64),
    metrics: &Metrics,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    metrics.retry.due.set(due.depth().await? as f64);
    // What nobody pulled in time ends here, without a call.
    for _ in 0..EXPIRE_STEPS {
        let expired = store.expire_shelved(EXPIRE_MAX as i64, spare_ms).await?;
        metrics.retry.expired.increment(expired.gone);
        metrics.dlq.added.increment(expired.gone);
        if expired.looked < EXPIRE_MAX {
            break;
        }
    }
    let upcoming = store.upcoming(horizon_ms, PASS_MAX).await?;
    if !upcoming.is_empty() {
        metrics.retry.fed.increment(due.feed(&upcoming).await?);
    }
    Ok(())
}
