//! Requests that are accepted whole or not at all: several events, or events under an idempotency key.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::{Error, Item, Load};
use crate::{
    model::{AccountId, EventId, Timestamp, Trace, Traced},
    store::parcels::{self, Cargo, Key},
};

/// What a request's events got.
#[derive(Clone, Debug)]
pub struct Receipts {
    /// First ids of the runs, in the order of the events.
    pub(super) firsts: Vec<i64>,
    pub created_at: Timestamp,
    /// Whether they were given before, to the first request with the same key.
    pub replayed: bool,
}

impl Receipts {
    /// The id of an event by its place in the request.
    pub fn id(&self, event: usize) -> EventId {
        EventId(parcels::id(&self.firsts, event))
    }
}

/// A request that waits for its commit.
pub struct Parcel {
    pub(super) account: AccountId,
    pub(super) load: Arc<Load>,
    pub(super) key: Option<Key>,
    pub(super) trace: Option<Traced>,
    /// Given once, and kept over every try: an outcome that is not known can be looked up because of it.
    pub(super) firsts: Vec<i64>,
    pub(super) answer: oneshot::Sender<Result<Receipts, Error>>,
}

impl Parcel {
    pub(super) fn accept(self, created_at: Timestamp) {
        // The producer may have gone; nobody is left to tell.
        let _ = self.answer.send(Ok(Receipts { firsts: self.firsts, created_at, replayed: false }));
    }
}

impl Item for Parcel {
    fn account(&self) -> AccountId {
        self.account
    }

    fn events(&self) -> usize {
        self.load.len()
    }

    fn bytes(&self) -> usize {
        self.load.bytes()
    }

    fn refuse(self, error: Error) {
        // The producer may have gone; nobody is left to tell.
        let _ = self.answer.send(Err(error));
    }
}

impl Cargo for Parcel {
    fn account(&self) -> AccountId {
        self.account
    }

    fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    fn count(&self) -> usize {
        self.load.len()
    }

    fn firsts(&self) -> &[i64] {
        &self.firsts
    }

    fn kind(&self, event: usize) -> &str {
        self.load.kind(event)
    }

    fn payload(&self, event: usize) -> &[u8] {
        self.load.payload(event)
    }

    fn trace(&self, event: usize) -> Option<Trace> {
        self.trace.map(|traced| traced.of(event))
    }
}

/// Makes the stored key of what a producer sent as `Idempotency-Key` with this load.
pub fn key(text: &[u8], load: &Load) -> Key {
    let digest: [u8; 32] = Sha256::digest(text).into();
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest[..16]);
    Key { hash, body: load.hash() }
}
