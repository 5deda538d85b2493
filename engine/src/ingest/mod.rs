//! From an accepted request to a committed event.
//!
//! A 201 is given after the commit and not before (P1). A crash before the commit loses only what nobody
//! was told was accepted; a crash after it leaves a batch row that another process streams.

mod batch;
mod batcher;
mod carrier;
mod commit;
mod counter;
mod event;
mod held;
pub mod keys;
mod load;
pub mod marks;
mod parcel;
mod queue;
mod ring;
mod stagger;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use self::queue::Item;
pub use self::{
    batcher::Batcher,
    carrier::Carrier,
    commit::Commits,
    counter::Counter,
    event::{Draft, Invalid},
    held::{Permit, Room},
    load::{Format, Load, Most, TOO_LARGE, TOO_MANY},
    parcel::{Parcel, Receipts, key},
    queue::{Bounds, Queue},
    ring::Ring,
};
use crate::{
    model::{AccountId, EventId, Timestamp, Trace},
    store,
};

/// Why an event was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("the ingest queue is full")]
    Full,
    #[error("the account holds half of the ingest queue while others wait")]
    Share,
    #[error("the idempotency key belongs to a request with other events")]
    KeyReused,
    #[error("the commit did not come in time")]
    Late,
    #[error("the commit failed")]
    Store(#[source] Arc<store::Error>),
    #[error("Postgres refuses this event")]
    Rejected(#[source] Arc<store::Error>),
    #[error("the process is stopping")]
    Stopping,
}

/// What an accepted event got.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    pub id: EventId,
    pub created_at: Timestamp,
}

type Answer = Result<Receipt, Error>;

/// An event that waits for its commit.
pub struct Pending {
    account: AccountId,
    kind: Box<str>,
    payload: Bytes,
    /// Boxed, because few have one.
    trace: Option<Box<Trace>>,
    answer: oneshot::Sender<Answer>,
}

impl Item for Pending {
    fn account(&self) -> AccountId {
        self.account
    }

    fn events(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.kind.len() + self.payload.len()
    }

    fn refuse(self, error: Error) {
        // The producer may have gone; nobody is left to tell.
        let _ = self.answer.send(Err(error));
    }
}

impl Queue<Pending> {
    /// Commits an event.
    ///
    /// # Errors
    /// At once those of [`push`](Queue::push), and later that of the commit.
    ///
    /// # Cancel safety
    /// A dropped call leaves the event in the queue: it may be committed all the same.
    pub async fn submit(
        &self,
        account: AccountId,
        draft: Draft,
        trace: Option<Box<Trace>>,
    ) -> Result<Receipt, Error> {
        let (answer, receipt) = oneshot::channel();
        self.push(Pending { account, kind: draft.kind, payload: draft.payload, trace, answer })?;
        receipt.await.unwrap_or(Err(Error::Stopping))
    }
}
