//! A limit on requests a second: the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"). One number a
//! lane, no timer, and nothing to refill.

use std::time::Duration;

use tokio::time::Instant;

/// How early a request may come: finer than this a timer is not, and a burst within it is none to the endpoint.
const TOLERANCE: Duration = Duration::from_millis(20);

/// When the next request would come if all came in even steps.
#[derive(Debug, Default)]
pub(super) struct Rate {
    next: Option<Instant>,
}

impl Rate {
    /// Takes the next place in the line and says how long to wait for it.
    pub(super) fn reserve(&mut self, per_second: f64, now: Instant) -> Duration {
        let gap = Duration::from_secs_f64(1.0 / per_second);
        let at = self.next.map_or(now, |next| next.max(now));
        self.next = Some(at + gap);
        (at - now).saturating_sub(TOLERANCE.min(gap))
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
}
