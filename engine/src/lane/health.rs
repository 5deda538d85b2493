//! What a lane has to tell of its endpoint since it was last asked: that it took a delivery, and that the last word was a
//! failure. Two bits, so that no delivery pays for it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::Outcome;

const SUCCEEDED: u8 = 1;
const FAILING: u8 = 2;

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub succeeded: bool,
    /// The last outcome was a failure.
    pub failing: bool,
}

#[derive(Debug, Default)]
pub(super) struct Telltale(AtomicU8);

impl Telltale {
    pub(super) fn note(&self, outcome: Outcome) {
        let before = self.0.load(Relaxed);
        match outcome {
            Outcome::Delivered if before != SUCCEEDED => self.0.store(SUCCEEDED, Relaxed),
            // An endpoint that refuses is well as far as its breaker cares, but nothing of what it is owed arrives.
            Outcome::Refused | Outcome::Failed | Outcome::TimedOut if before & FAILING == 0 => {
                self.0.fetch_or(FAILING, Relaxed);
            }
            _ => {}
        }
    }

    pub(super) fn take(&self) -> Health {
        let bits = self.0.swap(0, Relaxed);
        Health { succeeded: bits & SUCCEEDED != 0, failing: bits & FAILING != 0 }
    }

    /// Of what could not be told a success must not be lost; the next failure speaks for itself.
    pub(super) fn put_back(&self, health: Health) {
        if health.succeeded {
            self.0.fetch_or(SUCCEEDED, Relaxed);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_no_success_is_lost() {
        let telltale = Telltale::default();
        let told = |outcomes: &[Outcome]| {
            outcomes.iter().for_each(|outcome| telltale.note(*outcome));
            telltale.take()
        };
        let health = |succeeded, failing| Health { succeeded, failing };
        assert_eq!(told(&[]), health(false, false));
        assert_eq!(told(&[Outcome::Failed, Outcome::Unknown]), health(false, true));
        assert_eq!(told(&[Outcome::Refused, Outcome::Delivered]), health(true, false));
        assert_eq!(told(&[Outcome::Delivered, Outcome::TimedOut]), health(true, true));
        telltale.put_back(health(true, true));
        assert_eq!(told(&[]), health(true, false));
    }
}
