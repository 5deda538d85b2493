//! How fast a lane drains, and so when a parked delivery should come back.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of the newest sample, as TCP smooths its round-trip time (RFC 6298: 1/8).
const WEIGHT: f64 = 0.125;

/// Longest a delivery is parked at once. A lane that is slower than its estimate parks it again.
const PARK_MAX: Duration = Duration::from_secs(600);

/// Shortest: sooner would only find the lane as full.
const PARK_MIN: Duration = Duration::from_millis(100);

/// The observed pace of a lane and the time up to which its parked deliveries reach.
#[derive(Debug)]
pub(super) struct Pace {
    workers: usize,
    /// Smoothed time of one delivery in seconds.
    took: f64,
    tail: Option<Instant>,
}

impl Pace {
    pub(super) fn new(workers: usize) -> Pace {
        Pace { workers, took: 0.01, tail: None }
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.took += WEIGHT * (time.as_secs_f64() - self.took);
    }

    /// For how long to park one more delivery: behind what is queued and behind what was parked before.
    pub(super) fn park(&mut self, queued: usize, now: Instant) -> Duration {
        let gap = self.took / self.workers as f64;
        let drained = now + Duration::from_secs_f64((gap * queued as f64).min(PARK_MAX.as_secs_f64()));
        // A lane with an empty queue has caught up, whatever it was thought to take.
        let before = self.tail.filter(|_| queued > 0).map_or(drained, |tail| tail.max(drained));
        let tail = (before + Duration::from_secs_f64(gap)).min(now + PARK_MAX);
        self.tail = Some(tail);
        (tail - now).max(PARK_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parked_deliveries_come_back_one_after_the_other() {
        let mut pace = Pace::new(4);
        for _ in 0..100 {
            pace.took(Duration::from_secs(2));
        }
        let now = Instant::now();
        let first = pace.park(10, now);
        let second = pace.park(10, now);
        assert!(first > Duration::from_secs(5) && first < Duration::from_secs(6), "{first:?}");
        let gap = (second - first).as_millis();
        assert!((450..=500).contains(&gap), "{gap}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_parked_for_ever() {
        let mut pace = Pace::new(1);
        pace.took(Duration::from_secs(1000));
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(pace.park(1_000_000, now) <= PARK_MAX);
        }
    }
}
