//! Whether this consumer may still send. A process that slept (SIGSTOP, a paused machine) may have been
//! declared dead and its work taken over: what it held unsent it must drop.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Remembers when the last beat was confirmed, on the monotonic clock, which goes on while a process is
/// stopped. Time without a gap is one term: what was taken in hand in one term is not sent in another.
pub(super) struct Fence {
    start: Instant,
    beaten_ms: AtomicU64,
    term: AtomicU64,
    dead_after: Duration,
}

impl Fence {
    pub(super) fn new(dead_after: Duration) -> Fence {
        Fence { start: Instant::now(), beaten_ms: AtomicU64::new(0), term: AtomicU64::new(0), dead_after }
    }

    /// A beat that was sent at `at` has been confirmed.
    pub(super) fn beaten(&self, at: Instant) {
        let since_start = at.saturating_duration_since(self.start);
        let ms = u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX);
        let before = self.beaten_ms.fetch_max(ms, Relaxed);
        if u128::from(ms.saturating_sub(before)) >= self.dead_after.as_millis() {
            self.term.fetch_add(1, Relaxed);
        }
    }

    /// The term to note with what is taken in hand now.
    pub(super) fn term(&self) -> u64 {
        self.term.load(Relaxed)
    }

    /// Whether others have counted this consumer among the living ever since `term` was noted.
    pub(super) fn holds(&self, term: u64) -> bool {
        self.held(term, Instant::now())
    }

    /// The same for a moment that is just over.
    pub(super) fn held(&self, term: u64, at: Instant) -> bool {
        let beaten = self.start + Duration::from_millis(self.beaten_ms.load(Relaxed));
        term == self.term() && at.saturating_duration_since(beaten) < self.dead_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_consumer_without_a_confirmed_beat_may_not_send() {
        let fence = Fence::new(Duration::from_secs(15));
        let term = fence.term();
        tokio::time::advance(Duration::from_secs(14)).await;
        assert!(fence.holds(term));
        let sent = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!fence.holds(term));
        fence.beaten(sent);
        assert!(fence.holds(term), "a beat counts from when it was sent");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(!fence.holds(term));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_through_a_gap_is_not_sent_after_it() {
        let fence = Fence::new(Duration::from_secs(15));
        let term = fence.term();
        tokio::time::advance(Duration::from_secs(40)).await;
        fence.beaten(Instant::now());
        assert!(!fence.holds(term), "others may have claimed it");
        assert!(fence.holds(fence.term()), "what is read from now on is ours");
    }
}
