//! When the next attempt is due. Pure.

use std::time::Duration;

use crate::{config, model::Own};

/// Every delivery may take at least this long, however short its schedule.
const EXPIRY_MIN: Duration = Duration::from_secs(10);

/// Retry policy of a deployment.
#[derive(Clone, Debug)]
pub struct Policy {
    schedule: Vec<Duration>,
    jitter_percent: u32,
    timeout: Duration,
}

impl Policy {
    /// `timeout` is that of one attempt: a slow endpoint's attempts must fit before the expiry.
    pub fn new(settings: &config::Retry, timeout: Duration) -> Policy {
        Policy {
            schedule: settings.schedule.waits().to_vec(),
            jitter_percent: settings.jitter_percent,
            timeout,
        }
    }

    /// As one webhook has it.
    pub fn of<'a>(&'a self, own: &'a Own) -> Terms<'a> {
        Terms {
            waits: own.retry.as_deref().unwrap_or(&self.schedule),
            jitter_percent: self.jitter_percent,
            timeout: own.timeout.unwrap_or(self.timeout),
        }
    }

    /// How long after it was first scheduled a delivery is given up at the latest, by the deployment's defaults.
    pub fn expiry(&self) -> Duration {
        Terms { waits: &self.schedule, jitter_percent: self.jitter_percent, timeout: self.timeout }.expiry()
    }
}

/// The policy that holds for one webhook.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    waits: &'a [Duration],
    jitter_percent: u32,
    timeout: Duration,
}

impl Terms<'_> {
    /// The wait after attempt `attempt` (from 1) failed, or none when it was the last. `random` within 0..1
    /// stretches the wait by up to the jitter; an endpoint's own wish is kept if it is longer.
    pub fn wait(&self, attempt: i16, wish: Option<Duration>, random: f64) -> Option<Duration> {
        let index = usize::try_from(attempt).ok()?.checked_sub(1)?;
        let wait = *self.waits.get(index)?;
        let jitter = wait.mul_f64(f64::from(self.jitter_percent) / 100.0 * random.clamp(0.0, 1.0));
        Some((wait + jitter).max(wish.unwrap_or_default()))
    }

    /// How long after it was first scheduled a delivery is given up, whatever became of it: the schedule
    /// and a time-out for each attempt, and a fifth more.
    pub fn expiry(&self) -> Duration {
        let attempts = u32::try_from(self.waits.len()).unwrap_or(100) + 1;
        let whole: Duration = self.waits.iter().sum::<Duration>() + self.timeout * attempts;
        whole.mul_f64(1.2).max(EXPIRY_MIN)
    }

    /// As [`expiry`](Terms::expiry), for a delivery that no call is made for: a tenth more, so that with a second until the next
    /// look, and the look itself, it is over within a fifth more.
    pub fn patience(&self) -> Duration {
        self.waits.iter().sum::<Duration>().mul_f64(1.1).max(EXPIRY_MIN)
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
        let (policy, own) = (policy("200ms,1s"), Own::default());
        let policy = policy.of(&own);
        assert_eq!(policy.wait(1, None, 0.0), Some(Duration::from_millis(200)));
        assert_eq!(policy.wait(2, None, 0.0), Some(Duration::from_secs(1)));
        assert_eq!(policy.wait(3, None, 0.0), None);
        assert_eq!(policy.wait(0, None, 0.0), None);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(7)), 0.5), Some(Duration::from_secs(7)));
        assert_eq!(policy.expiry(), Duration::from_secs(10));
    }

    #[test]
    fn a_webhook_may_have_a_schedule_of_its_own() {
        let own = Own { retry: Some(vec![]), timeout: Some(Duration::from_secs(30)), ..Own::default() };
        let policy = policy("1s,1s");
        assert_eq!(policy.of(&own).wait(1, None, 0.0), None);
        assert_eq!(policy.of(&own).expiry(), Duration::from_secs(36));
    }

    proptest! {
        #[test]
        fn a_wait_is_stretched_by_the_jitter_and_no_more(attempt in 1i16..8, random in 0.0f64..=1.0) {
            let (policy, own) = (policy("5s,5m,30m,2h,5h,10h,10h"), Own::default());
            let policy = policy.of(&own);
            let plain = policy.wait(attempt, None, 0.0).unwrap();
            let wait = policy.wait(attempt, None, random).unwrap();
            prop_assert!(wait >= plain && wait <= plain.mul_f64(1.1001));
            prop_assert!(policy.expiry() > Duration::from_secs(5 + 300 + 1800 + 7200 + 18_000 + 72_000));
        }
    }
}
