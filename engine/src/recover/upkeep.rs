//! Upkeep: what is to be done once in a while and by one process: disabling webhooks that have failed for too long.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    store::{Error, Link, Store, failing::Cause},
    stream,
};

/// What the upkeep needs.
pub struct Upkeep {
    pub store: Store,
    /// Holds the advisory lock that makes one process do it.
    pub lock: Link,
    pub stream: stream::Handle,
    pub me: i64,
    pub every: Duration,
    /// Zero for never.
    pub disable_after: Duration,
    pub metrics: Arc<Metrics>,
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Upkeep {
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = crate::stopped(&mut stop) => return,
            }
            if let Err(error) = self.round().await {
                tracing::debug!(error = crate::chain(&error), "upkeep waits for Postgres");
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        if !self.lock.try_upkeep_lock().await? {
            return Ok(());
        }
        self.disable_failing().await
    }

    async fn disable_failing(&self) -> Result<(), Error> {
        if self.disable_after.is_zero() {
            return Ok(());
        }
        let after_ms = ms(self.disable_after);
        for webhook in self.store.failing_webhooks(after_ms).await? {
            let cause = Cause::Failing { after_ms };
            if let Some(told) = self.store.disable_webhook(webhook, cause, self.me).await? {
                // One that does not fit waits in Postgres, as every batch does.
                if let Some(span) = told {
                    self.stream.send(span, false);
                }
                self.metrics.webhooks.disabled_failing.increment(1);
                tracing::info!(%webhook, "webhook disabled: nothing but failures came from it");
            }
        }
        Ok(())
    }
}
