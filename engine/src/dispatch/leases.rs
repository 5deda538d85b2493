//! What this dispatcher has leased from `due`, to be told again when Redis forgot it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::Context;
use crate::{
    model::{IdMap, Key},
    stream::due::Due,
};

/// Between two tries to tell a Redis that does not answer.
const AGAIN: Duration = Duration::from_millis(100);

/// All leases of this dispatcher.
#[derive(Clone, Default)]
pub(super) struct Leases {
    inner: Arc<Mutex<IdMap<Key, Instant>>>,
}

/// The right to send one delivery, until it ends or is dropped.
pub(super) struct Lease {
    key: Key,
    until: Instant,
    leases: Leases,
}

impl Lease {
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.leases.inner();
        // A later lease of the same delivery has taken its place.
        if inner.get(&self.key) == Some(&self.until) {
            inner.remove(&self.key);
        }
    }
}

impl Leases {
    fn inner(&self) -> MutexGuard<'_, IdMap<Key, Instant>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, key: Key, until: Instant) -> Lease {
        self.inner().insert(key, until);
        Lease { key, until, leases: self.clone() }
    }

    /// Whether it is in hand.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.inner().contains_key(key)
    }

    /// With the milliseconds that each has left.
    fn all(&self) -> Vec<(Key, i64)> {
        let now = Instant::now();
        let left = |until: Instant| i64::try_from((until - now).as_millis()).unwrap_or(i64::MAX);
        self.inner().iter().map(|(key, until)| (*key, left(*until))).collect()
    }
}

/// Tells the leases again, once each time that Redis turns out not to be as it was left.
pub(super) async fn run(context: Arc<Context>, mut due: Due, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            biased;
            () = crate::stopped(&mut stop) => return,
            () = async { context.gate.past(&context.gate.open().await).await } => {}
        }
        while context.gate.epoch().is_none() && !*stop.borrow() {
            match due.keep(&context.leases.all()).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(error = crate::chain(&error), "leases not told"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventId, WebhookId};

    #[test]
    fn a_lease_is_known_until_it_is_dropped() {
        let (leases, key) = (Leases::default(), (EventId(1), WebhookId(2)));
        let first = leases.note(key, Instant::now() + Duration::from_secs(5));
        assert!(leases.all()[0].1 > 4000);
        let second = leases.note(key, Instant::now() + Duration::from_secs(9));
        drop(first);
        assert_eq!(leases.all().len(), 1, "the later one stands");
        drop(second);
        assert!(leases.all().is_empty());
    }
}
