//! Entries that were read and are not yet acked, by their id and by their batch.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::stream::Entry;

/// Which entries this process holds.
#[derive(Clone, Default)]
pub(super) struct Opened {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    batch_of: HashMap<String, i64>,
    batches: HashSet<i64>,
}

impl Opened {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an entry. False when it, or another entry of its batch, is held already.
    pub(super) fn insert(&self, entry: &Entry) -> bool {
        let mut inner = self.inner();
        let first = entry.span.first.0;
        let new = !inner.batch_of.contains_key(&entry.id) && inner.batches.insert(first);
        if new {
            inner.batch_of.insert(entry.id.clone(), first);
        }
        new
    }

    pub(super) fn remove(&self, id: &str) {
        let mut inner = self.inner();
        if let Some(first) = inner.batch_of.remove(id) {
            inner.batches.remove(&first);
        }
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.inner().batch_of.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventId, Span};

    #[test]
    fn a_batch_is_held_once() {
        let entry = |id: &str, first| Entry {
            id: id.to_owned(),
            span: Span { first: EventId(first), n: 1, version: 1 },
            check: false,
        };
        let opened = Opened::default();
        assert!(opened.insert(&entry("1-0", 7)));
        assert!(!opened.insert(&entry("1-0", 7)), "the same entry");
        assert!(!opened.insert(&entry("2-0", 7)), "another entry of the same batch");
        opened.remove("2-0");
        assert!(opened.contains("1-0") && !opened.contains("2-0"));
        opened.remove("1-0");
        assert!(opened.insert(&entry("2-0", 7)));
    }
}
