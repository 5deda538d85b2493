//! Committed batches on their way into the stream.
//!
//! A batch is known here from its commit until its mark `streamed` is committed too. While Redis is away
//! batches wait in memory in order, and past a bound in Postgres alone; ingest goes on. A crash loses
//! nothing: rows still marked new are streamed by whoever takes them over.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Connection, Error, Keys, entry};
use crate::{failpoint, metrics::Metrics, model::Span};

/// Entries of one XADD pipeline.
const PIPELINE: usize = 256;

/// A batch that waited longer may have been taken over by another process, as after this one was stopped and
/// went on: well below the ten beats after which that happens.
const STALE: Duration = Duration::from_secs(3);

/// A batch on its way.
struct Outgoing {
    span: Span,
    check: bool,
    since: Instant,
}

/// What others hold of the producer.
#[derive(Clone)]
pub struct Handle {
    sender: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
}

struct Shared {
    /// First ids from `send` until their mark is committed.
    known: Mutex<HashSet<i64>>,
    /// First ids in the stream whose mark is not committed yet.
    marks: Mutex<Vec<i64>>,
    metrics: Arc<Metrics>,
}

impl Handle {
    /// Puts a batch on its way. `check` says that it may be in the stream already. False past the bound: the batch
    /// stays in Postgres, to be found there as a leftover.
    pub fn send(&self, span: Span, check: bool) -> bool {
        if !lock(&self.shared.known).insert(span.first.0) {
            return true;
        }
        let taken = self.sender.try_send(Outgoing { span, check, since: Instant::now() }).is_ok();
        if !taken {
            lock(&self.shared.known).remove(&span.first.0);
            self.shared.metrics.stream.spilled.increment(1);
        }
        self.shared.metrics.stream.unsent.set((self.sender.max_capacity() - self.sender.capacity()) as f64);
        taken
    }

    /// Whether a batch is on its way or waits for its mark only.
    pub fn knows(&self, span: Span) -> bool {
        lock(&self.shared.known).contains(&span.first.0)
    }

    /// Takes up to `max` marks to be written. They come back by [`marked`](Handle::marked) or
    /// [`unmarked`](Handle::unmarked).
    pub fn take_marks(&self, max: usize) -> Vec<i64> {
        let mut marks = lock(&self.shared.marks);
        let rest = marks.len().min(max);
        marks.drain(..rest).collect()
    }

    /// The marks are committed.
    pub fn marked(&self, firsts: &[i64]) {
        let mut known = lock(&self.shared.known);
        for first in firsts {
            known.remove(first);
        }
    }

    /// The marks could not be written.
    pub fn unmarked(&self, firsts: Vec<i64>) {
        lock(&self.shared.marks).extend(firsts);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The loop that owns the XADDs.
pub struct Producer {
    receiver: mpsc::Receiver<Outgoing>,
    shared: Arc<Shared>,
    keys: Keys,
}

impl Producer {
    pub fn new(keys: Keys, unsent_max: usize, metrics: Arc<Metrics>) -> (Handle, Producer) {
        let (sender, receiver) = mpsc::channel(unsent_max);
        let shared =
            Arc::new(Shared { known: Mutex::new(HashSet::new()), marks: Mutex::new(Vec::new()), metrics });
        let handle = Handle { sender, shared: shared.clone() };
        (handle, Producer { receiver, shared, keys })
    }

    /// Runs until `stop` is set and everything sent so far is in the stream, or `patience` after it.
    pub async fn run(
        mut self,
        mut connection: Connection,
        mut stop: watch::Receiver<bool>,
        patience: Duration,
    ) {
        let mut batch = Vec::with_capacity(PIPELINE);
        loop {
            let n = tokio::select! {
                // Drain before stopping: what was committed should reach the stream.
                biased;
                n = self.receiver.recv_many(&mut batch, PIPELINE) => n,
                () = crate::stopped(&mut stop) => 0,
            };
            if n == 0 || !self.send(&mut connection, &mut batch, &mut stop, patience).await {
                return;
            }
        }
    }

    /// Sends until Redis has taken it. Returns whether to go on.
    async fn send(
        &self,
        connection: &mut Connection,
        batch: &mut Vec<Outgoing>,
        stop: &mut watch::Receiver<bool>,
        patience: Duration,
    ) -> bool {
        let metrics = &self.shared.metrics.stream;
        let mut wait = Duration::from_millis(20);
        let mut give_up = None;
        loop {
            let start = Instant::now();
            match self.xadd(connection, batch).await {
                Ok(()) => {
                    failpoint::hit("streamed");
                    metrics.send_seconds.record(start.elapsed().as_secs_f64());
                    metrics.sent.increment(batch.len() as u64);
                    lock(&self.shared.marks).extend(batch.drain(..).map(|b| b.span.first.0));
                    metrics.unsent.set(self.receiver.len() as f64);
                    return true;
                }
                Err(error) => {
                    metrics.send_failures.increment(1);
                    tracing::debug!(error = crate::chain(&error), "batches wait for Redis");
                }
            }
            // What Redis made of the pipeline is unknown: some of it may be in the stream.
            for outgoing in batch.iter_mut() {
                outgoing.check = true;
            }
            if *stop.borrow() {
                let until = *give_up.get_or_insert_with(|| Instant::now() + patience);
                if Instant::now() >= until {
                    return false;
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }

    async fn xadd(&self, connection: &mut Connection, batch: &[Outgoing]) -> Result<(), Error> {
        failpoint::hit("answered");
        let mut pipe = redis::pipe();
        for Outgoing { span, check, since } in batch {
            let command = pipe.cmd("XADD").arg(&self.keys.events).arg("*");
            for (field, value) in entry::encode(*span, *check || since.elapsed() > STALE) {
                command.arg(field).arg(value);
            }
            command.ignore();
        }
        Ok(pipe.query_async::<()>(connection).await?)
    }
}
