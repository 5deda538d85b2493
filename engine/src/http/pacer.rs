//! How many refusals are told: a part of what is accepted.
//!
//! To read a request and refuse it costs the gateway nearly what accepting it does, so refusals that come as fast as they are asked
//! for leave no time for the events that could be accepted (Mogul and Ramakrishnan, "Eliminating Receive Livelock in an
//! Interrupt-driven Kernel", 1997).

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Refusals for each request that is accepted.
const SHARE: f64 = 0.1;

/// Refusals a second that are told in any case: where nothing is accepted there is nothing to make room for.
const LEAST: f64 = 1000.0;

/// Between two looks at how many are accepted.
const LOOK: Duration = Duration::from_millis(100);

/// Gives the refusals of all connections their times.
pub struct Pacer {
    accepted: AtomicU64,
    line: Mutex<Line>,
}

struct Line {
    looked: Instant,
    /// Accepted until then.
    accepted: u64,
    gap: Duration,
    next: Instant,
}

impl Default for Pacer {
    fn default() -> Pacer {
        let now = Instant::now();
        let line = Line { looked: now, accepted: 0, gap: Duration::from_secs(1).div_f64(LEAST), next: now };
        Pacer { accepted: AtomicU64::new(0), line: Mutex::new(line) }
    }
}

impl Pacer {
    /// A request was accepted.
    pub(super) fn note_accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    /// When a refusal is to be told that comes now: in its turn, and by `latest` whoever is before it.
    pub(super) fn turn(&self, latest: Instant) -> Instant {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // Behind the lock, so that both only grow from one look to the next.
        let (now, accepted) = (Instant::now(), self.accepted.load(Relaxed));
        line.look(accepted, now);
        let turn = line.next.max(now);
        if turn >= latest {
            return latest.max(now);
        }
        line.next = turn + line.gap;
        turn
    }
}

impl Line {
    fn look(&mut self, accepted: u64, now: Instant) {
        let since = now - self.looked;
        if since < LOOK {
            return;
        }
        let rate = accepted.saturating_sub(self.accepted) as f64 / since.as_secs_f64();
        self.gap = Duration::from_secs(1).div_f64((rate * SHARE).max(LEAST));
        (self.looked, self.accepted) = (now, accepted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many of so many refusals that all come now are told within a second.
    fn told(pacer: &Pacer, refusals: u32) -> usize {
        let latest = Instant::now() + SECOND;
        (0..refusals).filter(|_| pacer.turn(latest) < latest).count()
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_a_tenth_as_many_refusals_as_accepted_requests() {
        let pacer = Pacer::default();
        assert_eq!(told(&pacer, 5000), 1000, "nothing is known of before");
        tokio::time::advance(SECOND).await;
        (0..20_000).for_each(|_| pacer.note_accepted());
        assert!(told(&pacer, 10_000).abs_diff(2000) <= 1);
        tokio::time::advance(SECOND).await;
        (0..100).for_each(|_| pacer.note_accepted());
        assert!(told(&pacer, 10_000).abs_diff(1000) <= 1, "some are told whatever is accepted");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_latest_and_a_lone_one_not_at_all() {
        let pacer = Pacer::default();
        let now = Instant::now();
        told(&pacer, 5000);
        assert_eq!(pacer.turn(now + SECOND), now + SECOND);
        tokio::time::advance(SECOND * 2).await;
        let now = Instant::now();
        assert_eq!(pacer.turn(now + SECOND), now);
        assert_eq!(pacer.turn(now - SECOND), now, "never before it is asked for");
    }
}
