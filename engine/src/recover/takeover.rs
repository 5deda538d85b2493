//! Beats, and taking over from instances that stopped beating.
//!
//! Only the owner streams its batches while it is alive. An observer counts its own confirmed beats during
//! which another's did not change: a stalled Postgres stops both, and so kills nobody.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    huge_pages,
    metrics::Metrics,
    model::EventId,
    store::{Error, Link, Store},
    stream,
};

/// Between two beats, and between two rounds of chores.
const BEAT: Duration = Duration::from_secs(1);

/// Rows of one takeover statement, and of one look for leftovers.
const PAGE: i64 = 500;

/// Old idempotency keys removed by one statement, short enough that no request notices it, and statements of one
/// round: together more than a process adds in a second.
const OLD_KEYS: u64 = 1000;
const OLD_KEYS_STEPS: usize = 20;

/// Own batches still new after it are looked at.
const LEFTOVER_MS: i64 = 5000;

/// Rounds between two looks at who owns unsent batches, and between two looks at partitions.
const OWNERS_EVERY: u32 = 5;
const PARTITIONS_EVERY: u32 = 60;

/// Keeps one instance known to be alive, and does what dead ones left undone.
pub struct Keeper {
    /// Of the beats alone: nothing may make them wait.
    pub link: Link,
    pub store: Store,
    pub stream: stream::Handle,
    pub me: i64,
    pub roles: &'static str,
    pub dead_after_beats: u32,
    pub metrics: Arc<Metrics>,
}

/// What the beats and the chores tell each other.
#[derive(Default)]
struct Shared {
    /// Instances that the beats found dead, with the beat at which each stands still.
    dead: BTreeMap<i64, i64>,
    /// Owners of unsent batches, as of the last look: one without a row is watched all the same.
    owners: Vec<i64>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the next round; false when there is to be none.
async fn next(stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(BEAT) => true,
        () = crate::stopped(stop) => false,
    }
}

impl Keeper {
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Keeper { mut link, store, stream, me, roles, dead_after_beats, metrics } = self;
        let shared = Mutex::new(Shared::default());
        let mut chores_stop = stop.clone();
        let beats = async {
            let mut observed = Observed::default();
            loop {
                match link.beat(me, roles).await {
                    Ok(mut beats) => {
                        let mut shared = lock(&shared);
                        add_rowless(&mut beats, &shared.owners);
                        shared.dead = observed.note(&beats, me, dead_after_beats).into_iter().collect();
                    }
                    Err(error) => {
                        metrics.recover.beats_missed.increment(1);
                        tracing::debug!(error = crate::chain(&error), "no beat");
                    }
                }
                metrics.upkeep();
                huge_pages::adjust();
                if !next(&mut stop).await {
                    return;
                }
            }
        };
        let mut chores =
            Chores { store: &store, stream: &stream, me, metrics: &metrics, unsent: HashSet::new() };
        let chores = async {
            let mut turn = 0u32;
            loop {
                if let Err(error) = chores.round(&shared, turn).await {
                    tracing::debug!(error = crate::chain(&error), "chores wait for Postgres");
                }
                turn = turn.wrapping_add(1);
                if !next(&mut chores_stop).await {
                    return;
                }
            }
        };
        tokio::join!(beats, chores);
    }
}

/// Owners without a row were declared dead once, or removed by hand. They stand still until they beat again.
fn add_rowless(beats: &mut Vec<(i64, i64)>, owners: &[i64]) {
    for owner in owners {
        if !beats.iter().any(|(id, _)| id == owner) {
            beats.push((*owner, -1));
        }
    }
}

struct Chores<'a> {
    store: &'a Store,
    stream: &'a stream::Handle,
    me: i64,
    metrics: &'a Metrics,
    /// Own batches that the last look found neither on their way nor marked.
    unsent: HashSet<i64>,
}

impl Chores<'_> {
    async fn round(&mut self, shared: &Mutex<Shared>, turn: u32) -> Result<(), Error> {
        if turn.is_multiple_of(PARTITIONS_EVERY) {
            match self.store.make_partitions().await {
                Ok(made) if made > 0 => tracing::info!(made, "partitions made"),
                Ok(_) => {}
                // There are several ahead, so this is no hurry, but somebody should know.
                Err(error) => tracing::warn!(error = crate::chain(&error), "partitions not made"),
            }
        }
        if turn.is_multiple_of(OWNERS_EVERY) {
            let owners = self.store.owners_of_unsent().await?;
            lock(shared).owners = owners;
            self.leftovers().await?;
        }
        self.remove_old_keys().await?;
        // What was read before may be seconds old by now.
        let dead = lock(shared).dead.clone();
        for (instance, beat) in dead {
            self.take_over(instance, beat).await?;
        }
        Ok(())
    }

    /// They count as absent all the same, so nothing depends on when they go.
    async fn remove_old_keys(&self) -> Result<(), Error> {
        for _ in 0..OLD_KEYS_STEPS {
            let removed = self.store.remove_old_keys(OLD_KEYS as i64).await?;
            self.metrics.recover.old_keys.increment(removed);
            if removed < OLD_KEYS {
                break;
            }
        }
        Ok(())
    }

    /// One page a round: more would only wait in memory.
    async fn take_over(&self, dead: i64, beat: i64) -> Result<(), Error> {
        // Committed before any Redis call: no transaction is ever open across one.
        let spans = self.store.take_over(dead, beat, self.me, PAGE).await?;
        if spans.is_empty() {
            return self.store.bury(dead, beat).await;
        }
        tracing::info!(instance = dead, batches = spans.len(), "batches of a dead instance taken over");
        self.metrics.recover.taken_over.increment(spans.len() as u64);
        for span in spans {
            // One that does not fit is ours by now, and a leftover later.
            self.stream.send(span, true);
        }
        Ok(())
    }

    /// Own batches that are neither on their way nor marked: a commit whose answer never came, or one that did not
    /// fit into memory. Seen twice, because a mark may be committed between our query and our look.
    async fn leftovers(&mut self) -> Result<(), Error> {
        let mut after = EventId(0);
        let mut seen = HashSet::new();
        loop {
            let spans = self.store.unsent_batches(self.me, LEFTOVER_MS, after, PAGE).await?;
            let Some(last) = spans.last() else { break };
            after = last.first;
            for span in spans.into_iter().filter(|span| !self.stream.knows(*span)) {
                if !self.unsent.contains(&span.first.0) {
                    seen.insert(span.first.0);
                } else if self.stream.send(span, true) {
                    self.metrics.recover.leftovers.increment(1);
                } else {
                    // No room: the rest waits in Postgres, and is looked at again.
                    return Ok(());
                }
            }
        }
        self.unsent = seen;
        Ok(())
    }
}

/// Others' beats as last seen, and for how many of our beats they have stood still.
#[derive(Default)]
struct Observed {
    others: HashMap<i64, (i64, u32)>,
}

impl Observed {
    /// Notes what one of our own confirmed beats saw; returns who has been still for too long, and at which beat.
    fn note(&mut self, beats: &[(i64, i64)], me: i64, dead_after: u32) -> Vec<(i64, i64)> {
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
                dead.push((*id, *beat));
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
            assert_eq!(dead, if turn >= 9 { vec![(3, 7)] } else { vec![] }, "turn {turn}");
        }
        assert!(observed.note(&[(1, 0), (3, 8)], 1, 10).is_empty());
        assert_eq!(observed.others.len(), 1);
    }

    #[test]
    fn an_owner_without_a_row_is_found_dead_too() {
        let mut observed = Observed::default();
        let found = (0..10).map(|turn| {
            let mut beats = vec![(1, turn), (2, turn)];
            add_rowless(&mut beats, &[2, 9]);
            observed.note(&beats, 1, 10)
        });
        assert_eq!(found.last(), Some(vec![(9, -1)]));
    }
}
