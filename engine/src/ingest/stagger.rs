//! When another commit starts beside the one in flight.
//!
//! Where Postgres is far, or its disk slow, every commit takes long, and one at a time leaves it idle. Where the processors are busy
//! most commits take as long, and more of them at a time only make the batches smaller and each event dearer (ADR 0004). What tells
//! the two apart is the quickest commit of late: a queue for the processor lets some through at once, a distance none. (BBR
//! finds a path's delay in the same way: Cardwell et al., 2016.)

use std::time::Duration;

/// What an event of 300 bytes adds to a commit, with room: Postgres takes 4 to 6 us of processor time for it, and the
/// same cores may be answering the batch before.
const PER_EVENT: Duration = Duration::from_micros(8);

/// Commits of which the quickest counts: of so many at least, and of twice as many at most.
const WINDOW: u32 = 64;

/// A commit at a near Postgres is waited for this many times longer: it may have hit a stall that others would not.
const PATIENCE: u32 = 16;

/// What commits have taken of late, besides what their events explain.
#[derive(Debug)]
pub(super) struct Stagger {
    /// Longer than this is slow.
    slow: Duration,
    /// The least of the window before, and of this one.
    before: Duration,
    least: Duration,
    seen: u32,
}

impl Stagger {
    pub(super) fn new(slow: Duration) -> Stagger {
        Stagger { slow, before: Duration::MAX, least: Duration::MAX, seen: 0 }
    }

    /// A commit of so many events took so long.
    pub(super) fn took(&mut self, time: Duration, events: usize) {
        self.least = self.least.min(time.saturating_sub(explained(events)));
        self.seen += 1;
        if self.seen == WINDOW {
            (self.before, self.least, self.seen) = (self.least, Duration::MAX, 0);
        }
    }

    /// How long a commit of so many events is waited for before another starts.
    pub(super) fn wait(&self, events: usize) -> Duration {
        let least = self.before.min(self.least);
        let far = least > self.slow && least < Duration::MAX;
        let patience = if far { self.slow } else { self.slow * PATIENCE };
        patience + explained(events)
    }
}

fn explained(events: usize) -> Duration {
    PER_EVENT.saturating_mul(u32::try_from(events).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(2);
    const NEAR: Duration = Duration::from_millis(32);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_busy_machine_is_not_a_far_postgres() {
        let mut stagger = Stagger::new(SLOW);
        assert_eq!(stagger.wait(0), NEAR, "nothing is known yet");
        for n in 0..1000 {
            stagger.took(if n % 50 == 0 { ms(1) } else { ms(7) }, 0);
            assert_eq!(stagger.wait(0), NEAR);
        }
    }

    #[test]
    fn a_far_postgres_is_found_and_forgotten() {
        let mut stagger = Stagger::new(SLOW);
        stagger.took(ms(5), 0);
        assert_eq!(stagger.wait(0), SLOW, "the first commit says so");
        stagger.took(ms(1), 0);
        assert_eq!(stagger.wait(0), NEAR);
        for _ in 0..2 * WINDOW {
            stagger.took(ms(5), 0);
        }
        assert_eq!(stagger.wait(0), SLOW, "it has moved");
    }

    #[test]
    fn large_commits_may_take_longer() {
        let mut stagger = Stagger::new(SLOW);
        stagger.took(ms(9), 1000);
        assert_eq!(stagger.wait(1000), NEAR + ms(8), "8 of the 9 ms are its events'");
        assert_eq!(stagger.wait(0), NEAR);
    }
}
