//! The sweep: removes a batch row once every event in it is accounted for, and schedules what is missing.
//!
//! In a run without faults it never finds anything missing; its counter is the canary. One process sweeps
//! at a time. Batches whose entry is still in the stream are left alone: their work is in hand.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::account::{self, Counted};
use crate::{
    metrics::Metrics,
    model::{EventId, Key, Span},
    store::{self, Link, Store},
    stream::{self, Gate, consumer::Claims, due::Due, epoch::Epochs},
};

/// Batches looked at with one pair of queries.
const PAGE: usize = 500;

/// Entries of the stream that are compared. With more, dispatch is far behind and nothing follows from what
/// is missing.
const STREAM_MAX: usize = 20_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the sweep could not ask Postgres")]
    Store(#[from] store::Error),
    #[error("the sweep could not ask Redis")]
    Stream(#[from] stream::Error),
}

/// What the sweep needs.
pub struct Sweep {
    pub store: Store,
    /// Holds the advisory lock that makes one process the sweeper.
    pub lock: Link,
    pub claims: Claims,
    pub epochs: Epochs,
    pub due: Due,
    pub gate: Gate,
    pub after: Duration,
    pub every: Duration,
    pub expiry: Duration,
    pub metrics: Arc<Metrics>,
}

impl Sweep {
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = crate::stopped(&mut stop) => return,
            }
            // A pass may take minutes after an outage, and whoever sweeps next begins at the same place.
            let outcome = tokio::select! {
                outcome = self.pass() => outcome,
                () = crate::stopped(&mut stop) => return,
            };
            if let Err(error) = outcome {
                tracing::debug!(error = crate::chain(&error), "nothing swept");
            }
        }
    }

    /// Looks at every batch that is old enough, once.
    async fn pass(&mut self) -> Result<(), Error> {
        if !self.lock.try_sweep_lock().await? {
            return Ok(());
        }
        // Without the index nothing follows from what is not in it.
        let Some(epoch) = self.gate.epoch() else { return Ok(()) };
        let (mut cursor, mut missing, mut all) = (EventId(0), 0, false);
        // What comes of age meanwhile is for the next pass: under load there is always some, and a pass would never end.
        while !all && self.claims.stream_length().await? <= STREAM_MAX {
            let mut spans;
            (spans, all) = self.old_batches(&mut cursor).await?;
            if spans.is_empty() {
                break;
            }
            // In this order: what is marked was in the stream before we look there, and an entry leaves it only
            // after its outcomes are committed, so what is not in it now is in Postgres by the time we ask.
            let Some(in_stream) = self.claims.batches_in_stream(STREAM_MAX).await? else { break };
            if !self.epochs.holds(&epoch).await? {
                self.gate.doubt();
                break;
            }
            spans.retain(|span| !in_stream.contains(&span.first.0));
            for page in spans.chunks(PAGE) {
                missing += self.account_for(page).await?;
            }
        }
        if missing > 0 {
            tracing::warn!(deliveries = missing, "what was missing is scheduled again");
        }
        self.metrics.recover.owed.set(self.store.count_batches().await? as f64);
        Ok(())
    }

    /// The next batches that are old enough, so many that the stream is looked through once for all of them, and whether they are the
    /// last ones.
    async fn old_batches(&self, cursor: &mut EventId) -> Result<(Vec<Span>, bool), Error> {
        let after_ms = i64::try_from(self.after.as_millis()).unwrap_or(i64::MAX);
        let mut spans = Vec::new();
        while spans.len() < STREAM_MAX {
            // In pages: a row takes fifty times as much while it is read as the span that is made of it.
            let page = self.store.streamed_batches(after_ms, *cursor, PAGE as i64).await?;
            let Some(last) = page.last() else { return Ok((spans, true)) };
            *cursor = last.first;
            let full = page.len() == PAGE;
            spans.extend(page);
            if !full {
                return Ok((spans, true));
            }
        }
        Ok((spans, false))
    }

    /// Returns how many deliveries were missing.
    async fn account_for(&mut self, spans: &[Span]) -> Result<u64, Error> {
        let counted = account::count(&self.store, spans).await?;
        let mut missing = 0;
        for span in &counted.open {
            missing += self.compare(*span, &counted).await?;
        }
        self.store.remove_batches(spans).await?;
        self.metrics.recover.swept.increment(spans.len() as u64);
        Ok(missing)
    }

    /// Schedules the deliveries of a batch that are neither final nor scheduled.
    async fn compare(&mut self, span: Span, counted: &Counted) -> Result<u64, Error> {
        let settled: HashSet<Key> = self.store.settled(span).await?.into_iter().collect();
        let mut missing: Vec<Key> = Vec::new();
        for (event, account, kind) in self.store.outline(span).await? {
            let owed = counted.owed(account, &kind, span.version).map(|webhook| (event, webhook.id));
            missing.extend(owed.filter(|key| !settled.contains(key)));
        }
        if missing.is_empty() {
            return Ok(0);
        }
        let expires = i64::try_from(self.expiry.as_millis()).unwrap_or(i64::MAX);
        let scheduled = self.store.schedule_missing(&missing, expires).await?;
        self.metrics.recover.missing.increment(scheduled);
        let now: Vec<(Key, i64)> = missing.into_iter().map(|key| (key, 0)).collect();
        self.due.refill(&now, &self.gate).await?;
        Ok(scheduled)
    }
}
