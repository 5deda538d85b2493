//! Upkeep: what is to be done once in a while and by one process: disabling webhooks that have failed for too long,
//! removing old events, dead letters and versions of transforms, and cutting backlogs that are too long.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{backlog::Cap, retention::Retention};
use crate::{
    metrics::Metrics,
    store::{Error, Link, Store, failing::Cause},
    stream,
};

/// Steps of one round through the old dead letters, of 1,000 letters each: 4,000 a second with the default pause, far more than
/// die in the long run.
const LETTERS_STEPS: usize = 20;

/// Rounds between two looks at all modules of transforms.
const MODULES_EVERY: u32 = 100;

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
    pub letters: OldLetters,
    pub cap: Cap,
    pub retention: Retention,
    /// How many there were: 0 to begin with.
    pub rounds: u32,
    pub metrics: Arc<Metrics>,
}

/// How far the removal of old dead letters has come.
pub struct OldLetters {
    /// Zero keeps them for ever.
    keep: Duration,
    /// Those up to this id have been looked at: what is kept at the front does not stop the rest.
    after: i64,
}

impl OldLetters {
    pub fn new(keep: Duration) -> OldLetters {
        OldLetters { keep, after: 0 }
    }
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
            // Every step is a statement of its own, and another process goes on.
            let outcome = tokio::select! {
                outcome = self.round() => outcome,
                () = crate::stopped(&mut stop) => return,
            };
            if let Err(error) = outcome {
                tracing::debug!(error = crate::chain(&error), "upkeep waits for Postgres");
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        if !self.lock.try_upkeep_lock().await? {
            return Ok(());
        }
        self.disable_failing().await?;
        self.remove_old_letters().await?;
        self.remove_transforms().await?;
        self.cap.round(&self.store, &self.metrics).await?;
        self.retention.round(&self.store, &self.metrics).await
    }

    async fn remove_old_letters(&mut self) -> Result<(), Error> {
        if self.letters.keep.is_zero() {
            return Ok(());
        }
        let keep_ms = ms(self.letters.keep);
        for _ in 0..LETTERS_STEPS {
            let removed = self.store.remove_old_letters(self.letters.after, keep_ms).await?;
            self.metrics.dlq.removed.increment(removed.letters);
            // From the beginning again once the young ones are reached: what was kept may have ended.
            self.letters.after = removed.next.unwrap_or(0);
            if removed.next.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn remove_transforms(&mut self) -> Result<(), Error> {
        self.store.remove_left_transforms().await?;
        let deleted = self.store.delete_removed_transforms().await?;
        self.rounds = self.rounds.wrapping_add(1);
        // Uploads that got no version leave modules too, but seldom.
        if deleted > 0 || self.rounds.is_multiple_of(MODULES_EVERY) {
            self.store.delete_unused_modules().await?;
        }
        Ok(())
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
