//! What may be held at once, by count and by bytes. A permit lives from before a delivery is queued until
//! its outcome is recorded.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Bytes are counted in these units, so that a semaphore's range is enough.
const UNIT: usize = 1024;

/// Two bounds that one permit takes from together.
#[derive(Clone)]
pub(super) struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    count: Semaphore,
    units: Semaphore,
    count_max: usize,
    units_max: u32,
}

/// The right to hold one delivery.
pub(super) struct Permit {
    budget: Budget,
    units: u32,
}

impl Budget {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Budget {
        Budget {
            inner: Arc::new(Inner {
                count: Semaphore::new(count_max),
                units: Semaphore::new(units(bytes_max) as usize),
                count_max,
                units_max: units(bytes_max),
            }),
        }
    }

    /// A permit for a delivery of `bytes`, if there is room now.
    pub(super) fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let units = self.units(bytes);
        let count = self.inner.count.try_acquire().ok()?;
        self.inner.units.try_acquire_many(units).ok()?.forget();
        count.forget();
        Some(self.permit(units))
    }

    /// A permit for a delivery of `bytes`, when there is room.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(super) async fn acquire(&self, bytes: usize) -> Permit {
        let units = self.units(bytes);
        let count = self.inner.count.acquire().await.expect("a budget is never closed");
        self.inner.units.acquire_many(units).await.expect("a budget is never closed").forget();
        count.forget();
        self.permit(units)
    }

    /// What a delivery takes. One that is larger than the whole bound takes all of it, rather than waiting for
    /// what can never be free.
    fn units(&self, bytes: usize) -> u32 {
        units(bytes).min(self.inner.units_max)
    }

    fn permit(&self, units: u32) -> Permit {
        Permit { budget: self.clone(), units }
    }

    /// Waits until there is room for anything at all, before more is read.
    pub(super) async fn room(&self) {
        drop(self.acquire(UNIT).await);
    }

    pub(super) fn is_full(&self) -> bool {
        self.free() == 0 || self.inner.units.available_permits() == 0
    }

    pub(super) fn free(&self) -> usize {
        self.inner.count.available_permits()
    }

    pub(super) fn held(&self) -> usize {
        self.inner.count_max - self.free()
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.inner.count.add_permits(1);
        self.budget.inner.units.add_permits(self.units as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_bounds_hold_and_come_back() {
        let budget = Budget::new(2, 10 * UNIT);
        let one = budget.try_acquire(9 * UNIT).unwrap();
        assert!(budget.try_acquire(2 * UNIT).is_none(), "bytes");
        assert_eq!(budget.held(), 1, "a refusal takes nothing");
        let two = budget.try_acquire(1).unwrap();
        assert!(budget.try_acquire(0).is_none() && budget.is_full(), "count");
        drop((one, two));
        assert_eq!((budget.held(), budget.free()), (0, 2));
        budget.acquire(10 * UNIT).await;
        let all = budget.acquire(500 * UNIT).await;
        assert!(budget.is_full(), "one that is too large takes all there is");
        drop(all);
    }
}
