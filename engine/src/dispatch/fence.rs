//! Whether this consumer may still send. A process that slept (SIGSTOP, a paused machine) may have been
//! declared dead and its work taken over: what it held unsent it must drop.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Remembers when the last beat was confirmed, on the monotonic clock, which goes on while a process is
/// stopped.
pub(super) struct Fence {
    start: Instant,
    beaten_ms: AtomicU64,
    dead_after: Duration,
}

impl Fence {
    pub(super) fn new(dead_after: Duration) -> Fence {
        Fence { start: Instant::now(), beaten_ms: AtomicU64::new(0), dead_after }
    }

    /// A beat that was sent at `at` has been confirmed.
    pub(super) fn beaten(&self, at: Instant) {
        let ms = at.saturating_duration_since(self.start).as_millis();
        self.beaten_ms.fetch_max(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether others still count this consumer among the living.
    pub(super) fn holds(&self) -> bool {
        let beaten = self.start + Duration::from_millis(self.beaten_ms.load(Relaxed));
        beaten.elapsed() < self.dead_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_consumer_without_a_confirmed_beat_may_not_send() {
        let fence = Fence::new(Duration::from_secs(15));
        tokio::time::advance(Duration::from_secs(14)).await;
        assert!(fence.holds());
        let sent = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!fence.holds());
        fence.beaten(sent);
        assert!(fence.holds(), "a beat counts from when it was sent");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(!fence.holds());
    }
}
