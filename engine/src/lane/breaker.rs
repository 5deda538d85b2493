//! The circuit breaker of a lane: after enough failures in a row nothing is sent but one probe at a time, at growing
//! distances, until one succeeds (Nygard, "Release It!", "Circuit Breaker").

use std::time::Duration;

use tokio::time::Instant;

use super::Outcome;

/// What a time-out counts, in failures: it is the failure that costs most, and the rarest by accident.
const TIMED_OUT: u32 = 4;

/// When breakers open, and how they probe.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Failures in a row that open it; 0 switches it off.
    pub failures: u32,
    /// Until the first probe; each later one takes twice as long.
    pub probe_first: Duration,
    pub probe_max: Duration,
}

/// What an outcome did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Opened,
    /// A probe failed: it is open for longer.
    StillOpen,
    Closed,
}

#[derive(Debug)]
pub(super) struct Breaker {
    settings: Settings,
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    wait: Duration,
    probe_at: Instant,
    probing: bool,
}

impl Breaker {
    pub(super) fn new(settings: Settings) -> Breaker {
        Breaker { settings, failures: 0, open: None }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn note(&mut self, outcome: Outcome, now: Instant) -> Option<Change> {
        let weight = match outcome {
            Outcome::Delivered | Outcome::Refused => {
                self.failures = 0;
                return self.open.take().map(|_| Change::Closed);
            }
            Outcome::Failed => 1,
            Outcome::TimedOut => TIMED_OUT,
            Outcome::Withheld | Outcome::Unknown => {
                // A probe that was not sent says nothing; the next one may go.
                if let Some(open) = &mut self.open {
                    open.probing = false;
                }
                return None;
            }
        };
        if let Some(open) = &mut self.open {
            // What was in flight when it opened is no probe.
            if !std::mem::take(&mut open.probing) {
                return None;
            }
            open.wait = (open.wait * 2).min(self.settings.probe_max);
            open.probe_at = now + open.wait;
            return Some(Change::StillOpen);
        }
        self.failures = self.failures.saturating_add(weight);
        if self.settings.failures == 0 || self.failures < self.settings.failures {
            return None;
        }
        self.open_until_probed(now);
        Some(Change::Opened)
    }

    /// Opens it, as another dispatcher has.
    pub(super) fn open_until_probed(&mut self, now: Instant) {
        if self.open.is_none() {
            let wait = self.settings.probe_first;
            self.open = Some(Open { wait, probe_at: now + wait, probing: false });
        }
    }

    /// Brings the next probe forward where it would come too late.
    pub(super) fn probe_within(&mut self, max: Duration, now: Instant) {
        if let Some(open) = &mut self.open {
            open.wait = open.wait.min(max);
            open.probe_at = open.probe_at.min(now + max);
        }
    }

    /// Whether it is time for a probe; then this is it, until its outcome is noted.
    pub(super) fn take_probe(&mut self, now: Instant) -> bool {
        match &mut self.open {
            Some(open) if !open.probing && now >= open.probe_at => {
                open.probing = true;
                true
            }
            _ => false,
        }
    }

    /// No probe was sent, because another dispatcher's is under way or nothing is owed: asks again later.
    pub(super) fn put_off(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.probing = false;
            open.probe_at = now + open.wait;
        }
    }

    /// Another dispatcher's probe succeeded.
    pub(super) fn close(&mut self) {
        self.failures = 0;
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings =
        Settings { failures: 8, probe_first: Duration::from_secs(1), probe_max: Duration::from_secs(3) };

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_probes_at_growing_distances() {
        let mut breaker = Breaker::new(SETTINGS);
        for _ in 0..7 {
            assert_eq!(breaker.note(Outcome::Failed, Instant::now()), None);
        }
        assert_eq!(breaker.note(Outcome::Delivered, Instant::now()), None, "a success begins anew");
        assert_eq!(breaker.note(Outcome::TimedOut, Instant::now()), None);
        assert_eq!(breaker.note(Outcome::TimedOut, Instant::now()), Some(Change::Opened));
        assert_eq!(breaker.note(Outcome::Failed, Instant::now()), None, "it was in flight before");
        for seconds in [1, 2, 3, 3] {
            assert!(!breaker.take_probe(Instant::now()));
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert!(breaker.take_probe(Instant::now()));
            assert!(!breaker.take_probe(Instant::now()), "one at a time");
            assert_eq!(breaker.note(Outcome::Failed, Instant::now()), Some(Change::StillOpen));
        }
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(breaker.take_probe(Instant::now()));
        assert_eq!(breaker.note(Outcome::Refused, Instant::now()), Some(Change::Closed));
        assert!(!breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn zero_switches_it_off() {
        let mut breaker = Breaker::new(Settings { failures: 0, ..SETTINGS });
        for _ in 0..100 {
            assert_eq!(breaker.note(Outcome::TimedOut, Instant::now()), None);
        }
    }
}
