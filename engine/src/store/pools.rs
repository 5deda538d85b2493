//! The pools of one process, to see how much of them is in use.

use std::sync::{Arc, Mutex, PoisonError};

use deadpool_postgres::{Pool, WeakPool};

/// All pools that were made for one address and are still there.
#[derive(Clone, Default)]
pub struct Pools(Arc<Mutex<Vec<WeakPool>>>);

/// Connections of all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    pub used: usize,
    pub idle: usize,
    /// Tasks that wait for one.
    pub waiting: usize,
}

impl Pools {
    /// Those that are gone make room.
    pub(super) fn add(&self, pool: &Pool) {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.upgrade().is_some());
        pools.push(pool.weak());
    }

    pub fn in_use(&self) -> InUse {
        let mut sum = InUse::default();
        let pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for pool in pools.iter().filter_map(WeakPool::upgrade) {
            let status = pool.status();
            sum.used += status.size.saturating_sub(status.available);
            sum.idle += status.available;
            sum.waiting += status.waiting;
        }
        sum
    }
}
