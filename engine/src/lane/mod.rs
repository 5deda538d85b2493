//! A lane: one webhook's queue in one process. A webhook that hangs fills its own lane and nobody else's.
//!
//! It has a window of requests in flight, which grows while they succeed, and a bounded queue behind it. What does not
//! fit is parked in the schedule at the time the lane expects to have drained to it, so that it comes back about once.
//! What would have to wait for long, and everything while the breaker is open, is shelved: it stays in Postgres without a
//! time of its own until the lane pulls it. A crash loses nothing of a lane: its entries are pending and its retries
//! are leased.

mod breaker;
mod health;
mod lanes;
mod pace;
mod rate;
#[cfg(test)]
mod tests;
mod window;
mod words;

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use self::{breaker::Breaker, health::Telltale, pace::Pace, rate::Rate, window::Window};
pub use self::{
    breaker::{Change, Settings as BreakerSettings},
    health::Health,
    lanes::{Lanes, Totals},
    words::{Admission, Allowed, Errand, Kind, Limits, Load, Next, Outcome, Overflow, Standing, Why},
};

/// A lane slower than this draws from the slow pool, and one with no outcome for so long while it has requests in
/// flight.
const SLOW: Duration = Duration::from_secs(1);

/// And for so long after a time-out.
const SLOW_AFTER_TIMEOUT: Duration = Duration::from_secs(30);

/// What would be parked for longer is shelved: the near window of the schedule is for what comes soon.
const PARKED_MAX: Duration = Duration::from_secs(30);

/// Deliveries pulled from the shelf in one step.
pub const PULL_MAX: usize = 500;

/// One webhook's queue. `T` is a delivery.
pub struct Lane<T> {
    limits: Limits,
    inner: Mutex<Inner<T>>,
    telltale: Telltale,
}

struct Inner<T> {
    queue: VecDeque<(T, Kind, Instant)>,
    retries: usize,
    in_flight: usize,
    allowed: Allowed,
    window: Window,
    rate: Rate,
    calls: Rate,
    breaker: Breaker,
    pace: Pace,
    /// When a request last ended, or the first of those in flight began.
    progress: Instant,
    timed_out: Option<Instant>,
    /// Something waits in the schedule for our word.
    shelved: bool,
    pulling: bool,
    last_used: Instant,
}

impl<T> Lane<T> {
    fn new(limits: Limits) -> Lane<T> {
        let now = Instant::now();
        Lane {
            limits,
            telltale: Telltale::default(),
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                retries: 0,
                in_flight: 0,
                allowed: Allowed {
                    in_flight_max: 1,
                    rate: None,
                    calls: None,
                    probe_max: limits.breaker.probe_max,
                },
                window: Window::new(),
                rate: Rate::default(),
                calls: Rate::default(),
                breaker: Breaker::new(limits.breaker),
                pace: Pace::new(),
                progress: now,
                timed_out: None,
                shelved: false,
                pulling: false,
                last_used: now,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn load(&self) -> Load {
        let inner = self.lock();
        Load {
            busy: inner.in_flight > 0 || !inner.queue.is_empty(),
            slow: inner.is_slow(Instant::now()),
            open: inner.breaker.is_open(),
            queued: inner.queue.len(),
            gap: inner.gap(),
        }
    }

    /// Where one more delivery waits that there is no room for in memory.
    pub fn overflow(&self) -> Overflow {
        self.lock().overflow(Instant::now())
    }

    /// Takes a delivery in, or says where it goes instead.
    pub fn admit(&self, item: T, kind: Kind, allowed: Allowed) -> Admission<T> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.last_used = now;
        inner.allowed = allowed;
        if inner.breaker.is_open() {
            inner.shelved = true;
            inner.breaker.probe_within(allowed.probe_max, now);
            return Admission::Shelve(item);
        }
        if inner.in_flight < inner.in_flight_limit(&self.limits) && inner.queue.is_empty() {
            inner.begin(now);
            return Admission::Start(item);
        }
        let retries_full = kind == Kind::Retry && inner.retries >= self.limits.retries_max;
        if inner.queue.len() >= inner.queue_limit(&self.limits, now) || retries_full {
            return Admission::Full(item);
        }
        inner.retries += usize::from(kind == Kind::Retry);
        inner.queue.push_back((item, kind, now));
        Admission::Queued
    }

    /// Takes a place in what is limited to so many a second; how long to wait before sending.
    pub fn reserve(&self) -> Duration {
        let mut inner = self.lock();
        let Allowed { rate, calls, .. } = inner.allowed;
        if rate.is_none() && calls.is_none() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let wait = rate.map_or(Duration::ZERO, |rate| inner.rate.reserve(rate, now));
        wait.max(calls.map_or(Duration::ZERO, |calls| inner.calls.reserve_cpu(calls, now)))
    }

    /// Notes how a delivery ended and how long it took, and hands out the next.
    pub fn done(&self, outcome: Outcome, took: Duration) -> Next<T> {
        let now = Instant::now();
        let mut inner = self.lock();
        let max = inner.allowed.in_flight_max;
        match outcome {
            Outcome::Delivered | Outcome::Refused => inner.window.grow(max),
            Outcome::TimedOut => {
                inner.window.halve();
                inner.timed_out = Some(now);
            }
            Outcome::Failed | Outcome::Withheld | Outcome::Unknown => {}
        }
        if outcome != Outcome::Unknown {
            inner.pace.took(took);
        }
        inner.progress = now;
        let change = inner.breaker.note(outcome, now);
        let probe_max = inner.allowed.probe_max;
        inner.breaker.probe_within(probe_max, now);
        let shelve = if change == Some(Change::Opened) { inner.clear() } else { Vec::new() };
        inner.shelved |= !shelve.is_empty();
        inner.in_flight -= 1;
        let (next, more) = (inner.take(&self.limits, now), inner.take(&self.limits, now));
        Next { next, more, change, shelve }
    }

    /// Notes what an outcome says of the endpoint over days.
    pub fn note_health(&self, outcome: Outcome) {
        self.telltale.note(outcome);
    }

    /// What is to be told since the last time.
    pub fn take_health(&self) -> Health {
        self.telltale.take()
    }

    /// It could not be told.
    pub fn put_back_health(&self, health: Health) {
        self.telltale.put_back(health);
    }

    /// Deliveries that have waited longer than the hold.
    pub fn overdue(&self) -> Vec<T> {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut found = Vec::new();
        while inner.queue.front().is_some_and(|(.., since)| now - *since > self.limits.hold) {
            found.extend(inner.pop());
        }
        found
    }

    /// Takes everything out that has not begun.
    pub fn clear(&self) -> Vec<T> {
        self.lock().clear()
    }

    /// Something of this webhook waits in the schedule; `open` says that another dispatcher's breaker is.
    pub fn note_shelved(&self, open: bool) {
        let mut inner = self.lock();
        inner.shelved = true;
        inner.last_used = Instant::now();
        if open {
            inner.breaker.open_until_probed(Instant::now());
        }
    }

    /// What it wants done now. Each errand is given out once, until it is reported back.
    pub fn errand(&self) -> Option<Errand> {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.breaker.is_open() {
            return inner.breaker.take_probe(now).then_some(Errand::Probe);
        }
        let pulls = inner.shelved && !inner.pulling && inner.pull_room(&self.limits, now) > 0;
        inner.pulling |= pulls;
        pulls.then_some(Errand::Pull)
    }

    /// How many deferred deliveries it would take now.
    pub fn room(&self) -> usize {
        let inner = self.lock();
        if inner.breaker.is_open() { 0 } else { inner.room(&self.limits, Instant::now()) }
    }

    /// How many shelved ones, which count as retries.
    pub fn pull_room(&self) -> usize {
        let inner = self.lock();
        if inner.breaker.is_open() { 0 } else { inner.pull_room(&self.limits, Instant::now()) }
    }

    /// A pull is over; `left` says that there may be more.
    pub fn pulled(&self, left: bool) {
        let mut inner = self.lock();
        inner.pulling = false;
        inner.shelved = left;
    }

    /// A probe is sent: it counts as in flight.
    pub fn begin_probe(&self) {
        let mut inner = self.lock();
        inner.begin(Instant::now());
        inner.last_used = Instant::now();
    }

    /// No probe was sent.
    pub fn put_off_probe(&self) {
        self.lock().breaker.put_off(Instant::now());
    }

    /// Another dispatcher found the endpoint well, or nothing is left to probe with.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.breaker.close();
        inner.shelved = true;
    }

    pub fn standing(&self) -> Standing {
        let inner = self.lock();
        Standing {
            in_flight: inner.in_flight,
            in_flight_limit: inner.in_flight_limit(&self.limits),
            queued: inner.queue.len(),
            slow: inner.is_slow(Instant::now()),
            open: inner.breaker.is_open(),
        }
    }

    fn is_idle(&self) -> bool {
        let inner = self.lock();
        inner.in_flight == 0
            && inner.queue.is_empty()
            && !inner.breaker.is_open()
            && !inner.pulling
            && self.telltale.is_empty()
            && inner.last_used.elapsed() > self.limits.idle
    }
}

impl<T> Inner<T> {
    fn begin(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.progress = now;
        }
        self.in_flight += 1;
    }

    /// The next delivery, if there is one and the window has room for it.
    fn take(&mut self, limits: &Limits, now: Instant) -> Option<T> {
        if self.in_flight >= self.in_flight_limit(limits) {
            return None;
        }
        let item = self.pop()?;
        self.begin(now);
        Some(item)
    }

    fn pop(&mut self) -> Option<T> {
        let (item, kind, _) = self.queue.pop_front()?;
        self.retries -= usize::from(kind == Kind::Retry);
        Some(item)
    }

    fn clear(&mut self) -> Vec<T> {
        self.retries = 0;
        self.queue.drain(..).map(|(item, ..)| item).collect()
    }

    /// Seconds from one delivery to the next.
    fn gap(&self) -> f64 {
        self.pace.gap(self.window.limit(self.allowed.in_flight_max), self.allowed.per_second())
    }

    fn overflow(&mut self, now: Instant) -> Overflow {
        let wait = self.pace.park(self.gap(), self.queue.len(), now);
        if self.breaker.is_open() || wait > PARKED_MAX {
            self.shelved = true;
            let why = if self.breaker.is_open() { Why::Breaker } else { Why::Backlog };
            return Overflow::Shelve(why);
        }
        Overflow::Park(wait)
    }

    /// Of a lane with a rate limit no more than what it may send before the hold is over: a request that waits for its
    /// place is in flight.
    fn in_flight_limit(&self, limits: &Limits) -> usize {
        let window = self.window.limit(self.allowed.in_flight_max);
        match self.allowed.per_second() {
            Some(rate) => window.min((rate * limits.hold.as_secs_f64() / 4.0).ceil() as usize).max(1),
            None => window,
        }
    }

    /// How many may queue: what is sure to be sent within the hold, as far as that is known.
    fn queue_limit(&self, limits: &Limits, now: Instant) -> usize {
        let mut max = limits.queue_max;
        if self.is_slow(now) {
            max = max.min(self.window.limit(self.allowed.in_flight_max) * 2);
        }
        if let Some(rate) = self.allowed.per_second() {
            max = max.min((rate * limits.hold.as_secs_f64() / 2.0).ceil() as usize);
        }
        max.max(1)
    }

    fn room(&self, limits: &Limits, now: Instant) -> usize {
        // Half, so that new work and retries find room beside what comes back.
        (self.queue_limit(limits, now).div_ceil(2)).saturating_sub(self.queue.len()).min(PULL_MAX)
    }

    fn pull_room(&self, limits: &Limits, now: Instant) -> usize {
        self.room(limits, now).min(limits.retries_max.saturating_sub(self.retries))
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.pace.smoothed() > SLOW
            || self.timed_out.is_some_and(|at| now - at < SLOW_AFTER_TIMEOUT)
            || (self.in_flight > 0 && now - self.progress > SLOW)
    }
}
