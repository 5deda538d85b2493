//! A lane: one webhook's queue in one process. A webhook that hangs fills its own lane and nobody else's.
//!
//! It has a limit of requests in flight and a bounded queue behind them. What does not fit is parked in the
//! schedule, each delivery at the time the lane expects to have drained to it, so that it comes back about
//! once. A crash loses nothing of a lane: its entries are pending and its retries are leased.

mod pace;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use self::pace::Pace;
use crate::model::WebhookId;

/// Bounds of every lane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub in_flight_max: usize,
    pub queue_max: usize,
    /// Of the queue, how much retries may take: their permits are fewer, and one lane must not hold them all.
    pub retries_max: usize,
    /// Longest time in the queue.
    pub hold: Duration,
    pub idle: Duration,
}

/// Where a delivery went.
#[derive(Debug)]
pub enum Admission<T> {
    /// It is to be handled now, by a new worker of this lane.
    Start(T),
    /// It waits for a worker.
    Queued,
    /// It does not fit: park it for this long.
    Full(T, Duration),
}

/// One webhook's queue. `T` is a delivery.
pub struct Lane<T> {
    limits: Limits,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    queue: VecDeque<(T, Kind, Instant)>,
    retries: usize,
    in_flight: usize,
    pace: Pace,
    last_used: Instant,
}

/// Whether a delivery comes from the stream or from the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    First,
    Retry,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Lane<T> {
    fn new(limits: Limits) -> Lane<T> {
        Lane {
            limits,
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                retries: 0,
                in_flight: 0,
                pace: Pace::new(limits.in_flight_max),
                last_used: Instant::now(),
            }),
        }
    }

    /// Whether it has work in hand.
    pub fn is_busy(&self) -> bool {
        let inner = lock(&self.inner);
        inner.in_flight > 0 || !inner.queue.is_empty()
    }

    /// For how long to park a delivery that there is no room for elsewhere.
    pub fn park(&self) -> Duration {
        let mut inner = lock(&self.inner);
        let queued = inner.queue.len();
        inner.pace.park(queued, Instant::now())
    }

    /// Takes a delivery in, or says that it does not fit.
    pub fn admit(&self, item: T, kind: Kind) -> Admission<T> {
        let now = Instant::now();
        let mut inner = lock(&self.inner);
        inner.last_used = now;
        if inner.in_flight < self.limits.in_flight_max && inner.queue.is_empty() {
            inner.in_flight += 1;
            return Admission::Start(item);
        }
        let retries_full = kind == Kind::Retry && inner.retries >= self.limits.retries_max;
        if inner.queue.len() >= self.limits.queue_max || retries_full {
            let queued = inner.queue.len();
            return Admission::Full(item, inner.pace.park(queued, now));
        }
        inner.retries += usize::from(kind == Kind::Retry);
        inner.queue.push_back((item, kind, now));
        Admission::Queued
    }

    /// The next delivery for a worker that has done its last one; without one the worker ends.
    pub fn next(&self) -> Option<T> {
        let mut inner = lock(&self.inner);
        let item = inner.pop();
        if item.is_none() {
            inner.in_flight -= 1;
        }
        item
    }

    /// Notes how long a delivery took.
    pub fn took(&self, time: Duration) {
        lock(&self.inner).pace.took(time);
    }

    /// Deliveries that have waited longer than the hold, each with the time to park it for.
    pub fn overdue(&self) -> Vec<(T, Duration)> {
        let now = Instant::now();
        let mut inner = lock(&self.inner);
        let mut found = Vec::new();
        while inner.queue.front().is_some_and(|(.., since)| now - *since > self.limits.hold) {
            if let Some(item) = inner.pop() {
                let queued = inner.queue.len();
                found.push((item, inner.pace.park(queued, now)));
            }
        }
        found
    }

    /// Takes everything out that has not begun.
    pub fn clear(&self) -> Vec<T> {
        let mut inner = lock(&self.inner);
        inner.retries = 0;
        inner.queue.drain(..).map(|(item, ..)| item).collect()
    }

    fn queued(&self) -> usize {
        lock(&self.inner).queue.len()
    }

    fn is_idle(&self) -> bool {
        let inner = lock(&self.inner);
        inner.in_flight == 0 && inner.queue.is_empty() && inner.last_used.elapsed() > self.limits.idle
    }
}

impl<T> Inner<T> {
    fn pop(&mut self) -> Option<T> {
        let (item, kind, _) = self.queue.pop_front()?;
        self.retries -= usize::from(kind == Kind::Retry);
        Some(item)
    }
}

/// The lanes of one process, made on demand.
pub struct Lanes<T> {
    limits: Limits,
    lanes: Mutex<HashMap<WebhookId, Arc<Lane<T>>>>,
}

impl<T> Lanes<T> {
    pub fn new(limits: Limits) -> Lanes<T> {
        Lanes { limits, lanes: Mutex::default() }
    }

    pub fn of(&self, webhook: WebhookId) -> Arc<Lane<T>> {
        let mut lanes = lock(&self.lanes);
        lanes.entry(webhook).or_insert_with(|| Arc::new(Lane::new(self.limits))).clone()
    }

    /// Every lane there is now.
    pub fn all(&self) -> Vec<Arc<Lane<T>>> {
        lock(&self.lanes).values().cloned().collect()
    }

    /// Forgets idle lanes nobody is about to use. Returns how many lanes and how many queued deliveries
    /// are left.
    pub fn tidy(&self) -> (usize, usize) {
        let mut lanes = lock(&self.lanes);
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_idle());
        (lanes.len(), lanes.values().map(|lane| lane.queued()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            in_flight_max: 2,
            queue_max: 3,
            retries_max: 1,
            hold: Duration::from_secs(2),
            idle: Duration::from_secs(60),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_flight_then_queued_then_parked() {
        let lane = Lane::new(limits());
        for n in 0..2 {
            assert!(matches!(lane.admit(n, Kind::First), Admission::Start(_)));
        }
        for n in 2..5 {
            assert!(matches!(lane.admit(n, Kind::First), Admission::Queued));
        }
        assert!(matches!(lane.admit(5, Kind::First), Admission::Full(5, _)));
        assert_eq!(lane.next(), Some(2));
        assert!(matches!(lane.admit(6, Kind::Retry), Admission::Queued));
        assert_eq!(lane.next(), Some(3));
        assert!(matches!(lane.admit(7, Kind::Retry), Admission::Full(7, _)), "retries have a share");
        for n in [4, 6] {
            assert_eq!(lane.next(), Some(n));
        }
        assert_eq!((lane.next(), lane.next()), (None, None));
        assert!(matches!(lane.admit(8, Kind::First), Admission::Start(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_too_long_comes_out_to_be_parked() {
        let lane = Lane::new(limits());
        for n in 0..4 {
            lane.admit(n, Kind::First);
        }
        tokio::time::advance(Duration::from_millis(1500)).await;
        lane.admit(4, Kind::First);
        assert!(lane.overdue().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        let out: Vec<i32> = lane.overdue().into_iter().map(|(n, _)| n).collect();
        assert_eq!(out, [2, 3]);
        assert_eq!(lane.clear(), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_lanes_are_forgotten() {
        let lanes: Lanes<i32> = Lanes::new(limits());
        lanes.of(WebhookId(1));
        let busy = lanes.of(WebhookId(2));
        busy.admit(1, Kind::First);
        tokio::time::advance(Duration::from_secs(61)).await;
        drop(busy);
        assert_eq!(lanes.tidy(), (1, 0));
    }
}
