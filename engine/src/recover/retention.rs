//! Removing what is older than an operator wants to keep. Whole partitions go, so it costs the same however many events are in
//! them, and leaves no dead rows behind.

use std::time::Duration;

use crate::{
    metrics::Metrics,
    store::{Error, Store},
};

/// Rounds between two looks; a partition spans 18 hours at the least, or 67 million events.
const EVERY: u32 = 60;

/// Steps of one round through the dead letters of a partition that is to go.
const LETTERS_STEPS: usize = 20;

/// Old events, as upkeep removes them.
pub struct Retention {
    keep: Duration,
    rounds: u32,
}

impl Retention {
    /// Zero keeps them for ever.
    pub fn new(keep: Duration) -> Retention {
        Retention { keep, rounds: 0 }
    }

    /// Drops the oldest partition if its time is over. The rest waits for the next look: each is one short lock on ingest.
    pub(super) async fn round(&mut self, store: &Store, metrics: &Metrics) -> Result<(), Error> {
        let turn = self.rounds.is_multiple_of(EVERY);
        self.rounds = self.rounds.wrapping_add(1);
        if self.keep.is_zero() || !turn {
            return Ok(());
        }
        match drop_oldest(store, self.keep).await {
            Ok(false) => {}
            Ok(true) => {
                metrics.recover.partitions_dropped.increment(1);
                // There may be another.
                self.rounds = 0;
            }
            Err(error) => {
                // Mostly the lock, which others had; soon again.
                self.rounds = 0;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Looks at the partitions from the oldest on, past those in which something is owed. Returns whether one is gone.
///
/// # Errors
/// When Postgres is not there, or had no lock for us within a moment.
pub async fn drop_oldest(store: &Store, keep: Duration) -> Result<bool, Error> {
    let age_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    for partition in store.partitions().await? {
        if !store.is_spent(partition, age_ms).await? {
            continue;
        }
        // A letter whose event is gone could not be requeued.
        for _ in 0..LETTERS_STEPS {
            if !store.remove_letters_of(partition).await? {
                break;
            }
        }
        if store.drop_partition(partition, age_ms).await? {
            tracing::info!(partition, "events older than retention.events dropped");
            return Ok(true);
        }
    }
    Ok(false)
}
