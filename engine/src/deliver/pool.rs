//! Connections at rest and connections that are shared, by origin.
//!
//! Of HTTP/1.1 the pool holds idle connections only: who takes one owns it until its reply was read to the end, and
//! a connection dropped before that is closed. The last one returned is the first one taken, so that the others grow
//! old and go. Of HTTP/2 it holds every open connection, since many calls share one.
//!
//! Connections serve all tenants of an origin alike. That is sound as long as nothing on a connection belongs to one of
//! them: there are no cookies, no client certificates and no credentials other than in a request's own headers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use super::{
    gate::{Gate, Opening, Waiter},
    h1::H1,
    h2::H2,
    origin::Origin,
};
use crate::{
    metrics::{Metrics, Part},
    model::IdMap,
};

/// Idle connections to one origin: what sixteen of its lanes have in flight at most. Many webhooks may have one host, and an event that
/// all of them want makes as many requests at once. With 128, four of ten requests of such a fan-out opened a connection, at twice
/// the price of the whole delivery.
const IDLE_PER_ORIGIN: usize = 1024;

/// How long connections live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) idle: Duration,
    pub(super) age_max: Duration,
    pub(super) idle_max: usize,
}

pub(super) struct Pool {
    state: Mutex<State>,
    limits: Limits,
    metrics: Arc<Metrics>,
    last_id: AtomicU64,
}

struct State {
    /// An origin comes with a hash that nobody can aim at.
    slots: IdMap<Origin, Slot>,
    /// Every connection without a request, the least recently used one first to go.
    resting: LruCache<u64, Resting>,
    /// Whether the task that closes what has rested too long is running. It ends when there is no slot.
    sweeping: bool,
    /// How many rest, of all pools of the process.
    idle: Part,
}

/// What is known of an origin. Where there is nothing it goes, at the next sweep at the latest: to make it anew for each
/// request of an endpoint that has one connection would be waste.
#[derive(Default)]
struct Slot {
    /// Idle HTTP/1.1 connections, by their ids in `resting`; the last one returned at the back.
    h1: VecDeque<u64>,
    h2: Vec<Shared>,
    /// Somebody opens a connection that may turn out to be one for all.
    opening: Option<Arc<Gate>>,
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.h1.is_empty() && self.h2.is_empty() && self.opening.is_none()
    }
}

struct Shared {
    conn: Arc<H2>,
    streams: usize,
}

struct Resting {
    origin: Origin,
    until: Instant,
    /// None for HTTP/2, whose connection stands in its slot.
    h1: Option<H1>,
}

impl Resting {
    /// Why it is of no more use, if it is not. A shared connection's driver tells of its end by itself.
    fn over(&mut self, now: Instant) -> Option<Reason> {
        if self.until <= now {
            return Some(Reason::Idle);
        }
        self.h1.as_mut().is_some_and(|h1| !h1.is_ready()).then_some(Reason::Peer)
    }
}

/// What a caller gets.
pub(super) enum Checkout {
    H1(H1),
    H2(Stream),
    /// Another caller opens a connection; look again when it has.
    Wait(Waiter),
    /// There is none: open one. The guard is held while that goes on.
    Open(Option<Opening>),
}

/// Why a connection was closed, for the metric.
#[derive(Clone, Copy)]
enum Reason {
    Idle,
    Age,
    Evicted,
    Peer,
}

impl Pool {
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Pool> {
        let state = State {
            slots: IdMap::default(),
            resting: LruCache::unbounded(),
            sweeping: false,
            idle: Part::of(&metrics.deliver.idle),
        };
        Arc::new(Pool { state: Mutex::new(state), limits, metrics, last_id: AtomicU64::new(0) })
    }

    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a connection to `origin`. `fresh` leaves idle HTTP/1.1 connections alone; `may_wait` says that a
    /// connection which another caller is opening is worth waiting for.
    pub(super) fn checkout(self: &Arc<Pool>, origin: &Origin, fresh: bool, may_wait: bool) -> Checkout {
        let now = Instant::now();
        let mut state = self.lock();
        let found = state.find(origin, fresh, now, self);
        state.show();
        if let Some(found) = found {
            self.metrics.deliver.reused.increment(1);
            return found;
        }
        // Plain HTTP has one protocol only, so nobody's connection will do for two.
        if !origin.https || !may_wait {
            state.forget_if_empty(origin);
            return Checkout::Open(None);
        }
        let slot = state.slots.entry(origin.clone()).or_default();
        match &slot.opening {
            // Made under the lock, so that the end of the opening cannot be missed.
            Some(gate) => Checkout::Wait(gate.waiter()),
            None => {
                let gate = Arc::new(Gate::default());
                slot.opening = Some(gate.clone());
                Checkout::Open(Some(gate.opening(self, origin)))
            }
        }
    }

    /// Takes back a connection whose reply was read to its end. `peer_idle` is how long the peer keeps it.
    pub(super) fn put(self: &Arc<Pool>, origin: &Origin, h1: H1, peer_idle: Option<Duration>) {
        let now = Instant::now();
        let idle = peer_idle.map_or(self.limits.idle, |peer| peer.min(self.limits.idle));
        let old = h1.born + self.limits.age_max;
        if old <= now || idle.is_zero() {
            self.closed(if idle.is_zero() { Reason::Idle } else { Reason::Age });
            return h1.close();
        }
        let mut state = self.lock();
        let id = h1.id;
        state.slots.entry(origin.clone()).or_default().h1.push_back(id);
        let until = (now + idle).min(old);
        state.resting.put(id, Resting { origin: origin.clone(), until, h1: Some(h1) });
        self.trim(state, origin);
    }

    /// Closes what is too much, and sees to it that somebody closes what rests too long.
    fn trim(self: &Arc<Pool>, mut state: MutexGuard<'_, State>, origin: &Origin) {
        let mut gone = Vec::new();
        if let Some(slot) = state.slots.get_mut(origin)
            && slot.h1.len() > IDLE_PER_ORIGIN
            && let Some(id) = slot.h1.pop_front()
        {
            gone.extend(state.resting.pop(&id));
        }
        while state.resting.len() > self.limits.idle_max
            && let Some((id, resting)) = state.resting.pop_lru()
        {
            state.leave(&resting.origin, id);
            gone.push(resting);
        }
        state.show();
        if !state.sweeping {
            state.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(self), (self.limits.idle / 4).clamp(TICK_MIN, TICK_MAX)));
        }
        drop(state);
        gone.into_iter().for_each(|resting| self.close(resting, Reason::Evicted));
    }

    /// Shares a connection that was just opened; its first request is the caller's.
    pub(super) fn share(self: &Arc<Pool>, origin: &Origin, conn: Arc<H2>) -> Stream {
        let mut state = self.lock();
        let slot = state.slots.entry(origin.clone()).or_default();
        slot.h2.push(Shared { conn: conn.clone(), streams: 1 });
        if let Some(gate) = &slot.opening {
            gate.share();
        }
        Stream { pool: self.clone(), origin: origin.clone(), conn, settled: false }
    }

    /// Lets others open a connection, now that one caller has done so or failed.
    pub(super) fn opening_over(&self, origin: &Origin) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(origin) {
            slot.opening = None;
        }
        state.forget_if_empty(origin);
    }

    /// Removes a shared connection whose driver has ended.
    pub(super) fn ended(&self, origin: &Origin, id: u64) {
        let mut state = self.lock();
        let rested = state.resting.pop(&id);
        let conn = state.leave(origin, id);
        state.show();
        drop(state);
        if rested.is_some() || conn.is_some() {
            self.closed(Reason::Peer);
        }
    }

    fn close(&self, resting: Resting, reason: Reason) {
        self.closed(reason);
        if let Some(h1) = resting.h1 {
            h1.close();
        }
    }

    fn closed(&self, reason: Reason) {
        let deliver = &self.metrics.deliver;
        let counter = match reason {
            Reason::Idle => &deliver.closed_idle,
            Reason::Age => &deliver.closed_age,
            Reason::Evicted => &deliver.closed_evicted,
            Reason::Peer => &deliver.closed_peer,
        };
        counter.increment(1);
    }
}

impl State {
    fn show(&mut self) {
        self.idle.set(self.resting.len());
    }

    fn find(&mut self, origin: &Origin, fresh: bool, now: Instant, pool: &Arc<Pool>) -> Option<Checkout> {
        let slot = self.slots.get_mut(origin)?;
        // Old ones finish what they have in hand and go with it.
        slot.h2.retain(|shared| {
            let reason = if shared.conn.is_closed() {
                Reason::Peer
            } else if shared.conn.born + pool.limits.age_max <= now {
                Reason::Age
            } else if self.resting.peek(&shared.conn.id).is_some_and(|resting| resting.until <= now) {
                Reason::Idle
            } else {
                return true;
            };
            self.resting.pop(&shared.conn.id);
            pool.closed(reason);
            false
        });
        if let Some(shared) = slot.h2.iter_mut().find(|s| s.streams < s.conn.streams_max()) {
            self.resting.pop(&shared.conn.id);
            shared.streams += 1;
            let conn = shared.conn.clone();
            return Some(Checkout::H2(Stream {
                pool: pool.clone(),
                origin: origin.clone(),
                conn,
                settled: false,
            }));
        }
        while !fresh && let Some(id) = slot.h1.pop_back() {
            let Some(Resting { until, h1: Some(mut h1), .. }) = self.resting.pop(&id) else { continue };
            if until <= now {
                pool.closed(Reason::Idle);
                h1.close();
            } else if h1.is_ready() {
                return Some(Checkout::H1(h1));
            } else {
                pool.closed(Reason::Peer);
            }
        }
        None
    }

    /// Takes a connection out of its slot. Gives the connection if it was a shared one.
    fn leave(&mut self, origin: &Origin, id: u64) -> Option<Arc<H2>> {
        let slot = self.slots.get_mut(origin)?;
        let shared = slot.h2.iter().position(|s| s.conn.id == id).map(|at| slot.h2.swap_remove(at).conn);
        if shared.is_none()
            && let Some(at) = slot.h1.iter().position(|other| *other == id)
        {
            slot.h1.remove(at);
        }
        self.forget_if_empty(origin);
        shared
    }

    fn forget_if_empty(&mut self, origin: &Origin) {
        if self.slots.get(origin).is_some_and(Slot::is_empty) {
            self.slots.remove(origin);
        }
    }
}

const TICK_MIN: Duration = Duration::from_millis(50);
const TICK_MAX: Duration = Duration::from_secs(1);

/// Closes what has rested too long, and what its peer has closed: one task for all, so that no request needs a timer for it and
/// no connection a task.
async fn sweep(pool: Weak<Pool>, tick: Duration) {
    loop {
        tokio::time::sleep(tick).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut state = pool.lock();
        let over = state.resting.iter_mut().filter_map(|(id, resting)| Some((*id, resting.over(now)?)));
        let over: Vec<(u64, Reason)> = over.collect();
        let mut gone = Vec::with_capacity(over.len());
        for (id, reason) in over {
            if let Some(resting) = state.resting.pop(&id) {
                state.leave(&resting.origin, id);
                gone.push((resting, reason));
            }
        }
        // The last idle connection was taken from these, and has not come back.
        state.slots.retain(|_, slot| !slot.is_empty());
        let few = 2 * state.slots.len() + 64;
        if state.slots.capacity() > 2 * few {
            state.slots.shrink_to(few);
        }
        state.sweeping = !state.slots.is_empty();
        state.show();
        let done = !state.sweeping;
        drop(state);
        gone.into_iter().for_each(|(resting, reason)| pool.close(resting, reason));
        if done {
            return;
        }
    }
}

/// One request's place on a shared connection.
pub(super) struct Stream {
    pool: Arc<Pool>,
    origin: Origin,
    pub(super) conn: Arc<H2>,
    /// Whether the connection answered, be it with an error. One that did not may be dead without a sign, so it takes no
    /// further requests.
    pub(super) settled: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.pool.lock();
        let id = self.conn.id;
        if !self.settled {
            state.leave(&self.origin, id);
            return;
        }
        let Some(slot) = state.slots.get_mut(&self.origin) else { return };
        let Some(shared) = slot.h2.iter_mut().find(|s| s.conn.id == id) else { return };
        shared.streams -= 1;
        if shared.streams == 0 {
            let limits = self.pool.limits;
            let until = (now + limits.idle).min(self.conn.born + limits.age_max);
            state.resting.put(id, Resting { origin: self.origin.clone(), until, h1: None });
            self.pool.trim(state, &self.origin);
        }
    }
}

#[cfg(test)]
mod tests;
