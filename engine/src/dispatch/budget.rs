//! What may be held at once, by count and by bytes. A permit lives from before a delivery is queued until
//! its outcome is recorded. The bytes of an event are counted once, however many webhooks it goes to.
//!
//! There are two pools. Lanes that are slow draw from the slow one alone, a quarter: however many endpoints hang at once,
//! those that do not have the rest. In the fast pool lanes that have work in hand leave a reserve to those that have none.
//! And once half of a pool is taken, no account may have more than a quarter of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::model::{AccountId, IdMap};

/// Bytes are counted in these units, so that a semaphore's range is enough.
const UNIT: usize = 1024;

/// Of each bound, the part that only idle lanes may take: a quarter.
const RESERVE: usize = 4;

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

/// The slow pool's part of all.
const SLOW: usize = 4;

/// One account's part of a pool that is half taken.
const ACCOUNT: usize = 4;

/// All that may be held.
#[derive(Clone)]
pub(super) struct Budget {
    fast: Arc<Pool>,
    slow: Arc<Pool>,
}

/// Two bounds, of deliveries and of their payloads' bytes, and who has what of the first.
struct Pool {
    count: Bound,
    bytes: Bound,
    accounts: Mutex<IdMap<AccountId, usize>>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) account: AccountId,
    /// Whether its lane has work in hand, and whether it is slow.
    pub(super) busy: bool,
    pub(super) slow: bool,
}

/// The bytes of one event, held once a pool for all of its deliveries.
#[derive(Default)]
pub(super) struct Bytes {
    fast: Option<Arc<Share>>,
    slow: Option<Arc<Share>>,
}

/// Why there is no permit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no room at all: it is worth waiting for.
    Full,
    /// There is none for those who ask: others come first.
    NotForYou,
}

/// The right to hold one delivery.
pub(super) struct Permit {
    of: Arc<Pool>,
    account: AccountId,
    _count: Share,
    bytes: Arc<Share>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut accounts = self.of.accounts();
        if let Some(held) = accounts.get_mut(&self.account) {
            *held -= 1;
            if *held == 0 {
                accounts.remove(&self.account);
            }
        }
    }
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

impl Pool {
    fn new(count_max: usize, bytes_max: usize) -> Arc<Pool> {
        Arc::new(Pool {
            count: Bound::new(count_max.max(1)),
            bytes: Bound::new((bytes_max / UNIT).max(1)),
            accounts: Mutex::default(),
        })
    }

    fn accounts(&self) -> MutexGuard<'_, IdMap<AccountId, usize>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the account has all it may have.
    fn is_hog(&self, account: AccountId) -> bool {
        let max = self.count.max;
        self.count.free.available_permits() < max / 2
            && self.accounts().get(&account).is_some_and(|held| *held >= max.div_ceil(ACCOUNT))
    }

    fn left(&self, account: AccountId, busy: bool) -> usize {
        let free = |bound: &Bound| {
            let reserve = if busy { bound.max / RESERVE } else { 0 };
            bound.free.available_permits().saturating_sub(reserve)
        };
        // As long as the pool is not half taken, or the account has less than its part of it.
        let max = self.count.max;
        let until_half = self.count.free.available_permits().saturating_sub((max / 2).saturating_sub(1));
        let held = self.accounts().get(&account).copied().unwrap_or_default();
        let own = until_half.max(max.div_ceil(ACCOUNT).saturating_sub(held));
        free(&self.count).min(free(&self.bytes)).min(own)
    }

    fn permit(self: &Arc<Pool>, account: AccountId, count: Share, bytes: Arc<Share>) -> Permit {
        *self.accounts().entry(account).or_default() += 1;
        Permit { of: self.clone(), account, _count: count, bytes }
    }

    fn try_permit(
        self: &Arc<Pool>,
        account: AccountId,
        busy: bool,
        size: usize,
        held: &mut Option<Arc<Share>>,
    ) -> Option<Permit> {
        if held.is_none() {
            *held = self.bytes.try_take(size.div_ceil(UNIT), busy).map(Arc::new);
        }
        let bytes = held.as_ref()?;
        let count = self.count.try_take(1, busy)?;
        Some(self.permit(account, count, bytes.clone()))
    }
}

impl Budget {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Budget {
        let (slow_count, slow_bytes) = (count_max / SLOW, bytes_max / SLOW);
        Budget {
            fast: Pool::new(count_max - slow_count, bytes_max - slow_bytes),
            slow: Pool::new(slow_count, slow_bytes),
        }
    }

    /// A permit for one delivery of an event of `size` bytes, if there is room now.
    pub(super) fn try_permit(&self, ask: Ask, size: usize, bytes: &mut Bytes) -> Result<Permit, Refusal> {
        let Ask { account, busy, slow } = ask;
        let pool = if slow { &self.slow } else { &self.fast };
        if pool.is_hog(account) {
            return Err(Refusal::NotForYou);
        }
        if slow {
            return pool.try_permit(account, false, size, &mut bytes.slow).ok_or(Refusal::NotForYou);
        }
        let refusal = if busy { Refusal::NotForYou } else { Refusal::Full };
        pool.try_permit(account, busy, size, &mut bytes.fast).ok_or(refusal)
    }

    /// How many more small deliveries would get a permit now.
    pub(super) fn left(&self, ask: Ask) -> usize {
        let pool = if ask.slow { &self.slow } else { &self.fast };
        pool.left(ask.account, ask.busy && !ask.slow)
    }

    /// Waits for a permit of the fast pool.
    ///
    /// # Cancel safety
    /// A dropped call takes nothing.
    pub(super) async fn permit(&self, account: AccountId, size: usize, bytes: &mut Bytes) -> Permit {
        let bytes = match &bytes.fast {
            Some(bytes) => bytes.clone(),
            None => {
                let share = Arc::new(self.fast.bytes.take(size.div_ceil(UNIT)).await);
                bytes.fast.insert(share).clone()
            }
        };
        let count = self.fast.count.take(1).await;
        self.fast.permit(account, count, bytes)
    }

    /// Moves what turned out to be slow to the slow pool, if that has room.
    pub(super) fn slow_down(&self, permit: Permit) -> Permit {
        if Arc::ptr_eq(&permit.of, &self.slow) {
            return permit;
        }
        let units = permit.bytes.n as usize;
        let moved = self.slow.try_permit(permit.account, false, units * UNIT, &mut None);
        moved.unwrap_or(permit)
    }

    /// Waits until there is room for anything at all, before more is read.
    pub(super) async fn room(&self) {
        drop(self.fast.count.take(1).await);
        drop(self.fast.bytes.take(1).await);
    }

    pub(super) fn is_full(&self) -> bool {
        self.free() == 0 || self.fast.bytes.free.available_permits() == 0
    }

    /// Of the fast pool.
    pub(super) fn free(&self) -> usize {
        self.fast.count.free.available_permits()
    }

    /// Of both.
    pub(super) fn held(&self) -> usize {
        [&self.fast, &self.slow].iter().map(|p| p.count.max - p.count.free.available_permits()).sum()
    }

    pub(super) fn held_slow(&self) -> usize {
        self.slow.count.max - self.slow.count.free.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(account: i64, busy: bool, slow: bool) -> Ask {
        Ask { account: AccountId(account), busy, slow }
    }

    /// As many permits as there are to be had, an event each.
    fn all(budget: &Budget, ask: Ask) -> Vec<Permit> {
        let left = budget.left(ask);
        let permits: Vec<Permit> =
            std::iter::from_fn(|| budget.try_permit(ask, UNIT, &mut Bytes::default()).ok()).collect();
        assert_eq!(permits.len(), left);
        permits
    }

    #[tokio::test]
    async fn both_bounds_hold_and_come_back() {
        let budget = Budget::new(4, 16 * UNIT);
        let mut bytes = Bytes::default();
        let held: Vec<Permit> =
            (0..3).map(|n| budget.try_permit(ask(n, false, false), UNIT, &mut bytes).unwrap()).collect();
        let refused = budget.try_permit(ask(4, false, false), UNIT, &mut bytes);
        assert!(refused.err() == Some(Refusal::Full) && budget.is_full(), "count");
        drop((held, bytes));
        let mut large = Bytes::default();
        let one = budget.try_permit(ask(1, false, false), 12 * UNIT, &mut large).unwrap();
        assert!(budget.try_permit(ask(2, false, false), UNIT, &mut Bytes::default()).is_err(), "bytes");
        drop((one, large));
        assert_eq!((budget.held(), budget.free()), (0, 3));
        let (mut bytes, account) = (Bytes::default(), AccountId(1));
        let whole = budget.permit(account, 500 * UNIT, &mut bytes).await;
        assert!(budget.is_full(), "one that is too large takes all there is");
        drop((whole, bytes));
        budget.room().await;
    }

    #[test]
    fn slow_lanes_have_a_pool_of_their_own() {
        let budget = Budget::new(40, 1000 * UNIT);
        let slow: Vec<Permit> = (0..20).flat_map(|n| all(&budget, ask(n, true, true))).collect();
        assert_eq!((slow.len(), budget.held_slow(), budget.free()), (10, 10, 30));
        let fast = budget.try_permit(ask(50, false, false), UNIT, &mut Bytes::default()).unwrap();
        let fast = budget.slow_down(fast);
        assert_eq!(budget.free(), 29, "no room there: it stays where it is");
        drop(slow);
        let moved = budget.slow_down(fast);
        assert_eq!((budget.free(), budget.held_slow()), (30, 1));
        drop(moved);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn busy_lanes_leave_a_reserve_and_an_account_its_share_to_others() {
        let budget = Budget::new(64, 1000 * UNIT);
        let hog = all(&budget, ask(1, true, false));
        assert_eq!(hog.len(), 25, "until half is taken, and then no more than a quarter");
        let other = all(&budget, ask(2, true, false));
        assert_eq!(hog.len() + other.len(), 36, "a busy lane leaves a quarter");
        let third = budget.try_permit(ask(3, false, false), UNIT, &mut Bytes::default());
        assert!(third.is_ok(), "an idle one finds room");
    }
}
