//! What waits for a group commit: bounded by events and bytes, refusing at once when full, and fair between
//! accounts.
//!
//! Each account has a line of its own, and the commit loop takes from them in turn, so that an account's wait does
//! not depend on how much another has sent. When the queue is full, the one account that holds more than half of it
//! makes room: its newest event is refused, not the newcomer's.
//!
//! A queue that is long for a moment absorbs a burst. One that stays long (Nichols and Jacobson's "standing queue",
//! CoDel, 2012) only adds its length to everybody's latency: then the bound shrinks to
//! [`Bounds::standing_events_max`] until nothing has been refused for a while.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::Error;
use crate::{metrics::Metrics, model::AccountId};

/// Events taken from one account before it is the next one's turn.
const TURN: usize = 32;

/// Emptied lines kept for the next account that comes.
const SPARE_MAX: usize = 1024;

/// A queue that no batch has emptied for so long is standing.
const STANDING_AFTER: Duration = Duration::from_millis(100);

/// It counts as standing until nothing has been refused for so long.
const STANDING_FOR: Duration = Duration::from_secs(1);

/// What the queue holds: something that belongs to an account and can be refused.
pub trait Item {
    fn account(&self) -> AccountId;
    fn events(&self) -> usize;
    fn bytes(&self) -> usize;
    fn refuse(self, error: Error);
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub events_max: usize,
    pub bytes_max: usize,
    /// The bound on events while the queue is standing.
    pub standing_events_max: usize,
}

/// The way into a commit loop, shared by all connections.
pub struct Queue<T> {
    inner: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue { inner: self.inner.clone() }
    }
}

struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    filled: Notify,
    metrics: Arc<Metrics>,
}

/// What an account, or all of them, has waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    events: usize,
    bytes: usize,
}

impl Held {
    fn of(item: &impl Item) -> Held {
        Held { events: item.events(), bytes: item.bytes() }
    }

    fn plus(self, other: Held) -> Held {
        Held { events: self.events + other.events, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Held) -> Held {
        Held { events: self.events - other.events, bytes: self.bytes - other.bytes }
    }

    fn half(self) -> Held {
        Held { events: self.events / 2, bytes: self.bytes / 2 }
    }

    fn within(self, bound: Held) -> bool {
        self.events <= bound.events && self.bytes <= bound.bytes
    }
}

struct Waiting<T> {
    bounds: Bounds,
    lines: HashMap<AccountId, Line<T>>,
    /// Accounts with something waiting, each once, in the order of their turns.
    turns: VecDeque<AccountId>,
    /// Events that the account at the front may still take in this turn.
    left: usize,
    total: Held,
    /// The one account that may hold more than half, while it does.
    hog: Option<AccountId>,
    spare: Vec<VecDeque<T>>,
    closed: bool,
    standing: bool,
    refused: bool,
    long_since: Option<Instant>,
    standing_until: Option<Instant>,
}

struct Line<T> {
    items: VecDeque<T>,
    held: Held,
}

impl<T: Item> Queue<T> {
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Queue<T> {
        let waiting = Waiting {
            bounds,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            left: TURN,
            total: Held::default(),
            hog: None,
            spare: Vec::new(),
            closed: false,
            standing: false,
            refused: false,
            long_since: None,
            standing_until: None,
        };
        let inner = Shared { waiting: Mutex::new(waiting), filled: Notify::new(), metrics };
        Queue { inner: Arc::new(inner) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an item wait, or says at once why not.
    ///
    /// # Errors
    /// [`Error::Share`] when its account holds half of the queue while others wait, [`Error::Full`] when there is no
    /// room, [`Error::Stopping`] once closed.
    pub(super) fn push(&self, item: T) -> Result<(), Error> {
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err(Error::Stopping);
        }
        let evicted = match waiting.make_room(&item) {
            Ok(evicted) => evicted,
            Err(error) => {
                waiting.refused = true;
                drop(waiting);
                self.count(&error, item.events());
                return Err(error);
            }
        };
        waiting.add(item);
        drop(waiting);
        self.inner.filled.notify_one();
        for item in evicted {
            self.count(&Error::Share, item.events());
            item.refuse(Error::Share);
        }
        Ok(())
    }

    fn count(&self, error: &Error, events: usize) {
        let metrics = &self.inner.metrics.ingest;
        match error {
            Error::Share => metrics.share_full.increment(events as u64),
            _ => metrics.queue_full.increment(events as u64),
        }
    }

    /// Takes the next item: accounts in turn, each account's own in the order they came.
    pub(super) fn pop(&self) -> Option<T> {
        self.waiting().take()
    }

    /// Says that a batch has been taken, so that the queue can judge whether it is standing.
    pub(super) fn taken(&self, now: Instant) {
        self.waiting().judge(now);
    }

    /// Events waiting.
    pub(super) fn len(&self) -> usize {
        self.waiting().total.events
    }

    /// Waits until something may be there.
    pub(super) async fn filled(&self) {
        self.inner.filled.notified().await;
    }

    /// Takes nothing more; the commit loop ends once the queue is empty.
    pub fn close(&self) {
        self.waiting().closed = true;
        self.inner.filled.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.waiting().closed
    }
}

impl<T: Item> Waiting<T> {
    /// The bound that no account may hold more than half of while others wait.
    fn bound(&self) -> Held {
        let Bounds { events_max, bytes_max, standing_events_max } = self.bounds;
        let events = if self.standing { standing_events_max.min(events_max) } else { events_max };
        Held { events, bytes: bytes_max }
    }

    fn held(&self, account: AccountId) -> Held {
        self.lines.get(&account).map(|line| line.held).unwrap_or_default()
    }

    /// What has to go so that `item` fits, which is mostly nothing.
    fn make_room(&mut self, item: &T) -> Result<Vec<T>, Error> {
        // Whatever it is, alone it can be committed.
        if self.total.events == 0 {
            return Ok(Vec::new());
        }
        let (account, size) = (item.account(), Held::of(item));
        let own = self.held(account);
        let others_wait = self.total.events > own.events;
        if others_wait && !own.plus(size).within(self.bound().half()) {
            return Err(Error::Share);
        }
        let hog = self.hog.filter(|hog| *hog != account);
        if self.standing {
            // What an account holds above its half is its own delay: nobody else is refused for it.
            let half = self.bound().events / 2;
            let above = hog.map_or(0, |hog| self.held(hog).events.saturating_sub(half));
            if self.total.events - above + size.events > self.bound().events {
                return Err(Error::Full);
            }
        }
        let most = Held { events: self.bounds.events_max, bytes: self.bounds.bytes_max };
        let mut evicted = Vec::new();
        while !self.total.plus(size).within(most) {
            match hog.and_then(|hog| self.evict(hog)) {
                Some(item) => evicted.push(item),
                // Then what was evicted was so for nothing; it was above its half.
                None if evicted.is_empty() => return Err(Error::Full),
                None => break,
            }
        }
        Ok(evicted)
    }

    /// The newest item of an account, if it holds more than half.
    fn evict(&mut self, account: AccountId) -> Option<T> {
        let half = self.bound().half();
        let line = self.lines.get_mut(&account).filter(|line| !line.held.within(half))?;
        let item = line.items.pop_back()?;
        self.forget(&item);
        Some(item)
    }

    fn add(&mut self, item: T) {
        let (account, size, half) = (item.account(), Held::of(&item), self.bound().half());
        let spare = &mut self.spare;
        let line = self
            .lines
            .entry(account)
            .or_insert_with(|| Line { items: spare.pop().unwrap_or_default(), held: Held::default() });
        if line.items.is_empty() {
            self.turns.push_back(account);
        }
        line.held = line.held.plus(size);
        line.items.push_back(item);
        if !line.held.within(half) {
            self.hog = Some(account);
        }
        self.total = self.total.plus(size);
    }

    fn take(&mut self) -> Option<T> {
        let account = *self.turns.front()?;
        let item = self.lines.get_mut(&account).and_then(|line| line.items.pop_front())?;
        self.left = self.left.saturating_sub(item.events());
        if self.forget(&item) && self.left == 0 {
            self.turns.rotate_left(1);
            self.left = TURN;
        }
        Some(item)
    }

    /// Takes an item that left its line out of the counts. Returns whether its account still has others.
    fn forget(&mut self, item: &T) -> bool {
        let (account, size) = (item.account(), Held::of(item));
        self.total = self.total.minus(size);
        let Some(line) = self.lines.get_mut(&account) else { return false };
        line.held = line.held.minus(size);
        if !line.items.is_empty() {
            return true;
        }
        if let Some(line) = self.lines.remove(&account)
            && self.spare.len() < SPARE_MAX
        {
            self.spare.push(line.items);
        }
        if self.turns.front() == Some(&account) {
            self.turns.pop_front();
            self.left = TURN;
        } else {
            self.turns.retain(|other| *other != account);
        }
        if self.hog == Some(account) {
            self.hog = None;
        }
        false
    }

    /// Whether more than a batch has been waiting for a while, or was a moment ago and something was refused.
    fn judge(&mut self, now: Instant) {
        if self.total.events == 0 {
            self.long_since = None;
        } else if now.duration_since(*self.long_since.get_or_insert(now)) >= STANDING_AFTER {
            self.standing_until = Some(now + STANDING_FOR);
        }
        if std::mem::take(&mut self.refused) && self.standing {
            self.standing_until = Some(now + STANDING_FOR);
        }
        let standing = self.standing_until.is_some_and(|until| now < until);
        if standing != self.standing {
            self.standing = standing;
            let half = self.bound().half();
            let hog = self.lines.iter().find(|(_, line)| !line.held.within(half));
            self.hog = hog.map(|(account, _)| *account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Account, events, bytes, and who was refused with what.
    struct Thing(i64, usize, usize, Arc<Mutex<Vec<(i64, Error)>>>);

    impl Item for Thing {
        fn account(&self) -> AccountId {
            AccountId(self.0)
        }
        fn events(&self) -> usize {
            self.1
        }
        fn bytes(&self) -> usize {
            self.2
        }
        fn refuse(self, error: Error) {
            self.3.lock().unwrap().push((self.0, error));
        }
    }

    struct Fixture {
        queue: Queue<Thing>,
        refused: Arc<Mutex<Vec<(i64, Error)>>>,
    }

    impl Fixture {
        fn new(events_max: usize, bytes_max: usize, standing_events_max: usize) -> Fixture {
            let bounds = Bounds { events_max, bytes_max, standing_events_max };
            let queue = Queue::new(bounds, Arc::new(Metrics::new()));
            Fixture { queue, refused: Arc::default() }
        }

        fn push(&self, account: i64, bytes: usize) -> Result<(), Error> {
            self.queue.push(Thing(account, 1, bytes, self.refused.clone()))
        }

        fn fill(&self, account: i64, n: usize) -> usize {
            (0..n).filter(|_| self.push(account, 1).is_ok()).count()
        }

        fn drain(&self) -> Vec<i64> {
            std::iter::from_fn(|| self.queue.pop()).map(|thing| thing.0).collect()
        }
    }

    #[test]
    fn a_lone_account_may_fill_the_queue_and_no_more() {
        let f = Fixture::new(10, 1000, 10);
        assert_eq!(f.fill(1, 20), 10);
        assert!(matches!(f.push(1, 1), Err(Error::Full)));
        assert_eq!(f.drain().len(), 10);
        assert_eq!(f.queue.len(), 0);
        assert!(f.push(1, 1).is_ok());
    }

    #[test]
    fn bytes_are_bounded_too_but_one_item_always_fits() {
        let f = Fixture::new(10, 100, 10);
        assert!(f.push(1, 500).is_ok());
        assert!(matches!(f.push(1, 1), Err(Error::Full)));
        f.drain();
        assert!(f.push(1, 60).is_ok() && f.push(1, 40).is_ok());
        assert!(matches!(f.push(1, 1), Err(Error::Full)));
    }

    #[test]
    fn the_newcomer_is_let_in_at_the_cost_of_the_account_that_holds_too_much() {
        let f = Fixture::new(10, 1000, 10);
        assert_eq!(f.fill(1, 10), 10);
        assert_eq!(f.fill(2, 20), 5, "half is for account 2");
        assert_eq!(f.refused.lock().unwrap().len(), 5);
        assert!(f.refused.lock().unwrap().iter().all(|(a, e)| *a == 1 && matches!(e, Error::Share)));
        assert!(matches!(f.push(1, 1), Err(Error::Share)) && matches!(f.push(2, 1), Err(Error::Share)));
        assert!(matches!(f.push(3, 1), Err(Error::Full)), "nobody holds more than half any more");
    }

    #[test]
    fn accounts_take_turns() {
        let f = Fixture::new(1000, 100_000, 1000);
        f.fill(1, 100);
        f.fill(2, 3);
        f.fill(3, TURN + 1);
        let order = f.drain();
        assert_eq!(order[TURN..TURN + 3], [2, 2, 2], "two does not wait for all of one");
        assert_eq!(order[TURN + 3], 3);
        assert_eq!(order.len(), 103 + TURN + 1);
        let two_turns = &order[TURN + 3..];
        assert!(two_turns[..TURN].iter().all(|a| *a == 3) && two_turns[TURN] == 1, "a turn ends");
    }

    #[test]
    fn a_standing_queue_shrinks_and_grows_again() {
        let f = Fixture::new(1000, 100_000, 20);
        let start = Instant::now();
        f.fill(1, 500);
        f.queue.taken(start);
        assert!(f.push(1, 1).is_ok(), "a burst is absorbed");
        f.queue.taken(start + STANDING_AFTER);
        assert!(matches!(f.push(1, 1), Err(Error::Full)), "what stays is not");
        assert_eq!(f.fill(2, 20), 10, "another account is not refused for it, up to its own half");
        assert!(f.refused.lock().unwrap().is_empty(), "nor is what was accepted taken back");
        f.drain();
        assert_eq!(f.fill(1, 30), 20);
        f.queue.taken(start + STANDING_AFTER + STANDING_FOR / 2);
        f.drain();
        f.queue.taken(start + STANDING_AFTER + STANDING_FOR);
        assert_eq!(f.fill(1, 30), 20, "as long as something is refused");
        f.drain();
        f.queue.taken(start + STANDING_AFTER + STANDING_FOR * 3);
        f.queue.taken(start + STANDING_AFTER + STANDING_FOR * 5);
        assert_eq!(f.fill(1, 30), 30);
    }

    #[test]
    fn the_counts_agree_whatever_happens() {
        let f = Fixture::new(50, 5000, 20);
        let mut seed = 7u64;
        let start = Instant::now();
        for step in 0..20_000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = (seed >> 33) as usize;
            match dice % 5 {
                0 | 1 => drop(f.queue.pop()),
                2 if dice.is_multiple_of(7) => f.queue.taken(start + Duration::from_millis(step.into())),
                _ => drop(f.push((dice / 5 % 4) as i64, dice / 20 % 300)),
            }
            let waiting = f.queue.waiting();
            let sum = waiting.lines.values().fold(Held::default(), |sum, line| sum.plus(line.held));
            assert_eq!(sum, waiting.total);
            assert!(waiting.total.events <= 50 && waiting.total.bytes <= 5000);
            assert_eq!(waiting.turns.len(), waiting.lines.len());
            assert!(waiting.lines.values().all(|line| line.held.events == line.items.len()));
        }
    }

    #[tokio::test]
    async fn a_closed_queue_takes_nothing_more_and_keeps_what_it_has() {
        let f = Fixture::new(10, 100, 10);
        f.fill(1, 2);
        f.queue.close();
        assert!(matches!(f.push(1, 1), Err(Error::Stopping)));
        f.queue.filled().await;
        assert!(f.queue.is_closed());
        assert_eq!(f.drain().len(), 2);
    }
}
