//! Keeps what waits in the schedule for one webhook below `lane.backlog_max`: the surplus ends as dead letters.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    metrics::Metrics,
    model::WebhookId,
    store::{Error, Store, backlog::Look},
};

/// Rounds of upkeep between two looks: one look counts rows, and between two of them a backlog grows by no more than a few percent.
const LOOK_EVERY: u32 = 6;

/// Rows counted by one statement beside those of its last webhook (a million take about a second), and statements of one round.
const ROWS: i64 = 250_000;
const LOOK_STEPS: usize = 2;

/// Deliveries dead-lettered by one statement, and of one webhook in one look. With more to end, the next round looks again.
const STEP: i64 = 1000;
const SURPLUS_MAX: i64 = 50_000;

/// Between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The cap, and how far its keeper has come.
pub struct Cap {
    /// Zero for none.
    max: i64,
    /// Retries further away than this are surely not in `due`.
    beyond_ms: i64,
    /// Webhooks up to this one have been looked at.
    after: WebhookId,
    /// Rounds until the next look.
    wait: u32,
    warned: Option<Instant>,
    /// Dead-lettered and not yet warned of.
    untold: u64,
}

impl Cap {
    /// `horizon` is how far ahead retries are brought into `due`.
    pub fn new(max: usize, horizon: Duration) -> Cap {
        // Twice as far, because the clock goes on while a statement runs.
        let beyond = (horizon * 2).max(Duration::from_secs(10));
        Cap {
            max: i64::try_from(max).unwrap_or(i64::MAX),
            beyond_ms: i64::try_from(beyond.as_millis()).unwrap_or(i64::MAX),
            after: WebhookId(0),
            wait: 0,
            warned: None,
            untold: 0,
        }
    }

    /// One round of upkeep: a look, now and then, and the end of what is too much.
    pub(super) async fn round(&mut self, store: &Store, metrics: &Arc<Metrics>) -> Result<(), Error> {
        if self.wait > 0 {
            self.wait -= 1;
            return Ok(());
        }
        if self.max == 0 || store.scheduled_at_most().await? <= self.max {
            self.wait = LOOK_EVERY - 1;
            return Ok(());
        }
        let look = Look { max: self.max, surplus_max: SURPLUS_MAX, rows: ROWS };
        let mut more = false;
        for _ in 0..LOOK_STEPS {
            let found = store.crowded_webhooks(self.after, look).await?;
            for (webhook, surplus) in found.over {
                let ended = self.end(store, metrics, webhook, surplus).await?;
                more |= surplus == SURPLUS_MAX && ended > 0;
            }
            self.after = found.next.unwrap_or(WebhookId(0));
            if found.next.is_none() {
                break;
            }
        }
        // Begun and not finished, it goes on in the next round.
        self.wait = if more || self.after.0 > 0 { 0 } else { LOOK_EVERY - 1 };
        Ok(())
    }

    /// Ends up to `surplus` of a webhook's deliveries, what is shelved before retries. Returns how many.
    async fn end(
        &mut self,
        store: &Store,
        metrics: &Arc<Metrics>,
        webhook: WebhookId,
        surplus: i64,
    ) -> Result<u64, Error> {
        let (mut left, mut ended) = (surplus, 0);
        for retries_beyond_ms in [None, Some(self.beyond_ms)] {
            while left > 0 {
                let limit = left.min(STEP);
                let gone = store.end_surplus(webhook, limit, self.max, retries_beyond_ms).await?;
                metrics.lane.backlog_limited.increment(gone);
                metrics.dlq.added.increment(gone);
                ended += gone;
                left -= gone.cast_signed();
                if gone.cast_signed() < limit {
                    break;
                }
            }
        }
        self.warn(webhook, ended);
        Ok(ended)
    }

    fn warn(&mut self, webhook: WebhookId, ended: u64) {
        self.untold += ended;
        if self.untold == 0 || self.warned.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        tracing::warn!(%webhook, max = self.max, deliveries = self.untold,
            "dead-lettered, because too much waits for one webhook or several");
        (self.warned, self.untold) = (Some(Instant::now()), 0);
    }
}
