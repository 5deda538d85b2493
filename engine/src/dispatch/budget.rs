//! What may be held at once, by count and by bytes. A permit lives from before a delivery is queued until
//! its outcome is recorded. The bytes of an event are counted once, however many webhooks it goes to.
//!
//! Lanes that have work in hand leave a reserve to those that have none: an endpoint that hangs fills what it may,
//! and the first delivery to another one still finds room.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Bytes are counted in these units, so that a semaphore's range is enough.
const UNIT: usize = 1024;

/// Of each bound, the part that only idle lanes may take: a quarter.
const RESERVE: usize = 4;

/// Two bounds, of deliveries and of their payloads' bytes.
#[derive(Clone)]
pub(super) struct Budget {
    count: Bound,
    bytes: Bound,
}

#[derive(Clone)]
struct Bound {
    free: Arc<Semaphore>,
    max: usize,
}

/// A part of a bound; given back when it is dropped.
pub(super) struct Share {
    of: Bound,
    n: u32,
}

/// The right to hold one delivery.
pub(super) struct Permit {
    _count: Share,
    _bytes: Arc<Share>,
}

impl Bound {
    fn new(max: usize) -> Bound {
        Bound { free: Arc::new(Semaphore::new(max)), max }
    }

    /// One that is larger than the whole bound takes all of it, rather than waiting for what can never be free.
    fn fit(&self, n: usize) -> u32 {
        u32::try_from(n.min(self.max)).unwrap_or(u32::MAX)
    }

    fn try_take(&self, n: usize, busy: bool) -> Option<Share> {
        let n = self.fit(n);
        let reserve = if busy { self.max / RESERVE } else { 0 };
        if self.free.available_permits() < n as usize + reserve {
            return None;
        }
        self.free.try_acquire_many(n).ok()?.forget();
        Some(Share { of: self.clone(), n })
    }

    async fn take(&self, n: usize) -> Share {
        let n = self.fit(n);
        self.free.acquire_many(n).await.expect("a budget is never closed").forget();
        Share { of: self.clone(), n }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.free.add_permits(self.n as usize);
    }
}

impl Budget {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Budget {
        Budget { count: Bound::new(count_max), bytes: Bound::new(bytes_max / UNIT) }
    }

    /// The bytes of one event, for all of its deliveries, if there is room now. `busy` says that the lane it is for
    /// has work in hand.
    pub(super) fn try_bytes(&self, bytes: usize, busy: bool) -> Option<Arc<Share>> {
        self.bytes.try_take(bytes.div_ceil(UNIT), busy).map(Arc::new)
    }

    /// A permit for one delivery of an event whose bytes are held, if there is room now.
    pub(super) fn try_permit(&self, bytes: &Arc<Share>, busy: bool) -> Option<Permit> {
        Some(Permit { _count: self.count.try_take(1, busy)?, _bytes: bytes.clone() })
    }

    /// Waits for bytes.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(super) async fn bytes(&self, bytes: usize) -> Arc<Share> {
        Arc::new(self.bytes.take(bytes.div_ceil(UNIT)).await)
    }

    /// Waits for a permit. As cancel safe as [`bytes`](Budget::bytes).
    pub(super) async fn permit(&self, bytes: &Arc<Share>) -> Permit {
        Permit { _count: self.count.take(1).await, _bytes: bytes.clone() }
    }

    /// Waits until there is room for anything at all, before more is read.
    pub(super) async fn room(&self) {
        drop(self.count.take(1).await);
        drop(self.bytes.take(1).await);
    }

    pub(super) fn is_full(&self) -> bool {
        self.free() == 0 || self.bytes.free.available_permits() == 0
    }

    pub(super) fn free(&self) -> usize {
        self.count.free.available_permits()
    }

    pub(super) fn held(&self) -> usize {
        self.count.max - self.free()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_bounds_hold_and_come_back() {
        let budget = Budget::new(2, 10 * UNIT);
        let nine = budget.try_bytes(9 * UNIT, false).unwrap();
        assert!(budget.try_bytes(2 * UNIT, false).is_none(), "bytes");
        let (one, two) = (budget.try_permit(&nine, false).unwrap(), budget.try_permit(&nine, false).unwrap());
        assert!(budget.try_permit(&nine, false).is_none() && budget.is_full(), "count");
        drop((one, two));
        assert!(budget.try_bytes(2 * UNIT, false).is_none(), "the event is still held");
        drop(nine);
        assert_eq!((budget.held(), budget.free()), (0, 2));
        let all = budget.bytes(500 * UNIT).await;
        assert!(budget.is_full(), "one that is too large takes all there is");
        drop(all);
        budget.room().await;
    }

    #[test]
    fn busy_lanes_leave_a_reserve_to_idle_ones() {
        let budget = Budget::new(8, 8 * UNIT);
        let held: Vec<_> = std::iter::from_fn(|| budget.try_bytes(UNIT, true)).collect();
        assert_eq!(held.len(), 6);
        assert!(budget.try_bytes(2 * UNIT, false).is_some(), "an idle lane finds room");
        let permits: Vec<_> = std::iter::from_fn(|| budget.try_permit(&held[0], true)).collect();
        assert_eq!(permits.len(), 6);
        assert!(budget.try_permit(&held[0], false).is_some());
    }
}
