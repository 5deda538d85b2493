//! What one webhook may have of the threads: how many at once, and how much of their time.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use lru::LruCache;

use super::threads::{Job, QUICK};
use crate::model::WebhookId;

/// Webhooks that are remembered. Those with calls in hand are never forgotten, and these have a bound of their own.
const WEBHOOKS_MAX: usize = 10_000;

/// After that a webhook's calls say nothing of its next ones.
const COST_AGE_MAX: Duration = Duration::from_secs(60);

/// A module whose calls take so long now and then is not quick either: it would be slow on the threads that do not stand back. But the
/// first call on a thread may be as long, because what it touches is not there yet: on a virtual machine, memory that the host has
/// yet to find (5 ms measured). So a few in a minute are forgiven.
const LONG: Duration = Duration::from_millis(2);

/// This is none of those: for a minute after one no call of its webhook counts as quick.
const VERY_LONG: Duration = Duration::from_millis(20);

/// Weight of the newest call in the smoothed cost. Small enough that one slow call does not park a webhook, large enough
/// that a dozen do.
const WEIGHT: f64 = 1.0 / 8.0;

/// Below it nobody is held back, and a rate stays a number.
const COST_MIN: Duration = Duration::from_micros(1);

pub(super) struct Shares {
    known: Mutex<LruCache<WebhookId, Arc<Share>>>,
    at_once: usize,
    long_max: usize,
    webhooks_max: usize,
}

pub(super) struct Share {
    at_once: usize,
    /// Long calls in a minute that are forgiven: one for each thread of either kind.
    long_max: usize,
    line: Mutex<Line>,
    cost: Mutex<Option<Cost>>,
    quick: AtomicBool,
}

/// What calls took of late.
#[derive(Clone, Copy)]
struct Cost {
    /// Smoothed CPU seconds.
    seconds: f64,
    at: Instant,
    /// Long ones in the minute that began then; a very long one begins a minute of its own, and is more than any bound.
    long: usize,
    minute: Instant,
}

/// Calls of one webhook beyond those that may run wait here, so that the threads' queue never holds more of it. Who has run
/// one takes the next from here: going by way of the caller would cost a busy dispatcher's whole round between two calls.
#[derive(Default)]
struct Line {
    running: usize,
    waiting: VecDeque<Job>,
}

impl Shares {
    /// At most half of the threads are one webhook's, and at least one.
    pub(super) fn new(threads: usize) -> Shares {
        Shares {
            known: Mutex::new(LruCache::unbounded()),
            at_once: (threads / 2).max(1),
            long_max: threads * 2,
            webhooks_max: WEBHOOKS_MAX,
        }
    }

    pub(super) fn of(&self, webhook: WebhookId) -> Arc<Share> {
        let mut known = lock(&self.known);
        let (at_once, long_max) = (self.at_once, self.long_max);
        let share = known
            .get_or_insert(webhook, || {
                let (line, cost) = (Mutex::default(), Mutex::new(None));
                Arc::new(Share { at_once, long_max, line, cost, quick: AtomicBool::new(false) })
            })
            .clone();
        // The oldest with calls in hand is passed over once for each newcomer, so this ends.
        for _ in 0..2 {
            if known.len() <= self.webhooks_max {
                break;
            }
            if let Some((webhook, oldest)) = known.pop_lru()
                && Arc::strong_count(&oldest) > 1
            {
                known.put(webhook, oldest);
            }
        }
        share
    }

    /// CPU seconds of one call, of late.
    pub(super) fn cost(&self, webhook: WebhookId) -> Option<f64> {
        let share = lock(&self.known).peek(&webhook).cloned()?;
        let cost = *lock(&share.cost);
        cost.filter(|cost| cost.at.elapsed() < COST_AGE_MAX).map(|cost| cost.seconds)
    }
}

impl Share {
    /// Gives a call back if it may run now. Otherwise it waits until one before it has ended.
    pub(super) fn begin(&self, mut job: Job) -> Option<Job> {
        let mut line = lock(&self.line);
        if line.running < self.at_once {
            line.running += 1;
            return Some(job);
        }
        job.place = None;
        line.waiting.push_back(job);
        None
    }

    /// One that ran has ended: the next may.
    pub(super) fn next(&self) -> Option<Job> {
        let mut line = lock(&self.line);
        let next = line.waiting.pop_front();
        line.running -= usize::from(next.is_none());
        next
    }

    pub(super) fn took(&self, cpu: Duration) {
        let newest = cpu.max(COST_MIN).as_secs_f64();
        let now = Instant::now();
        let recent = |at: &Instant| now.saturating_duration_since(*at) < COST_AGE_MAX;
        let mut cost = lock(&self.cost);
        let before = cost.filter(|cost| recent(&cost.at));
        let seconds = before.map_or(newest, |before| before.seconds + (newest - before.seconds) * WEIGHT);
        let (long, minute) = before
            .filter(|before| recent(&before.minute))
            .map_or((0, now), |before| (before.long, before.minute));
        let (long, minute) = match cpu {
            _ if cpu >= VERY_LONG => (usize::MAX, now),
            _ if cpu >= LONG => (long.saturating_add(1), minute),
            _ => (long, minute),
        };
        *cost = Some(Cost { seconds, at: now, long, minute });
        self.quick.store(seconds < QUICK.as_secs_f64() && long <= self.long_max, Relaxed);
    }

    /// Whether its calls were known to be quick when the last one ended.
    pub(super) fn is_quick(&self) -> bool {
        self.quick.load(Relaxed)
    }
}

/// What these hold is valid after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_follows_the_calls() {
        let shares = Shares::new(2);
        let webhook = WebhookId(1);
        assert_eq!(shares.cost(webhook), None);
        let share = shares.of(webhook);
        assert_eq!(shares.cost(webhook), None);
        share.took(Duration::from_millis(45));
        assert!((shares.cost(webhook).unwrap() - 0.045).abs() < 1e-9);
        for _ in 0..50 {
            share.took(Duration::from_millis(5));
        }
        assert!((shares.cost(webhook).unwrap() - 0.005).abs() < 0.001);
        share.took(Duration::ZERO);
        assert!(shares.cost(webhook).unwrap() > 0.0);
    }

    #[test]
    fn only_what_is_known_to_be_quick_is() {
        let share = Shares::new(2).of(WebhookId(1));
        assert!(!share.is_quick(), "nothing is known");
        share.took(Duration::from_micros(10));
        assert!(share.is_quick());
        (0..50).for_each(|_| share.took(Duration::from_millis(1)));
        assert!(!share.is_quick());
        (0..50).for_each(|_| share.took(Duration::from_micros(10)));
        assert!(share.is_quick());
        let slow_once = |ms| {
            share.took(Duration::from_millis(ms));
            assert!(!share.is_quick());
            (0..500).for_each(|_| share.took(Duration::from_micros(10)));
            share.is_quick()
        };
        assert!((0..4).all(|_| slow_once(5)), "each thread has a first call");
        assert!(!slow_once(5), "it is slow now and then");

        let share = Shares::new(2).of(WebhookId(2));
        share.took(Duration::from_millis(50));
        (0..500).for_each(|_| share.took(Duration::from_micros(10)));
        assert!(!share.is_quick(), "no first call takes so long");
    }

    #[test]
    fn idle_webhooks_are_forgotten_and_busy_ones_are_not() {
        let mut shares = Shares::new(4);
        shares.webhooks_max = 10;
        let busy = shares.of(WebhookId(0));
        for id in 1..1000 {
            drop(shares.of(WebhookId(id)));
        }
        assert!(lock(&shares.known).len() <= 11);
        assert!(Arc::ptr_eq(&busy, &shares.of(WebhookId(0))));
    }

    #[test]
    fn one_webhook_has_half_of_the_threads() {
        for (threads, at_once) in [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)] {
            assert_eq!(Shares::new(threads).of(WebhookId(1)).at_once, at_once);
        }
    }
}
