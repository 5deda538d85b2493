//! How fast a lane drains, and so when a parked delivery should come back.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of the newest sample, as TCP smooths its round-trip time (RFC 6298: 1/8).
const WEIGHT: f64 = 0.125;

/// Longest a delivery is parked at once; what would take longer waits for the lane's word.
const PARK_MAX: Duration = Duration::from_secs(600);

/// Shortest: sooner would only find the lane as full.
const PARK_MIN: Duration = Duration::from_millis(100);

/// The observed pace of a lane and the time up to which its parked deliveries reach.
#[derive(Debug)]
pub(super) struct Pace {
    /// Smoothed time of one delivery in seconds.
    took: f64,
    tail: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { took: 0.01, tail: None }
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.took += WEIGHT * (time.as_secs_f64() - self.took);
    }

    /// Smoothed time of one delivery.
    pub(super) fn smoothed(&self) -> Duration {
        Duration::from_secs_f64(self.took)
    }

    /// Seconds from one delivery to the next, with so many in flight and at most so many a second.
    pub(super) fn gap(&self, in_flight: usize, per_second: Option<f64>) -> f64 {
        (self.took / in_flight as f64).max(per_second.map_or(0.0, |rate| 1.0 / rate))
    }

    /// For how long to park one more delivery: behind what is queued and behind what was parked before.
    pub(super) fn park(&mut self, gap: f64, queued: usize, now: Instant) -> Duration {
        let drained = now + Duration::from_secs_f64((gap * queued as f64).min(PARK_MAX.as_secs_f64()));
        // A lane with an empty queue has caught up, whatever it was thought to take.
        let before = self.tail.filter(|_| queued > 0).map_or(drained, |tail| tail.max(drained));
        let tail = (before + Duration::from_secs_f64(gap.min(PARK_MAX.as_secs_f64()))).min(now + PARK_MAX);
        self.tail = Some(tail);
        (tail - now).max(PARK_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parked_deliveries_come_back_one_after_the_other() {
        let mut pace = Pace::new();
        for _ in 0..100 {
            pace.took(Duration::from_secs(2));
        }
        let now = Instant::now();
        let gap = pace.gap(4, None);
        let first = pace.park(gap, 10, now);
        let second = pace.park(gap, 10, now);
        assert!(first > Duration::from_secs(5) && first < Duration::from_secs(6), "{first:?}");
        let gap = (second - first).as_millis();
        assert!((450..=500).contains(&gap), "{gap}");
    }

    #[test]
    fn a_rate_limit_sets_the_pace_of_a_fast_endpoint() {
        assert!((Pace::new().gap(64, Some(10.0)) - 0.1).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_parked_for_ever() {
        let mut pace = Pace::new();
        pace.took(Duration::from_secs(1000));
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(pace.park(pace.gap(1, None), 1_000_000, now) <= PARK_MAX);
        }
    }
}
