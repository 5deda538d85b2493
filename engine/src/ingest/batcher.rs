//! The commit loop: requests join the open batch, and it is sent when the last commit is done. One commit in
//! flight, no linger: under load the batches grow by themselves, and without load nobody waits.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Error, Pending, Queue, Receipt, Ring,
    batch::{Ids, Limits},
    queue::Item,
};
use crate::{
    metrics::Metrics,
    model::{AccountId, Batch, Event, EventId, Span},
    store::{
        self, Fault, Link, Text,
        events::{Committed, Insert},
    },
    stream,
};

/// Marks one commit carries.
const MARKS_MAX: usize = 1024;

/// Owns the connection of the group commit.
pub struct Batcher {
    pub link: Link,
    pub queue: Queue<Pending>,
    pub stream: stream::Handle,
    /// Where a dispatcher of this process looks first; none without one.
    pub ring: Option<Arc<Ring>>,
    pub owner: i64,
    pub batch_events_max: usize,
    pub batch_bytes_max: usize,
    pub commit_timeout: Duration,
    pub metrics: Arc<Metrics>,
}

/// Events of one group commit, with whom to answer.
struct Group {
    insert: Insert,
    waiting: Vec<Pending>,
}

impl Group {
    fn new(waiting: Vec<Pending>) -> Group {
        let insert = Insert {
            first: 0,
            accounts: waiting.iter().map(|p| p.account.0).collect(),
            kinds: waiting.iter().map(|p| p.kind.clone()).collect(),
            payloads: waiting.iter().map(|p| Text(p.payload.clone())).collect(),
        };
        Group { insert, waiting }
    }

    fn split(&mut self) -> Group {
        let insert = self.insert.split();
        let waiting = self.waiting.split_off(self.insert.accounts.len());
        Group { insert, waiting }
    }

    fn fail(self, error: &Error) {
        for pending in self.waiting {
            pending.refuse(error.clone());
        }
    }
}

impl Batcher {
    /// Runs until the queue is closed and empty.
    pub async fn run(mut self) {
        let limits = Limits { events: self.batch_events_max, bytes: self.batch_bytes_max };
        if let Err(error) = self.link.warm_commit().await {
            tracing::debug!(error = crate::chain(&error), "the first commit will have to connect");
        }
        let mut ids = Ids::default();
        let mut held: Option<Pending> = None;
        loop {
            let group = self.gather(limits, &mut held);
            if group.is_empty() {
                if self.queue.is_closed() && self.queue.len() == 0 {
                    return;
                }
                self.queue.filled().await;
                continue;
            }
            self.queue.taken(Instant::now());
            self.metrics.ingest.queued.set(self.queue.len() as f64);
            self.commit(Group::new(group), &mut ids).await;
        }
    }

    /// Takes what fits into one batch. The event that did not fit any more is held for the next.
    fn gather(&self, limits: Limits, held: &mut Option<Pending>) -> Vec<Pending> {
        let mut group: Vec<Pending> = held.take().into_iter().collect();
        let mut bytes: usize = group.iter().map(Pending::bytes).sum();
        while group.len() < limits.events
            && let Some(pending) = self.queue.pop()
        {
            bytes += pending.bytes();
            if !limits.takes(group.len(), bytes) {
                *held = Some(pending);
                break;
            }
            group.push(pending);
        }
        group
    }

    /// Commits a group, whatever it takes within the time-out, and answers everybody in it.
    async fn commit(&mut self, group: Group, ids: &mut Ids<Instant>) {
        let deadline = Instant::now() + self.commit_timeout;
        let mut groups = vec![group];
        // Split groups are handled depth first; a group of one is answered with its own error.
        while let Some(mut group) = groups.pop() {
            if group.insert.first == 0 {
                match self.ids(ids, group.waiting.len(), deadline).await {
                    Ok(first) => group.insert.first = first,
                    Err(error) => {
                        self.refuse(group, error);
                        continue;
                    }
                }
            }
            match self.insert(&group.insert, ids, deadline).await {
                Ok(committed) => self.accept(group, committed),
                Err(error) if error.fault() == Fault::Row => {
                    self.metrics.ingest.splits.increment(1);
                    if group.waiting.len() == 1 {
                        self.metrics.ingest.rejected.increment(1);
                        group.fail(&Error::Rejected(Arc::new(error)));
                    } else {
                        let upper = group.split();
                        groups.push(upper);
                        groups.push(group);
                    }
                }
                Err(error) => self.refuse(group, error),
            }
        }
    }

    fn refuse(&self, group: Group, error: store::Error) {
        self.metrics.ingest.unavailable.increment(group.waiting.len() as u64);
        tracing::debug!(error = crate::chain(&error), "batch refused");
        group.fail(&match error {
            store::Error::Slow => Error::Late,
            error => Error::Store(Arc::new(error)),
        });
    }

    /// Ids for `n` events, fetching a block when none is at hand.
    async fn ids(
        &mut self,
        ids: &mut Ids<Instant>,
        n: usize,
        deadline: Instant,
    ) -> Result<i64, store::Error> {
        loop {
            if let Some(first) = ids.take(n, Instant::now()) {
                return Ok(first);
            }
            match self.link.block().await {
                Ok(block) => ids.bring(block, Instant::now()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => pause(deadline).await,
            }
        }
    }

    /// Inserts once, however often it has to be tried: after an outcome that is not known, the batch is
    /// looked for by its first id before the same ids are inserted again.
    async fn insert(
        &mut self,
        insert: &Insert,
        ids: &mut Ids<Instant>,
        deadline: Instant,
    ) -> Result<Committed, store::Error> {
        let mut unknown = false;
        loop {
            let error = match self.insert_once(insert, ids, &mut unknown).await {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            match error.fault() {
                // With an outcome unknown before, a key that is there already is our own.
                Fault::Row if !unknown => return Err(error),
                Fault::Unknown => {
                    unknown = true;
                    self.metrics.ingest.unknown.increment(1);
                }
                Fault::Row | Fault::Again => {}
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            pause(deadline).await;
        }
    }

    async fn insert_once(
        &mut self,
        insert: &Insert,
        ids: &mut Ids<Instant>,
        unknown: &mut bool,
    ) -> Result<Committed, store::Error> {
        if *unknown && let Some(committed) = self.link.look_up(insert, self.owner).await? {
            return Ok(committed);
        }
        let start = Instant::now();
        let marks = self.stream.take_marks(MARKS_MAX);
        let want_block = ids.wants_block(start);
        let outcome = self.link.commit(insert, self.owner, &marks, want_block).await;
        match &outcome {
            Ok(committed) => {
                self.stream.marked(&marks);
                if let Some(block) = committed.block {
                    ids.bring(block, start);
                }
                self.metrics.ingest.commit_seconds.record(start.elapsed().as_secs_f64());
            }
            Err(_) => self.stream.unmarked(marks),
        }
        outcome
    }

    /// Answers first, then puts the batch on its way to dispatch.
    fn accept(&self, group: Group, committed: Committed) {
        let span =
            Span { first: EventId(group.insert.first), n: group.insert.len(), version: committed.version };
        let mut events = Vec::with_capacity(if self.ring.is_some() { group.waiting.len() } else { 0 });
        for (id, pending) in (span.first.0..).zip(group.waiting) {
            let receipt = Receipt { id: EventId(id), created_at: committed.at };
            let _ = pending.answer.send(Ok(receipt));
            if self.ring.is_some() {
                events.push(event(receipt, pending.account, pending.kind, pending.payload));
            }
        }
        self.metrics.ingest.accepted.increment(span.n.unsigned_abs().into());
        self.metrics.ingest.batch_events.record(f64::from(span.n));
        if let Some(ring) = &self.ring {
            ring.put(Batch { span, events });
        }
        self.stream.send(span, false);
    }
}

fn event(receipt: Receipt, account: AccountId, kind: Box<str>, payload: bytes::Bytes) -> Arc<Event> {
    Arc::new(Event { id: receipt.id, account, kind, payload, created_at: receipt.created_at })
}

/// Between two tries of a batch: short, so that a Postgres restart is noticed, and never past the deadline.
async fn pause(deadline: Instant) {
    let soon = Instant::now() + Duration::from_millis(50);
    tokio::time::sleep_until(soon.min(deadline)).await;
}
