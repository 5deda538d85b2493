//! When the next attempt is due. Pure.

use std::time::Duration;

use crate::config::{self, value::Schedule};

/// Every delivery may take at least this long, however short its schedule.
const EXPIRY_MIN: Duration = Duration::from_secs(10);

/// Retry policy of a deployment.
#[derive(Clone, Debug)]
pub struct Policy {
    schedule: Schedule,
    jitter_percent: u32,
    expiry: Duration,
}

impl Policy {
    /// `timeout` is that of one attempt: a slow endpoint's attempts must fit before the expiry.
    pub fn new(settings: &config::Retry, timeout: Duration) -> Policy {
        let waits = settings.schedule.waits();
        let attempts = u32::try_from(waits.len()).unwrap_or(100) + 1;
        let whole: Duration = waits.iter().sum::<Duration>() + timeout * attempts;
        Policy {
            schedule: settings.schedule.clone(),
            jitter_percent: settings.jitter_percent,
            expiry: whole.mul_f64(1.2).max(EXPIRY_MIN),
        }
    }

    /// The wait after attempt `attempt` (from 1) failed, or none when it was the last. `random` within 0..1
    /// stretches the wait by up to the jitter; an endpoint's own wish is kept if it is longer.
    pub fn wait(&self, attempt: i16, wish: Option<Duration>, random: f64) -> Option<Duration> {
        let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
        let wait = *self.schedule.waits().get(index)?;
        let jitter = wait.mul_f64(f64::from(self.jitter_percent) / 100.0 * random.clamp(0.0, 1.0));
        Some((wait + jitter).max(wish.unwrap_or_default()))
    }

    /// How long after it was first scheduled a delivery is given up, whatever became of it: the schedule
    /// and a time-out for each attempt, and a fifth more.
    pub fn expiry(&self) -> Duration {
        self.expiry
    }
}

/// A number within 0..1 from the system's randomness; jitter needs no better.
pub fn random() -> f64 {
    let mut bytes = [0u8; 4];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(schedule: &str) -> Policy {
        let settings = config::Retry { schedule: schedule.parse().unwrap(), ..config::Retry::default() };
        Policy::new(&settings, Duration::from_secs(1))
    }

    #[test]
    fn there_is_one_attempt_more_than_waits() {
        let policy = policy("200ms,1s");
        assert_eq!(policy.wait(1, None, 0.0), Some(Duration::from_millis(200)));
        assert_eq!(policy.wait(2, None, 0.0), Some(Duration::from_secs(1)));
        assert_eq!(policy.wait(3, None, 0.0), None);
        assert_eq!(policy.wait(0, None, 0.0), None);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(7)), 0.5), Some(Duration::from_secs(7)));
        assert_eq!(policy.expiry(), Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn a_wait_is_stretched_by_the_jitter_and_no_more(attempt in 1i16..8, random in 0.0f64..=1.0) {
            let policy = policy("5s,5m,30m,2h,5h,10h,10h");
            let plain = policy.wait(attempt, None, 0.0).unwrap();
            let wait = policy.wait(attempt, None, random).unwrap();
            prop_assert!(wait >= plain && wait <= plain.mul_f64(1.1001));
            prop_assert!(policy.expiry() > Duration::from_secs(5 + 300 + 1800 + 7200 + 18_000 + 72_000));
        }
    }
}
