//! Beats, and taking over from instances that stopped beating.
//!
//! Only the owner streams its batches while it is alive. An observer counts its own confirmed beats during
//! which another's did not change: a stalled Postgres stops both, and so kills nobody.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    model::EventId,
    store::{Error, Store},
    stream,
};

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// Rows of one takeover statement, and of one look for leftovers.
const PAGE: i64 = 500;

/// Own batches still new after it are looked at.
const LEFTOVER_MS: i64 = 5000;

/// Beats between two looks at who owns unsent batches, and between two looks at partitions.
const OWNERS_EVERY: u32 = 5;
const PARTITIONS_EVERY: u32 = 60;

/// Keeps one instance known to be alive.
pub struct Keeper {
    pub store: Store,
    pub stream: stream::Handle,
    pub me: i64,
    pub roles: &'static str,
    pub dead_after_beats: u32,
    pub metrics: Arc<Metrics>,
}

impl Keeper {
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut observed = Observed::default();
        let mut turn = 0u32;
        loop {
            if let Err(error) = self.beat(&mut observed, turn).await {
                self.metrics.recover.beats_missed.increment(1);
                tracing::debug!(error = crate::chain(&error), "no beat");
            }
            self.metrics.upkeep();
            turn = turn.wrapping_add(1);
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = crate::stopped(&mut stop) => return,
            }
        }
    }

    async fn beat(&self, observed: &mut Observed, turn: u32) -> Result<(), Error> {
        let (_, mut beats) = self.store.beat(self.me, self.roles).await?;
        if turn.is_multiple_of(OWNERS_EVERY) {
            // An owner without a row was declared dead once and has come back, or was removed by hand.
            for owner in self.store.owners_of_unsent().await? {
                if !beats.iter().any(|(id, _)| *id == owner) {
                    beats.push((owner, -1));
                }
            }
            self.leftovers().await?;
        }
        if turn.is_multiple_of(PARTITIONS_EVERY) {
            let made = self.store.make_partitions().await?;
            if made > 0 {
                tracing::info!(made, "partitions made");
            }
        }
        for dead in observed.note(&beats, self.me, self.dead_after_beats) {
            self.take_over(dead).await?;
        }
        Ok(())
    }

    async fn take_over(&self, dead: i64) -> Result<(), Error> {
        loop {
            // Committed before any Redis call: no transaction is ever open across one.
            let spans = self.store.take_over(dead, self.me, PAGE).await?;
            if spans.is_empty() {
                return self.store.leave(dead).await;
            }
            tracing::info!(instance = dead, batches = spans.len(), "batches of a dead instance taken over");
            self.metrics.recover.taken_over.increment(spans.len() as u64);
            for span in spans {
                self.stream.send(span, true);
            }
        }
    }

    /// Own batches that are neither on their way nor marked: a commit whose answer never came, or one that
    /// did not fit into memory.
    async fn leftovers(&self) -> Result<(), Error> {
        let mut after = EventId(0);
        loop {
            let spans = self.store.unsent_batches(self.me, LEFTOVER_MS, after, PAGE).await?;
            let Some(last) = spans.last() else { return Ok(()) };
            after = last.first;
            for span in spans {
                if !self.stream.knows(span) {
                    self.metrics.recover.leftovers.increment(1);
                    self.stream.send(span, true);
                }
            }
        }
    }
}

/// Others' beats as last seen, and for how many of our beats they have stood still.
#[derive(Default)]
struct Observed {
    others: HashMap<i64, (i64, u32)>,
}

impl Observed {
    /// Notes what one of our own confirmed beats saw; returns who has been still for too long.
    fn note(&mut self, beats: &[(i64, i64)], me: i64, dead_after: u32) -> Vec<i64> {
        self.others.retain(|id, _| beats.iter().any(|(other, _)| other == id));
        let mut dead = Vec::new();
        for (id, beat) in beats.iter().filter(|(id, _)| *id != me) {
            let (last, still) = self.others.entry(*id).or_insert((*beat, 0));
            if *last == *beat {
                *still += 1;
            } else {
                (*last, *still) = (*beat, 0);
            }
            if *still >= dead_after {
                dead.push(*id);
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_dead_after_standing_still_for_our_beats() {
        let mut observed = Observed::default();
        for turn in 0..20 {
            let beating = (2, turn);
            let dead = observed.note(&[(1, 0), beating, (3, 7)], 1, 10);
            assert_eq!(dead, if turn >= 9 { vec![3] } else { vec![] }, "turn {turn}");
        }
        assert!(observed.note(&[(1, 0), (3, 8)], 1, 10).is_empty());
        assert_eq!(observed.others.len(), 1);
    }
}
