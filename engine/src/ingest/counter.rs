//! The ways into the two carriers, and how they are set up.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Bounds, Carrier, Commits, Error, Item, Load, Parcel, Queue, Receipts};
use crate::{
    config::Config,
    model::{AccountId, Traced},
    store::parcels::{Key, Way},
};

/// Events and bytes up to which a request with a key goes with the small ones. A larger one would hold them up.
const SMALL_EVENTS: usize = 256;
const SMALL_BYTES: usize = 1 << 20;

/// Requests of the largest kind that may wait, and while the queue is standing.
const BULK_WAITING: usize = 8;
const BULK_STANDING: usize = 2;

/// Where requests that are accepted whole are handed in.
#[derive(Clone)]
pub struct Counter {
    /// Few events under a key.
    small: Queue<Parcel>,
    /// Everything else, so that a request of ten thousand events does not hold up one of a single event.
    bulk: Queue<Parcel>,
}

impl Counter {
    /// Makes the carriers, which are to be run, and the way into them.
    pub fn open(config: &Config, commits: &Commits) -> (Counter, [Carrier; 2]) {
        let settings = &config.ingest;
        let small_bounds = Bounds {
            events_max: settings.queue_events_max,
            bytes_max: settings.queue_bytes_max,
            standing_events_max: settings.standing_events_max,
        };
        let bulk_bounds = Bounds {
            events_max: settings.bulk_events_max * BULK_WAITING,
            // Their bytes are bounded before they are read.
            bytes_max: config.http.held_bytes_max,
            standing_events_max: settings.bulk_events_max * BULK_STANDING,
        };
        let counter = Counter {
            small: Queue::new(small_bounds, commits.metrics.clone()),
            bulk: Queue::new(bulk_bounds, commits.metrics.clone()),
        };
        let carrier = |queue: &Queue<Parcel>, way, events_max, bytes_max| {
            Carrier::new(queue.clone(), commits.clone(), way, events_max, bytes_max)
        };
        let (events, bytes) = (settings.batch_events_max, settings.batch_bytes_max);
        let small = carrier(&counter.small, Way::Statement, events, bytes);
        let (events, bytes) = (settings.bulk_events_max, settings.bulk_bytes_max);
        let bulk = carrier(&counter.bulk, Way::Copy, events, bytes);
        (counter, [small, bulk])
    }

    /// Commits a request.
    ///
    /// # Errors
    /// At once those of the queue, and later that of the commit.
    ///
    /// # Cancel safety
    /// A dropped call leaves the request in its queue: it may be committed all the same.
    pub async fn submit(
        &self,
        account: AccountId,
        load: Arc<Load>,
        key: Option<Key>,
        trace: Option<Traced>,
    ) -> Result<Receipts, Error> {
        let (answer, receipts) = oneshot::channel();
        let parcel = Parcel { account, load, key, trace, firsts: Vec::new(), answer };
        let small = key.is_some() && parcel.events() <= SMALL_EVENTS && parcel.bytes() <= SMALL_BYTES;
        if small { &self.small } else { &self.bulk }.push(parcel)?;
        receipts.await.unwrap_or(Err(Error::Stopping))
    }

    /// Takes nothing more; the carriers end once they have carried what waits.
    pub fn close(&self) {
        self.small.close();
        self.bulk.close();
    }
}
