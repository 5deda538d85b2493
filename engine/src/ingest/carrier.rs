//! The commit loop of requests that are accepted whole. Like the batcher it has one commit in flight and does not
//! linger: what waits meanwhile goes together into the next transaction.

use std::{collections::HashSet, sync::Arc};

use tokio::time::Instant;

use super::{
    Commits, Error, Item, Load, Parcel, Queue, Receipts,
    batch::{Ids, Limits},
    commit::pause,
};
use crate::{
    model::{AccountId, Batch, Event, EventId, Span, Timestamp, Traced},
    store::{
        self, Fault, Link,
        events::BLOCK,
        parcels::{Carried, FirstAnswer, Key, Way, batches},
    },
};

/// Owns the connection of these commits.
pub struct Carrier {
    queue: Queue<Parcel>,
    commits: Commits,
    link: Link,
    way: Way,
    /// Of one transaction; a single request may be larger.
    limits: Limits,
}

/// A group's commit: what is known of it, and whether an earlier try may have committed it.
struct Outcome {
    carried: Carried,
    doubted: bool,
}

impl Carrier {
    pub(super) fn new(
        queue: Queue<Parcel>,
        commits: Commits,
        way: Way,
        events: usize,
        bytes: usize,
    ) -> Carrier {
        let link = Link::new(commits.address.clone(), commits.timeout);
        Carrier { queue, commits, link, way, limits: Limits { events, bytes } }
    }

    /// Runs until the queue is closed and empty.
    pub async fn run(mut self) {
        if let Err(error) = self.link.warm_carry(self.way).await {
            tracing::debug!(error = crate::chain(&error), "the first commit will have to connect");
        }
        let mut ids = Ids::default();
        let mut held: Option<Parcel> = None;
        loop {
            let group = self.gather(&mut held);
            if group.is_empty() {
                if self.queue.is_closed() && self.queue.len() == 0 {
                    return;
                }
                self.queue.filled().await;
                continue;
            }
            self.queue.taken(Instant::now());
            self.carry(group, &mut ids).await;
        }
    }

    /// Takes what fits into one transaction. The request that did not fit any more is held for the next.
    fn gather(&self, held: &mut Option<Parcel>) -> Vec<Parcel> {
        let limits = self.limits;
        let (mut group, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(parcel) = held.take().or_else(|| self.queue.pop()) {
            events += parcel.events();
            bytes += parcel.bytes();
            if !limits.takes(group.len(), bytes) || (!group.is_empty() && events > limits.events) {
                *held = Some(parcel);
                break;
            }
            group.push(parcel);
        }
        group
    }

    /// Commits a group, whatever it takes within the time-out, and answers everybody in it.
    async fn carry(&mut self, group: Vec<Parcel>, ids: &mut Ids<Instant>) {
        let deadline = Instant::now() + self.commits.timeout;
        let mut groups = vec![group];
        // Split groups are handled depth first; a group of one is answered with its own error.
        while let Some(mut group) = groups.pop() {
            let later = split_later(&mut group);
            if let Err(error) = self.number(&mut group, ids, deadline).await {
                self.refuse(group.into_iter().chain(later), error);
                continue;
            }
            match self.commit(&group, ids, deadline).await {
                Ok(outcome) => {
                    let mut lost = self.accept(group, &outcome);
                    lost.extend(later);
                    let absent = self.replay(lost, outcome.doubted, deadline).await;
                    if !absent.is_empty() {
                        groups.push(absent);
                    }
                }
                Err(error) if error.fault() == Fault::Row => {
                    self.commits.metrics.ingest.splits.increment(1);
                    if !later.is_empty() {
                        groups.push(later);
                    }
                    if group.len() == 1 {
                        let error = Error::Rejected(Arc::new(error));
                        for parcel in group {
                            self.commits.metrics.ingest.rejected.increment(parcel.events() as u64);
                            parcel.refuse(error.clone());
                        }
                    } else {
                        let upper = group.split_off(group.len() / 2);
                        groups.push(upper);
                        groups.push(group);
                    }
                }
                Err(error) => self.refuse(group.into_iter().chain(later), error),
            }
        }
    }

    fn refuse(&self, parcels: impl Iterator<Item = Parcel>, error: store::Error) {
        tracing::debug!(error = crate::chain(&error), "requests refused");
        let error = match error {
            store::Error::Slow => Error::Late,
            error => Error::Store(Arc::new(error)),
        };
        for parcel in parcels {
            self.commits.metrics.ingest.unavailable.increment(parcel.events() as u64);
            parcel.refuse(error.clone());
        }
    }

    /// Gives every request its ids, unless it has them from an earlier try.
    async fn number(
        &mut self,
        group: &mut [Parcel],
        ids: &mut Ids<Instant>,
        deadline: Instant,
    ) -> Result<(), store::Error> {
        let block = BLOCK as usize;
        let mut fetched = Vec::new().into_iter();
        let missing: usize =
            group.iter().filter(|p| p.firsts.is_empty()).map(|p| p.load.len().div_ceil(block)).sum();
        let mut full: usize = missing;
        for parcel in group.iter_mut().filter(|p| p.firsts.is_empty()) {
            let n = parcel.load.len();
            let mut firsts = Vec::with_capacity(n.div_ceil(block));
            while firsts.len() * block < n {
                let run = (n - firsts.len() * block).min(block);
                match ids.take(run, Instant::now()) {
                    Some(first) => {
                        firsts.push(first);
                        full = full.saturating_sub(1);
                    }
                    None => match fetched.next() {
                        Some(block) => ids.bring(block, Instant::now()),
                        None => fetched = self.blocks(full.clamp(1, 64), deadline).await?.into_iter(),
                    },
                }
            }
            parcel.firsts = firsts;
        }
        Ok(())
    }

    async fn blocks(&mut self, n: usize, deadline: Instant) -> Result<Vec<i64>, store::Error> {
        loop {
            match self.link.blocks(n).await {
                Ok(blocks) if !blocks.is_empty() => return Ok(blocks),
                Ok(_) => return Err(store::Error::NotMigrated),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => pause(deadline).await,
            }
        }
    }

    /// Commits once, however often it has to be tried: after an outcome that is not known, a batch of the group is
    /// looked for before the same ids are inserted again. All of a group's rows are in one transaction, so one is enough.
    async fn commit(
        &mut self,
        group: &[Parcel],
        ids: &mut Ids<Instant>,
        deadline: Instant,
    ) -> Result<Outcome, store::Error> {
        let mut doubt: Option<Carried> = None;
        loop {
            let error = match self.commit_once(group, ids, &mut doubt).await {
                Ok(carried) => return Ok(Outcome { carried, doubted: doubt.is_some() }),
                Err(error) => error,
            };
            match error.fault() {
                // With an outcome unknown before, an id that is there already is our own.
                Fault::Row if doubt.is_none() => return Err(error),
                Fault::Row | Fault::Again | Fault::Unknown => {}
            }
            if Instant::now() >= deadline {
                return Err(if error.fault() == Fault::Row { store::Error::Slow } else { error });
            }
            pause(deadline).await;
        }
    }

    async fn commit_once(
        &mut self,
        group: &[Parcel],
        ids: &mut Ids<Instant>,
        doubt: &mut Option<Carried>,
    ) -> Result<Carried, store::Error> {
        if let Some(carried) = doubt
            && let Some((parcel, _)) = group.iter().zip(&carried.won).find(|(_, won)| **won)
            && let Some((version, at, _)) =
                self.link.look_up_run(parcel.firsts[0], self.commits.owner).await?
        {
            return Ok(Carried { version, at, ..carried.clone() });
        }
        let start = Instant::now();
        let outcome = self.link.carry(group, self.commits.owner, self.way, ids.wants_block(start)).await;
        match outcome {
            Ok(carried) => {
                if let Some(block) = carried.block {
                    ids.bring(block, start);
                }
                self.commits.metrics.ingest.parcel_seconds.record(start.elapsed().as_secs_f64());
                Ok(carried)
            }
            Err(lost) => {
                let fault = lost.fault();
                if fault == Fault::Unknown {
                    *doubt = lost.doubt;
                    self.commits.metrics.ingest.unknown.increment(1);
                }
                Err(lost.error)
            }
        }
    }

    /// Answers those that are committed, then puts their batches on the way to dispatch. Returns those whose key is
    /// another's.
    fn accept(&self, group: Vec<Parcel>, outcome: &Outcome) -> Vec<Parcel> {
        let Carried { version, at, won, .. } = &outcome.carried;
        let (mut events, mut parcels) = (0, 0);
        let (won, lost): (Vec<_>, Vec<_>) = group.into_iter().zip(won).partition(|(_, won)| **won);
        let mut sent = Vec::with_capacity(won.len());
        for (parcel, _) in won {
            events += parcel.events();
            parcels += 1;
            sent.push(Sent::of(&parcel));
            parcel.accept(*at);
        }
        if parcels > 0 {
            self.count().increment(parcels);
            self.commits.metrics.ingest.accepted.increment(events as u64);
            self.commits.metrics.ingest.batch_events.record(events as f64);
        }
        for sent in sent {
            self.send(&sent, *version, *at);
        }
        lost.into_iter().map(|(parcel, _)| parcel).collect()
    }

    fn count(&self) -> &metrics::Counter {
        match self.way {
            Way::Statement => &self.commits.metrics.ingest.small_parcels,
            Way::Copy => &self.commits.metrics.ingest.bulk_parcels,
        }
    }

    fn send(&self, sent: &Sent, version: i64, at: Timestamp) {
        let mut event = 0;
        for (first, n) in &sent.batches {
            let (first, n) = (*first, *n);
            let span = Span { first: EventId(first), n, version };
            if let Some(ring) = &self.commits.ring {
                let events =
                    (first..=span.last().0).zip(event..).map(|(id, event)| sent.event(id, event, at));
                ring.put(Batch { span, events: events.collect() });
            }
            event += n as usize;
            self.commits.stream.send(span, false);
        }
    }

    /// Answers requests whose key is taken with what the first one with it was answered. Returns those whose key has
    /// become free meanwhile.
    async fn replay(&mut self, lost: Vec<Parcel>, doubted: bool, deadline: Instant) -> Vec<Parcel> {
        let keys: Vec<(_, Key)> = lost.iter().filter_map(|p| Some((p.account, p.key?))).collect();
        if keys.is_empty() {
            return lost;
        }
        let answers = loop {
            match self.link.first_answers(&keys).await {
                Ok(answers) => break answers,
                Err(error) if Instant::now() >= deadline => {
                    self.refuse(lost.into_iter(), error);
                    return Vec::new();
                }
                Err(_) => pause(deadline).await,
            }
        };
        let mut absent = Vec::new();
        for parcel in lost {
            let found = parcel.key.and_then(|key| Some((key, answers.get(&(parcel.account, key.hash))?)));
            match found {
                Some((_, first)) if doubted && first.firsts == parcel.firsts => {
                    self.accept_found(parcel, first.at).await;
                }
                Some((key, first)) => self.answer_again(parcel, &key, first),
                None if Instant::now() >= deadline => parcel.refuse(Error::Late),
                None => absent.push(parcel),
            }
        }
        absent
    }

    fn answer_again(&self, parcel: Parcel, key: &Key, first: &FirstAnswer) {
        // The length is covered by the hash; it is compared because ids are counted from it.
        if first.body != key.body || first.n != parcel.load.len() {
            self.commits.metrics.ingest.key_conflicts.increment(1);
            parcel.refuse(Error::KeyReused);
            return;
        }
        self.commits.metrics.ingest.replayed.increment(1);
        let receipts = Receipts { firsts: first.firsts.clone(), created_at: first.at, replayed: true };
        // The producer may have gone; nobody is left to tell.
        let _ = parcel.answer.send(Ok(receipts));
    }

    /// Accepts a request whose key turned out to be taken by itself: a try without an answer had committed it.
    async fn accept_found(&mut self, parcel: Parcel, at: Timestamp) {
        let (sent, first) = (Sent::of(&parcel), parcel.firsts[0]);
        self.commits.metrics.ingest.accepted.increment(parcel.events() as u64);
        self.count().increment(1);
        parcel.accept(at);
        // Without an answer to this its batches are found as leftovers. Of another's they are no more our affair.
        if let Ok(Some((version, at, true))) = self.link.look_up_run(first, self.commits.owner).await {
            self.send(&sent, version, at);
        }
    }
}

/// What of a request is still needed once it is answered.
struct Sent {
    account: AccountId,
    load: Arc<Load>,
    trace: Option<Traced>,
    /// By first id and number of events.
    batches: Vec<(i64, i32)>,
}

impl Sent {
    fn of(parcel: &Parcel) -> Sent {
        let (account, load, trace) = (parcel.account, parcel.load.clone(), parcel.trace);
        Sent { account, load, trace, batches: batches(parcel) }
    }

    fn event(&self, id: i64, event: usize, at: Timestamp) -> Arc<Event> {
        Arc::new(Event {
            id: EventId(id),
            account: self.account,
            kind: self.load.kind(event).into(),
            // A copy: a slice would keep the whole request in memory, counted as this payload alone.
            payload: bytes::Bytes::copy_from_slice(self.load.payload(event)),
            created_at: at,
            trace: self.trace.map(|traced| Box::new(traced.of(event))),
        })
    }
}

/// Takes out the requests whose key an earlier one in the group has. They are answered from what became of that.
fn split_later(group: &mut Vec<Parcel>) -> Vec<Parcel> {
    let mut seen = HashSet::new();
    let later = |parcel: &mut Parcel| parcel.key.is_some_and(|key| !seen.insert((parcel.account, key.hash)));
    group.extract_if(.., later).collect()
}
