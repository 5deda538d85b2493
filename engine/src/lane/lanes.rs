//! All lanes of one process, made on demand and forgotten when idle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Lane, Limits};
use crate::model::{IdMap, WebhookId};

/// The lanes of one process.
pub struct Lanes<T> {
    limits: Limits,
    lanes: Mutex<IdMap<WebhookId, Arc<Lane<T>>>>,
}

/// What all lanes hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub lanes: usize,
    pub queued: usize,
    pub slow: usize,
    pub open: usize,
}

impl<T> Lanes<T> {
    pub fn new(limits: Limits) -> Lanes<T> {
        Lanes { limits, lanes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, IdMap<WebhookId, Arc<Lane<T>>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, webhook: WebhookId) -> Arc<Lane<T>> {
        self.lock().entry(webhook).or_insert_with(|| Arc::new(Lane::new(self.limits))).clone()
    }

    /// Every lane there is now.
    pub fn all(&self) -> Vec<(WebhookId, Arc<Lane<T>>)> {
        self.lock().iter().map(|(webhook, lane)| (*webhook, lane.clone())).collect()
    }

    /// Forgets idle lanes nobody is about to use, and counts the rest.
    pub fn tidy(&self) -> Totals {
        let mut lanes = self.lock();
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.is_idle());
        // A table keeps its room; after a crowd has gone it is given back.
        if lanes.capacity() > 4 * lanes.len().max(256) {
            lanes.shrink_to_fit();
        }
        let mut totals = Totals { lanes: lanes.len(), ..Totals::default() };
        for lane in lanes.values() {
            let standing = lane.standing();
            totals.queued += standing.queued;
            totals.slow += usize::from(standing.slow);
            totals.open += usize::from(standing.open);
        }
        totals
    }
}
