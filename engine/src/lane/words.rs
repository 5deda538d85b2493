//! The words lanes and their users speak with each other.

use std::time::Duration;

use super::{BreakerSettings, Change};

/// Bounds of every lane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub queue_max: usize,
    /// Of the queue, how much retries may take: their permits are fewer, and one lane must not hold them all.
    pub retries_max: usize,
    /// Longest time in the queue.
    pub hold: Duration,
    pub idle: Duration,
    pub breaker: BreakerSettings,
}

/// This process's part of a webhook's own limits.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    pub in_flight_max: usize,
    /// Requests a second.
    pub rate: Option<f64>,
    /// Calls a second of its transform, by the CPU time it may have.
    pub calls: Option<f64>,
    /// Longest time between two probes: what waits behind the breaker must see several.
    pub probe_max: Duration,
}

impl Allowed {
    /// Deliveries a second, whatever limits them.
    pub(super) fn per_second(&self) -> Option<f64> {
        match (self.rate, self.calls) {
            (Some(rate), Some(calls)) => Some(rate.min(calls)),
            (rate, calls) => rate.or(calls),
        }
    }
}

/// What became of a delivery, as far as its lane cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// The endpoint answered, and did not want this one (400, 404, ...): it is not down.
    Refused,
    Failed,
    TimedOut,
    /// Its transform did not let it go: nothing was sent, and nothing is known of the endpoint.
    Withheld,
    /// Nothing was sent.
    Unknown,
}

/// Where a delivery went.
#[derive(Debug)]
pub enum Admission<T> {
    /// It is to be handled now, by a new worker of this lane.
    Start(T),
    /// It waits for a worker.
    Queued,
    /// It does not fit: it waits outside of memory, as [`super::Lane::overflow`] says.
    Full(T),
    /// The breaker is open: it is to wait in the schedule for the lane's word.
    Shelve(T),
}

/// Why a delivery is shelved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Breaker,
    Backlog,
}

/// What a worker learns when its delivery is done.
#[derive(Debug)]
pub struct Next<T> {
    /// For this worker; without one it ends.
    pub next: Option<T>,
    /// For a new worker, when the window has grown.
    pub more: Option<T>,
    pub change: Option<Change>,
    /// What was queued when the breaker opened.
    pub shelve: Vec<T>,
}

/// Whether a delivery comes from the stream or from the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    First,
    Retry,
}

/// How a lane stands, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub in_flight: usize,
    pub in_flight_limit: usize,
    pub queued: usize,
    pub slow: bool,
    pub open: bool,
}

/// What a lane wants done outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Send one delivery although the breaker is open.
    Probe,
    /// Bring back what is shelved.
    Pull,
}

/// How much a lane has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// It has work in hand.
    pub busy: bool,
    pub slow: bool,
    /// Its breaker is.
    pub open: bool,
    pub queued: usize,
    /// Seconds from one delivery to the next.
    pub gap: f64,
}

/// Where something waits that a lane has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// In the schedule, for so long.
    Park(Duration),
    /// In the schedule, for the lane's word.
    Shelve(Why),
}
