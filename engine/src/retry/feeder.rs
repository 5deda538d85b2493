//! Brings scheduled work into `due` as its time comes near. It only adds: whatever a lost Redis command or
//! a wiped Redis left out is back after the next pass.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    store::{Store, scheduled::Place},
    stream::{Gate, due::Due},
};

/// Pause between passes. It bounds how late a retry comes whose place in Redis was lost.
const PASS: Duration = Duration::from_secs(1);

/// Rows of one page, and pages of one pass. The recorder adds what it schedules itself; the feeder finds the rest. Of a near
/// window with more rows each pass looks at the next ones, so that what is in `due` already hides nothing behind it.
const PAGE: usize = 5000;
const PAGES: usize = 4;

/// Shelved deliveries dead-lettered by one statement, and statements of one pass.
const EXPIRE_MAX: u64 = 1000;
const EXPIRE_STEPS: usize = 20;

/// What the feeder needs.
pub struct Feeder {
    pub store: Store,
    pub due: Due,
    pub gate: Gate,
    pub horizon: Duration,
    /// What is left after a pause to what waited in it, in milliseconds.
    pub spare_ms: i64,
    pub metrics: Arc<Metrics>,
}

impl Feeder {
    /// Feeds `due` until stopped.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut place = None;
        loop {
            if let Err(error) = self.pass(&mut place).await {
                tracing::debug!(error = crate::chain(&*error), "nothing fed into due");
            }
            tokio::select! {
                () = tokio::time::sleep(PASS) => {}
                () = crate::stopped(&mut stop) => return,
            }
        }
    }

    async fn pass(
        &mut self,
        place: &mut Option<Place>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (store, metrics) = (&self.store, &self.metrics);
        let horizon_ms = i64::try_from(self.horizon.as_millis()).unwrap_or(i64::MAX);
        let depth = self.due.depth().await?;
        metrics.retry.due.set(depth as f64);
        if self.due.is_full(depth) {
            // What comes soonest has the next room.
            *place = None;
        }
        // What nobody pulled in time ends here, without a call.
        for _ in 0..EXPIRE_STEPS {
            let expired = store.expire_shelved(EXPIRE_MAX as i64, self.spare_ms).await?;
            metrics.retry.expired.increment(expired.gone);
            metrics.dlq.added.increment(expired.gone);
            if expired.looked < EXPIRE_MAX {
                break;
            }
        }
        for _ in 0..PAGES {
            let upcoming = store.upcoming(horizon_ms, *place, PAGE as i64).await?;
            if !upcoming.deliveries.is_empty() {
                metrics.retry.fed.increment(self.due.refill(&upcoming.deliveries, &self.gate).await?);
            }
            *place = upcoming.last.filter(|_| upcoming.deliveries.len() == PAGE);
            if place.is_none() {
                break;
            }
        }
        Ok(())
    }
}
