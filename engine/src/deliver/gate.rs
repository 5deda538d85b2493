//! Waiting for a connection that another caller opens. Whether it can be shared is only known once it is open.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, futures::OwnedNotified};

use super::{origin::Origin, pool::Pool};

/// Keeps callers from opening a connection each where one may serve them all.
#[derive(Default)]
pub(super) struct Gate {
    over: Arc<Notify>,
    shared: AtomicBool,
}

impl Gate {
    pub(super) fn waiter(self: &Arc<Gate>) -> Waiter {
        Waiter { gate: self.clone(), over: self.over.clone().notified_owned() }
    }

    pub(super) fn opening(self: &Arc<Gate>, pool: &Arc<Pool>, origin: &Origin) -> Opening {
        Opening { pool: pool.clone(), origin: origin.clone(), gate: self.clone() }
    }

    /// Notes that the connection is one for all.
    pub(super) fn share(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }
}

/// Somebody who waits for another caller's connection.
pub(super) struct Waiter {
    gate: Arc<Gate>,
    over: OwnedNotified,
}

impl Waiter {
    /// Returns whether the connection is one that can be shared.
    pub(super) async fn wait(self) -> bool {
        self.over.await;
        self.gate.shared.load(Ordering::Relaxed)
    }
}

/// Held while a connection is opened, and given up with it or without.
pub(super) struct Opening {
    pool: Arc<Pool>,
    origin: Origin,
    gate: Arc<Gate>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.pool.opening_over(&self.origin);
        self.gate.over.notify_waiters();
    }
}
