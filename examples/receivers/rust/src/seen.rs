//! The ids of the last processed events, and of those being processed right now.
//!
//! This memory ends with the process and is not shared. With several processes, or where a repeat would cost money,
//! insert the id under a unique key in your database, in the same transaction as the event's effect.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct Seen {
    ids: Mutex<Ids>,
    remembered_max: usize,
}

#[derive(Default)]
struct Ids {
    busy: HashSet<String>,
    done: HashSet<String>,
    /// What is in `done`, oldest first.
    order: VecDeque<String>,
}

pub(crate) enum Begun<'a> {
    New(Busy<'a>),
    Busy,
    Duplicate,
}

/// An id that is being processed. Dropped, by an error or a panic, it leaves no trace.
pub(crate) struct Busy<'a> {
    seen: &'a Seen,
    id: String,
}

impl Seen {
    pub(crate) fn new(remembered_max: usize) -> Self {
        Self { ids: Mutex::default(), remembered_max }
    }

    pub(crate) fn begin(&self, id: &str) -> Begun<'_> {
        let mut ids = self.lock();
        if ids.done.contains(id) {
            return Begun::Duplicate;
        }
        if !ids.busy.insert(id.to_owned()) {
            return Begun::Busy;
        }
        Begun::New(Busy { seen: self, id: id.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        // Nothing below can panic half way, so a poisoned lock still guards whole sets.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy<'_> {
    pub(crate) fn remember(self) {
        let mut ids = self.seen.lock();
        ids.done.insert(self.id.clone());
        ids.order.push_back(self.id.clone());
        if ids.order.len() > self.seen.remembered_max
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.done.remove(&oldest);
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.seen.lock().busy.remove(&self.id);
    }
}
