//! The commit loop: requests join the open batch, and it is sent when the last commit is done. No linger: under load
//! the batches grow by themselves, and without load nobody waits.
//!
//! One commit in flight is best where Postgres is near: a second only makes both batches smaller. Where a commit takes
//! milliseconds, because the disk or the network does, one leaves Postgres idle and producers waiting. [`stagger`](super::stagger)
//! tells which it is.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use tokio::time::Instant;

use super::{
    Commits, Pending, Queue,
    batch::Limits,
    commit::{Accepted, Committer},
    queue::Item,
    stagger::Stagger,
};
use crate::metrics::Metrics;

/// Forms the batches and keeps the commits in flight within their bound.
pub struct Batcher {
    pub queue: Queue<Pending>,
    pub commits: Commits,
    /// Commits in flight, at most; each has a connection.
    pub commits_max: usize,
    /// Where no commit is quicker, besides what its events explain, none holds up the next for longer.
    pub stagger: Duration,
    pub batch_events_max: usize,
    pub batch_bytes_max: usize,
    pub metrics: Arc<Metrics>,
}

/// What comes of a commit: its connection back, and whom to answer.
type Done = (Committer, Vec<Accepted>);

/// A commit under way.
struct Commit {
    future: Pin<Box<dyn Future<Output = Done> + Send>>,
    begun: Instant,
    events: usize,
}

impl Batcher {
    /// Runs until the queue is closed and empty, and all is committed.
    pub async fn run(self) {
        let limits = Limits { events: self.batch_events_max, bytes: self.batch_bytes_max };
        // The last one back is the next one out: a backend that has just worked has its caches warm.
        let mut idle = vec![Committer::new(self.commits.clone())];
        idle[0].warm().await;
        let mut in_flight: Vec<Commit> = Vec::with_capacity(self.commits_max);
        let mut stagger = Stagger::new(self.stagger);
        let mut slow_at = Instant::now();
        let mut held: Option<Pending> = None;
        let mut accepted = Vec::new();
        loop {
            let waits = held.is_some() || self.queue.len() > 0;
            let free = in_flight.len() < self.commits_max;
            if waits && (in_flight.is_empty() || free && Instant::now() >= slow_at) {
                let group = self.gather(limits, &mut held);
                let (begun, events) = (Instant::now(), group.len());
                slow_at = begun + stagger.wait(events);
                let committer = idle.pop().unwrap_or_else(|| Committer::new(self.commits.clone()));
                let commit = Commit { future: Box::pin(committer.commit(group)), begun, events };
                if let Some((committer, groups)) = start(&mut in_flight, commit).await {
                    idle.push(committer);
                    accepted.extend(groups);
                }
                self.metrics.ingest.commits.set(in_flight.len() as f64);
            }
            // Only now: answering wakes as many connections as the last batch had events, and whatever is woken after
            // them waits for them. So Postgres has its next batch while they are being served.
            accepted.drain(..).for_each(|group| self.commits.accept(group));
            let waits = held.is_some() || self.queue.len() > 0;
            if !waits && in_flight.is_empty() && self.queue.is_closed() {
                return;
            }
            tokio::select! {
                biased;
                ((committer, groups), commit) = next(&mut in_flight) => {
                    stagger.took(commit.begun.elapsed(), commit.events);
                    idle.push(committer);
                    accepted = groups;
                }
                () = self.queue.filled(), if !waits => {}
                () = tokio::time::sleep_until(slow_at), if waits && in_flight.len() < self.commits_max => {}
            }
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
        self.queue.taken(Instant::now());
        self.metrics.ingest.queued.set(self.queue.len() as f64);
        group
    }
}

/// Begins a commit at once: what it sends is on its way when this returns. Gives back one that has ended already.
async fn start(in_flight: &mut Vec<Commit>, mut commit: Commit) -> Option<Done> {
    let first = poll_fn(|context| Poll::Ready(commit.future.as_mut().poll(context))).await;
    match first {
        Poll::Ready(done) => Some(done),
        Poll::Pending => {
            in_flight.push(commit);
            None
        }
    }
}

/// The next commit to end; never, when there is none. A handful at most, so all of them are asked.
async fn next(in_flight: &mut Vec<Commit>) -> (Done, Commit) {
    poll_fn(|context| {
        for at in 0..in_flight.len() {
            if let Poll::Ready(done) = in_flight[at].future.as_mut().poll(context) {
                return Poll::Ready((done, in_flight.swap_remove(at)));
            }
        }
        Poll::Pending
    })
    .await
}
