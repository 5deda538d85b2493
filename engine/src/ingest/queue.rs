//! What waits for a group commit: bounded by events and by bytes, refusing at once when full.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use crossbeam::queue::ArrayQueue;
use tokio::sync::{Notify, oneshot};

use super::{Draft, Error, Pending, Receipt};
use crate::{metrics::Metrics, model::AccountId};

/// The way into the batcher, shared by all connections.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    events: ArrayQueue<Pending>,
    bytes: AtomicUsize,
    bytes_max: usize,
    closed: AtomicBool,
    filled: Notify,
    metrics: Arc<Metrics>,
}

impl Queue {
    pub fn new(events_max: usize, bytes_max: usize, metrics: Arc<Metrics>) -> Queue {
        Queue {
            inner: Arc::new(Inner {
                events: ArrayQueue::new(events_max),
                bytes: AtomicUsize::new(0),
                bytes_max,
                closed: AtomicBool::new(false),
                filled: Notify::new(),
                metrics,
            }),
        }
    }

    /// Commits an event.
    ///
    /// # Errors
    /// [`Error::Full`] at once when the queue is full.
    ///
    /// # Cancel safety
    /// A dropped call leaves the event in the queue: it may be committed all the same.
    pub async fn submit(&self, account: AccountId, draft: Draft) -> Result<Receipt, Error> {
        let (answer, receipt) = oneshot::channel();
        let pending = Pending { account, kind: draft.kind, payload: draft.payload, answer };
        self.push(pending)?;
        receipt.await.unwrap_or(Err(Error::Stopping))
    }

    fn push(&self, pending: Pending) -> Result<(), Error> {
        let inner = &self.inner;
        if inner.closed.load(Relaxed) {
            return Err(Error::Stopping);
        }
        let size = pending.bytes();
        let before = inner.bytes.fetch_add(size, Relaxed);
        if before + size > inner.bytes_max || inner.events.push(pending).is_err() {
            inner.bytes.fetch_sub(size, Relaxed);
            inner.metrics.ingest.queue_full.increment(1);
            return Err(Error::Full);
        }
        inner.filled.notify_one();
        Ok(())
    }

    pub(super) fn pop(&self) -> Option<Pending> {
        let pending = self.inner.events.pop()?;
        self.inner.bytes.fetch_sub(pending.bytes(), Relaxed);
        Some(pending)
    }

    pub(super) fn len(&self) -> usize {
        self.inner.events.len()
    }

    /// Waits until something may be there.
    pub(super) async fn filled(&self) {
        self.inner.filled.notified().await;
    }

    /// Takes nothing more; the batcher ends once the queue is empty.
    pub fn close(&self) {
        self.inner.closed.store(true, Relaxed);
        self.inner.filled.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.closed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn draft(bytes: usize) -> Draft {
        Draft { kind: "t".into(), payload: Bytes::from(vec![b'1'; bytes]) }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_takes_again_when_emptied() {
        let queue = Queue::new(2, 100, Arc::new(Metrics::new()));
        let send = |bytes| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.submit(AccountId(1), draft(bytes)).await })
        };
        let waiting = [send(50), send(10)];
        tokio::task::yield_now().await;
        assert!(matches!(send(1).await.unwrap(), Err(Error::Full)), "events");
        assert!(queue.pop().is_some());
        assert!(matches!(send(95).await.unwrap(), Err(Error::Full)), "bytes");
        let third = send(40);
        tokio::task::yield_now().await;
        assert_eq!(queue.len(), 2);
        queue.close();
        assert!(matches!(send(1).await.unwrap(), Err(Error::Stopping)));
        while queue.pop().is_some() {}
        for task in waiting.into_iter().chain([third]) {
            assert!(matches!(task.await.unwrap(), Err(Error::Stopping)));
        }
    }
}
