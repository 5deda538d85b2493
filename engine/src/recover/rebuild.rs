//! Makes Redis's index again from Postgres, after Redis lost it or some of it: wiped, started again from an old file, failed over.
//!
//! Nobody takes work meanwhile (the gate is closed), and nobody did since the loss (guarded scripts). First everybody gets time to
//! say what is in hand: deliveries on the wire become rows of the schedule or end, leases are told again. Then each
//! batch that is owed and not in the stream is streamed again, flagged `check`; the feeder brings `due` back by itself.
//! All of it may be begun again at any point. Its cost goes with what is owed, not with what was ever delivered.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::account;
use crate::{
    metrics::Metrics,
    model::{EventId, Span},
    store::{self, Link, Store},
    stream::{
        self, Gate,
        consumer::Claims,
        epoch::{Epochs, Found},
    },
};

/// Between two looks at a shard that is in order, and at one that is not.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What everybody has, beyond `dispatch.hold`, to notice and to say what is in hand: two looks, and a blocked read.
const NOTICE: Duration = Duration::from_secs(2);

/// Longest that nobody takes work because of it, after that. What is missing then is left to the sweep.
const LONGEST: Duration = Duration::from_secs(20);

/// Batches counted by one pair of queries.
const PAGE: i64 = 500;

/// Batches for which the stream is looked through once.
const LOOK_MAX: usize = 50_000;

/// Entries of a stream that are compared with Postgres: 16 MB of ids. With more, what is missing is left to the sweep.
const IN_STREAM_MAX: usize = 2_000_000;

/// Rounds until every missing batch is in the stream. The second one finds nothing, unless Redis is in trouble again.
const PASSES: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the index could not be made: Postgres")]
    Store(#[from] store::Error),
    #[error("the index could not be made: Redis")]
    Stream(#[from] stream::Error),
}

/// Asks Redis up to where ids were handed out, and Postgres whether it knows of them.
///
/// # Errors
/// [`store::Error::Rewound`] when it does not.
pub async fn look_back(store: &Store, epochs: &mut Epochs) -> Result<(), Error> {
    if let Some(block) = epochs.highest().await? {
        store.address().must_know(block).await?;
    }
    Ok(())
}

/// Looks at a shard all the time, and rebuilds it when that is needed.
pub struct Rebuild {
    pub store: Store,
    /// Holds the advisory lock that makes one process do it.
    pub lock: Link,
    pub epochs: Epochs,
    pub claims: Claims,
    pub stream: stream::Handle,
    pub gate: Gate,
    pub me: i64,
    /// Time after which a delivery in hand stands in the schedule.
    pub hold: Duration,
    /// The highest block of ids that Redis was told of: 0 to begin with.
    pub told: i64,
    /// Whether work was taken here before: not to begin with.
    pub opened: bool,
    /// How many there were: 0 to begin with.
    pub rebuilds: u32,
    pub metrics: Arc<Metrics>,
}

impl Rebuild {
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let gate = self.gate.clone();
        loop {
            // What Redis remembers of an earlier life comes first.
            if self.told == 0
                && let Err(error) = look_back(&self.store, &mut self.epochs).await
            {
                tracing::debug!(error = crate::chain(&error), "the past not looked at");
            } else if let Err(error) = self.tell_highest().await {
                tracing::debug!(error = crate::chain(&error), "the highest id not told");
            }
            if let Err(error) = self.round(&mut stop).await {
                tracing::debug!(error = crate::chain(&error), "Redis not looked over");
            }
            let open = gate.epoch().is_some();
            self.show(open);
            tokio::select! {
                () = tokio::time::sleep(if open { LOOK } else { LOOK_AGAIN }) => {}
                () = gate.doubted() => {}
                () = crate::stopped(&mut stop) => return,
            }
        }
    }

    async fn tell_highest(&mut self) -> Result<(), stream::Error> {
        let highest = self.store.address().history().highest();
        if highest > self.told {
            self.epochs.tell_highest(highest).await?;
            self.told = highest;
        }
        Ok(())
    }

    fn show(&self, open: bool) {
        self.metrics.recover.in_order.set(if open { 1.0 } else { 0.0 });
    }

    /// One look, and what follows from it. A Redis that cannot be asked tells nothing: the gate stays as it is.
    async fn round(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Error> {
        match self.epochs.look().await? {
            Found::InOrder(epoch) => {
                if self.gate.epoch().as_ref() != Some(&epoch) {
                    self.epochs.load_scripts().await?;
                    self.gate.set(Some(epoch));
                    self.opened = true;
                }
                Ok(())
            }
            Found::OutOfOrder(run_id) => {
                self.gate.set(None);
                self.show(false);
                self.told = 0;
                if !self.lock.try_rebuild_lock().await? {
                    return Ok(());
                }
                let outcome = self.rebuild(&run_id, stop).await;
                self.lock.release_rebuild_lock().await?;
                outcome
            }
        }
    }

    async fn rebuild(&mut self, run_id: &str, stop: &mut watch::Receiver<bool>) -> Result<(), Error> {
        let start = Instant::now();
        self.rebuilds += 1;
        let token = format!("{}.{}", self.me, self.rebuilds);
        self.epochs.begin(&token).await?;
        // With nobody who could have anything in hand, as at a first start, there is nothing to wait for.
        if self.opened || self.store.other_instances(self.me).await? > 0 {
            tracing::warn!("Redis is not as it was left: its index is made again from Postgres");
            self.metrics.recover.rebuilds.increment(1);
            tokio::select! {
                () = tokio::time::sleep(self.hold + NOTICE) => {}
                () = crate::stopped(stop) => return Ok(()),
            }
        }
        let streamed = match tokio::time::timeout(LONGEST, self.stream_missing(stop)).await {
            Ok(streamed) => streamed?,
            Err(_) => {
                tracing::warn!("not all of the index in time; the sweep finds what is missing");
                0
            }
        };
        if self.epochs.finish(&token, run_id).await? {
            self.metrics.recover.restreamed.increment(streamed);
            self.metrics.recover.rebuild_seconds.record(start.elapsed().as_secs_f64());
            tracing::info!(
                batches = streamed,
                seconds = start.elapsed().as_secs_f32(),
                "Redis's index is in order"
            );
        }
        Ok(())
    }

    /// Streams again what is owed and not in the stream, until all of it is. Returns how many batches that were.
    async fn stream_missing(&mut self, stop: &watch::Receiver<bool>) -> Result<u64, Error> {
        let mut streamed = 0;
        for _ in 0..PASSES {
            let missing = self.pass(stop).await?;
            if missing == 0 || *stop.borrow() {
                break;
            }
            streamed += missing;
            tracing::debug!(batches = missing, "streamed again");
            // The producer has them by now, and Redis very soon.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(streamed)
    }

    /// In this order: what is marked was in the stream before we look there, so what is not there now was lost or is settled.
    async fn pass(&mut self, stop: &watch::Receiver<bool>) -> Result<u64, Error> {
        let (mut cursor, mut missing) = (EventId(0), 0);
        loop {
            let mut spans = self.candidates(&mut cursor).await?;
            // Batches that are committed from here on are in nobody's lost index; to wait for their end would be to run after ingest.
            let all = spans.len() < LOOK_MAX;
            let Some(in_stream) = self.claims.batches_in_stream(IN_STREAM_MAX).await? else {
                tracing::warn!("the stream is too long to be compared; the sweep finds what is missing");
                return Ok(missing);
            };
            spans.retain(|span| !in_stream.contains(&span.first.0));
            for page in spans.chunks(PAGE as usize) {
                for span in account::count(&self.store, page).await?.open {
                    if !self.send(span, stop).await {
                        return Ok(missing);
                    }
                    missing += 1;
                }
            }
            if all {
                return Ok(missing);
            }
        }
    }

    /// The next batches that are marked as streamed, so many that the stream is looked through once for all of them.
    async fn candidates(&self, cursor: &mut EventId) -> Result<Vec<Span>, Error> {
        let mut spans = Vec::new();
        while spans.len() < LOOK_MAX {
            let page = self.store.streamed_batches(0, *cursor, PAGE).await?;
            let (Some(last), full) = (page.last(), page.len() as i64 == PAGE) else { break };
            *cursor = last.first;
            spans.extend(page);
            if !full {
                break;
            }
        }
        Ok(spans)
    }

    /// Waits for room. False when there is to be no more.
    async fn send(&self, span: Span, stop: &watch::Receiver<bool>) -> bool {
        while !self.stream.send(span, true) {
            if *stop.borrow() {
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        true
    }
}
