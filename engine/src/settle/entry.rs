//! An entry that is open: read, and not yet acked, because some of its deliveries are not settled.

use std::sync::atomic::{
    AtomicUsize,
    Ordering::{AcqRel, Acquire},
};

use tokio::time::Instant;

use crate::store::settle::Origin;

/// Counts what keeps an entry from being acked. It begins with one for the fan-out itself, so that an entry
/// is not acked before all of its deliveries are known.
#[derive(Debug)]
pub struct Open {
    pub id: String,
    pub first: i64,
    /// Whether it was checked.
    pub origin: Origin,
    /// The fence's term when it was read, and when that was.
    pub term: u64,
    pub since: Instant,
    left: AtomicUsize,
}

impl Open {
    pub fn new(id: String, first: i64, term: u64, checked: bool) -> Open {
        let origin = if checked { Origin::Check } else { Origin::Entry };
        Open { id, first, origin, term, since: Instant::now(), left: AtomicUsize::new(1) }
    }

    /// One delivery more.
    pub fn add(&self) {
        self.left.fetch_add(1, AcqRel);
    }

    /// Whether nothing is left but who counts.
    pub fn is_alone(&self) -> bool {
        self.left.load(Acquire) == 1
    }

    /// One less; true for the last.
    pub(super) fn release(&self) -> bool {
        self.left.fetch_sub(1, AcqRel) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_release_closes() {
        let open = Open::new("1-0".into(), 1, 1, false);
        open.add();
        assert!(!open.release());
        assert!(open.release());
    }
}
