//! Settling: first one Postgres statement for a batch of outcomes, then one MULTI in Redis.
//!
//! The second step is a cache of the first. A crash between the two leaves an entry pending or a member in
//! `due`; both are compared with Postgres before anything is sent again. A crash between a reply and the first
//! step repeats that delivery.

mod entry;
mod recorder;

use std::sync::Arc;

use tokio::sync::mpsc;

pub use self::{
    entry::Open,
    recorder::{Parts, Recorder},
};
use crate::store::settle::Record;

/// Something to settle: an outcome, the entry it belongs to, and what is freed once it is recorded.
pub struct Item<P> {
    pub record: Option<Record>,
    /// The stream entry that this outcome lets go of; none for deliveries from the schedule, and for those
    /// still in flight.
    pub entry: Option<Arc<Open>>,
    /// Given back after the record is committed, so that a stalled Postgres stops reading by itself.
    pub permit: Option<P>,
}

/// What others hold of the recorder.
pub struct Handle<P> {
    sender: mpsc::Sender<Item<P>>,
}

impl<P> Clone for Handle<P> {
    fn clone(&self) -> Handle<P> {
        Handle { sender: self.sender.clone() }
    }
}

impl<P> Handle<P> {
    /// Hands an outcome to the recorder; waits while its queue is full.
    pub async fn settle(&self, item: Item<P>) {
        // The recorder ends after everything that could send has ended; what is lost then was not acked.
        let _ = self.sender.send(item).await;
    }
}
