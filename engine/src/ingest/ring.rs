//! Recent commits, for a dispatcher in the same process: it finds a batch here and reads nothing.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::model::{Batch, EventId, IdMap};

/// Bounded by events and bytes; the oldest batch goes first. Shared by the two roles' threads.
pub struct Ring {
    events_max: usize,
    bytes_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    batches: IdMap<i64, Batch>,
    order: VecDeque<i64>,
    events: usize,
    bytes: usize,
}

fn bytes(batch: &Batch) -> usize {
    batch.events.iter().map(|e| e.payload.len() + e.kind.len()).sum()
}

impl Ring {
    pub fn new(events_max: usize, bytes_max: usize) -> Ring {
        Ring { events_max, bytes_max, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a batch until it is taken or pushed out.
    pub fn put(&self, batch: Batch) {
        let mut inner = self.inner();
        inner.events += batch.events.len();
        inner.bytes += bytes(&batch);
        inner.order.push_back(batch.span.first.0);
        inner.batches.insert(batch.span.first.0, batch);
        while inner.events > self.events_max
            || inner.bytes > self.bytes_max
            || inner.order.len() > self.events_max
        {
            match inner.order.pop_front() {
                Some(first) => drop(inner.remove(first)),
                None => break,
            }
        }
    }

    /// Takes a batch out. A second reader of the same batch reads Postgres.
    pub fn take(&self, first: EventId) -> Option<Batch> {
        let mut inner = self.inner();
        let taken = inner.remove(first.0);
        // Batches are taken about in the order they came; names of taken ones must not pile up.
        while inner.order.front().is_some_and(|first| !inner.batches.contains_key(first)) {
            inner.order.pop_front();
        }
        taken
    }
}

impl Inner {
    fn remove(&mut self, first: i64) -> Option<Batch> {
        let batch = self.batches.remove(&first)?;
        self.events -= batch.events.len();
        self.bytes -= bytes(&batch);
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::model::{AccountId, Event, Span, Timestamp};

    fn batch(first: i64, n: i32) -> Batch {
        let event = |id| {
            Arc::new(Event {
                id: EventId(id),
                account: AccountId(1),
                kind: "t".into(),
                payload: Bytes::from_static(b"{}"),
                created_at: Timestamp(0),
                trace: None,
            })
        };
        Batch {
            span: Span { first: EventId(first), n, version: 1 },
            events: (first..first + i64::from(n)).map(event).collect(),
        }
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let ring = Ring::new(10, 1 << 20);
        for first in [0, 4, 8] {
            ring.put(batch(first, 4));
        }
        assert!(ring.take(EventId(0)).is_none());
        assert_eq!(ring.take(EventId(4)).unwrap().events.len(), 4);
        assert!(ring.take(EventId(4)).is_none());
        assert_eq!(ring.inner().events, 4);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let ring = Ring::new(1000, 20);
        ring.put(batch(0, 4));
        ring.put(batch(4, 4));
        assert!(ring.take(EventId(0)).is_none());
        assert!(ring.take(EventId(4)).is_some());
        assert_eq!(ring.inner().bytes, 0);
        assert!(ring.inner().order.is_empty());
    }
}
