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
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::Error;
use crate::{
    metrics::Metrics,
    model::{AccountId, IdMap},
};

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
    lines: IdMap<AccountId, Line<T>>,
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
            lines: IdMap::default(),
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
mod tests;
