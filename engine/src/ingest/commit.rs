//! One group commit: whatever it takes within the time-out, and an answer to everybody in it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Error, Pending, Receipt, Ring, batch::Ids, queue::Item};
use crate::{
    failpoint,
    metrics::Metrics,
    model::{Batch, Event, EventId, Span, Trace},
    store::{
        self, Address, Fault, Link, Text,
        events::{Committed, Insert},
    },
    stream,
};

/// What the commits of a gateway share.
#[derive(Clone)]
pub struct Commits {
    pub address: Address,
    pub stream: stream::Handle,
    /// Where a dispatcher of this process looks first; none without one.
    pub ring: Option<Arc<Ring>>,
    pub owner: i64,
    pub timeout: Duration,
    pub metrics: Arc<Metrics>,
}

/// A connection that commits one group at a time, and the ids it has at hand.
pub(super) struct Committer {
    commits: Commits,
    link: Link,
    ids: Ids<Instant>,
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
            traces: traces(&waiting),
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

/// None at all when no event has one.
fn traces(waiting: &[Pending]) -> Vec<Option<Trace>> {
    if waiting.iter().all(|p| p.trace.is_none()) {
        return Vec::new();
    }
    waiting.iter().map(|p| p.trace.as_deref().copied()).collect()
}

/// A group that is committed and not yet answered.
pub(super) struct Accepted {
    group: Group,
    committed: Committed,
}

impl Commits {
    /// Answers everybody in a group, then puts it on its way to dispatch.
    pub(super) fn accept(&self, Accepted { group, committed }: Accepted) {
        failpoint::hit("committed");
        let span =
            Span { first: EventId(group.insert.first), n: group.insert.len(), version: committed.version };
        let mut events = Vec::with_capacity(if self.ring.is_some() { group.waiting.len() } else { 0 });
        for (id, pending) in (span.first.0..).zip(group.waiting) {
            let receipt = Receipt { id: EventId(id), created_at: committed.at };
            let _ = pending.answer.send(Ok(receipt));
            if self.ring.is_some() {
                let Pending { account, kind, payload, trace, .. } = pending;
                let Receipt { id, created_at } = receipt;
                events.push(Arc::new(Event { id, account, kind, payload, created_at, trace }));
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

impl Committer {
    pub(super) fn new(commits: Commits) -> Committer {
        let link = Link::new(commits.address.clone(), commits.timeout);
        Committer { commits, link, ids: Ids::default() }
    }

    /// Connects, so that the first commit does not have to.
    pub(super) async fn warm(&mut self) {
        if let Err(error) = self.link.warm_commit().await {
            tracing::debug!(error = crate::chain(&error), "the first commit will have to connect");
        }
    }

    /// Commits a group, whatever it takes within the time-out.
    ///
    /// Those that were refused have been answered; those that were accepted are returned, to be answered later.
    pub(super) async fn commit(mut self, waiting: Vec<Pending>) -> (Committer, Vec<Accepted>) {
        let group = Group::new(waiting);
        let mut accepted = Vec::new();
        let deadline = Instant::now() + self.commits.timeout;
        let mut groups = vec![group];
        // Split groups are handled depth first; a group of one is answered with its own error.
        while let Some(mut group) = groups.pop() {
            if group.insert.first == 0 {
                match self.ids(group.waiting.len(), deadline).await {
                    Ok(first) => group.insert.first = first,
                    Err(error) => {
                        self.refuse(group, error);
                        continue;
                    }
                }
            }
            match self.insert(&group.insert, deadline).await {
                Ok(committed) => accepted.push(Accepted { group, committed }),
                Err(error) if error.fault() == Fault::Row => {
                    self.commits.metrics.ingest.splits.increment(1);
                    if group.waiting.len() == 1 {
                        self.commits.metrics.ingest.rejected.increment(1);
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
        (self, accepted)
    }

    fn refuse(&self, group: Group, error: store::Error) {
        self.commits.metrics.ingest.unavailable.increment(group.waiting.len() as u64);
        tracing::debug!(error = crate::chain(&error), "batch refused");
        group.fail(&match error {
            store::Error::Slow => Error::Late,
            error => Error::Store(Arc::new(error)),
        });
    }

    /// Ids for `n` events, fetching a block when none is at hand.
    async fn ids(&mut self, n: usize, deadline: Instant) -> Result<i64, store::Error> {
        loop {
            if let Some(first) = self.ids.take(n, Instant::now()) {
                return Ok(first);
            }
            match self.link.block().await {
                Ok(block) => self.ids.bring(block, Instant::now()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => pause(deadline).await,
            }
        }
    }

    /// Inserts once, however often it has to be tried: after an outcome that is not known, the batch is
    /// looked for by its first id before the same ids are inserted again.
    async fn insert(&mut self, insert: &Insert, deadline: Instant) -> Result<Committed, store::Error> {
        let mut unknown = false;
        loop {
            let error = match self.insert_once(insert, &mut unknown).await {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            match error.fault() {
                // With an outcome unknown before, a key that is there already is our own.
                Fault::Row if !unknown => return Err(error),
                Fault::Unknown => {
                    unknown = true;
                    self.commits.metrics.ingest.unknown.increment(1);
                }
                Fault::Row | Fault::Again => {}
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            pause(deadline).await;
        }
    }

    async fn insert_once(&mut self, insert: &Insert, unknown: &mut bool) -> Result<Committed, store::Error> {
        if *unknown && let Some(committed) = self.link.look_up(insert, self.commits.owner).await? {
            return Ok(committed);
        }
        let start = Instant::now();
        let want_block = self.ids.wants_block(start);
        let committed = self.link.commit(insert, self.commits.owner, want_block).await?;
        if let Some(block) = committed.block {
            self.ids.bring(block, start);
        }
        self.commits.metrics.ingest.commit_seconds.record(start.elapsed().as_secs_f64());
        Ok(committed)
    }
}

/// Between two tries of a batch: short, so that a Postgres restart is noticed, and never past the deadline.
pub(super) async fn pause(deadline: Instant) {
    let soon = Instant::now() + Duration::from_millis(50);
    tokio::time::sleep_until(soon.min(deadline)).await;
}
