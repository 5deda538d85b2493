//! A limit of so many a second: the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"). One number for each limit
//! of a lane, no timer, and nothing to refill.

use std::time::Duration;

use tokio::time::Instant;

/// How early a request may come: finer than this a timer is not, and a burst within it is none to the endpoint.
const TOLERANCE: Duration = Duration::from_millis(20);

/// How much of its CPU time a webhook may take early. A limit on a share of the processor is one over time: calls take microseconds,
/// and to wait a timer's millisecond for the place of each would cost most of what the share is enough for.
const CPU_TOLERANCE: Duration = Duration::from_millis(100);

/// When the next one would come if all came in even steps.
#[derive(Debug, Default)]
pub(super) struct Rate {
    next: Option<Instant>,
}

impl Rate {
    /// Takes the next place in the line of an endpoint's requests, and says how long to wait for it.
    pub(super) fn reserve(&mut self, per_second: f64, now: Instant) -> Duration {
        self.take(per_second, |gap| TOLERANCE.min(gap), now)
    }

    /// Likewise in the line of a module's calls.
    pub(super) fn reserve_cpu(&mut self, per_second: f64, now: Instant) -> Duration {
        self.take(per_second, |gap| CPU_TOLERANCE.max(gap), now)
    }

    fn take(&mut self, per_second: f64, tolerance: fn(Duration) -> Duration, now: Instant) -> Duration {
        let gap = Duration::from_secs_f64(1.0 / per_second);
        let at = self.next.map_or(now, |next| next.max(now));
        self.next = Some(at + gap);
        (at - now).saturating_sub(tolerance(gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_come_in_even_steps_and_idle_time_earns_no_burst() {
        let mut rate = Rate::default();
        tokio::time::advance(Duration::from_secs(100)).await;
        let start = Instant::now();
        for n in 0..1000 {
            let wait = rate.reserve(50.0, Instant::now());
            tokio::time::advance(wait).await;
            let even = Duration::from_millis(20) * n;
            assert!(start.elapsed() + TOLERANCE >= even && start.elapsed() <= even, "{n}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_may_come_in_bursts_and_keep_to_their_share_over_time() {
        for (per_second, at_once) in [(10_000.0, 1001), (5.0, 2)] {
            let mut rate = Rate::default();
            let (start, mut early) = (Instant::now(), 0);
            for n in 0..3000 {
                let wait = rate.reserve_cpu(per_second, Instant::now());
                early += u32::from(wait.is_zero() && early == n);
                tokio::time::advance(wait).await;
            }
            assert_eq!(early, at_once, "at {per_second} a second");
            let share = Duration::from_secs_f64(2999.0 / per_second);
            assert!(start.elapsed() + CPU_TOLERANCE.max(share / 2999) >= share, "{:?}", start.elapsed());
        }
    }
}
