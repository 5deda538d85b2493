//! The one task that exports: it gathers spans for a moment, sends them, and tries again for a while when the collector is away. Nobody
//! waits for it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Span, client::Endpoint, otlp};
use crate::metrics::Metrics;

/// Spans of one export.
const BATCH: usize = 512;

/// How long the first span of an export waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// Seconds between tries of one export; after the last it is dropped, so that a collector that comes back does not first get what is
/// long over.
const WAITS: [u64; 4] = [1, 2, 4, 8];

/// How long the end of a process waits for what is left to be exported.
const FLUSH: Duration = Duration::from_secs(3);

/// Owns the queue's end.
pub struct Exporter {
    queue: mpsc::Receiver<Span>,
    endpoint: Endpoint,
    resource: otlp::Resource,
    metrics: Arc<Metrics>,
}

impl Exporter {
    pub(super) fn new(
        queue: mpsc::Receiver<Span>,
        endpoint: Endpoint,
        resource: otlp::Resource,
        metrics: Arc<Metrics>,
    ) -> Exporter {
        Exporter { queue, endpoint, resource, metrics }
    }

    /// Runs until stopped, then exports what is there, once and for three seconds at most.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(BATCH);
        let ended = {
            let exporting = self.export_on(&mut batch);
            tokio::select! {
                biased;
                () = crate::stopped(&mut stop) => true,
                () = exporting => false,
            }
        };
        if !ended {
            return;
        }
        self.queue.close();
        let flushed = tokio::time::timeout(FLUSH, self.flush(&mut batch)).await.unwrap_or(false);
        if !flushed {
            let left = batch.len() + self.queue.len();
            self.metrics.trace.dropped.increment(left as u64);
            tracing::warn!(spans = left, "spans not exported at the end");
        }
    }

    /// # Cancel safety
    /// What was taken and not exported is in `batch`. An export that was under way may have been taken by the collector.
    async fn export_on(&mut self, batch: &mut Vec<Span>) {
        loop {
            if self.queue.recv_many(batch, BATCH).await == 0 {
                return;
            }
            let deadline = Instant::now() + LINGER;
            while batch.len() < BATCH {
                let more = self.queue.recv_many(batch, BATCH - batch.len());
                match tokio::time::timeout_at(deadline, more).await {
                    Ok(n) if n > 0 => {}
                    _ => break,
                }
            }
            self.insist(batch).await;
        }
    }

    /// Exports a batch, in several tries if need be, and empties it.
    async fn insist(&self, batch: &mut Vec<Span>) {
        let mut waits = WAITS.iter();
        loop {
            match (self.once(batch).await, waits.next()) {
                (Outcome::Done, _) => return,
                (Outcome::Again, Some(wait)) => tokio::time::sleep(Duration::from_secs(*wait)).await,
                (Outcome::Again, None) | (Outcome::Never, _) => break,
            }
        }
        self.metrics.trace.dropped.increment(batch.len() as u64);
        batch.clear();
    }

    /// False when the collector did not take all of it.
    async fn flush(&mut self, batch: &mut Vec<Span>) -> bool {
        loop {
            while batch.len() < BATCH
                && let Ok(span) = self.queue.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return true;
            }
            if !matches!(self.once(batch).await, Outcome::Done) {
                return false;
            }
        }
    }

    async fn once(&self, batch: &mut Vec<Span>) -> Outcome {
        let metrics = &self.metrics.trace;
        match self.endpoint.export(otlp::encode(&self.resource, batch)).await {
            Ok(answer) => {
                let sent = batch.len() as u64;
                let rejected = otlp::rejected(&answer).min(sent);
                metrics.exported.increment(sent - rejected);
                metrics.dropped.increment(rejected);
                batch.clear();
                Outcome::Done
            }
            Err(error) => {
                metrics.failures.increment(1);
                crate::logs::warn_seldom!(error = crate::chain(&error), "spans not exported");
                if error.may_pass() { Outcome::Again } else { Outcome::Never }
            }
        }
    }
}

enum Outcome {
    Done,
    Again,
    Never,
}
