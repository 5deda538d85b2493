//! The recorder: outcomes join the open batch, and it is written when the last one is. One in flight.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{Handle, Item, Open};
use crate::{
    failpoint,
    metrics::Metrics,
    model::{IdMap, Key},
    store::{
        self, Fault, Link,
        settle::{Origin, Record, SHELVED},
    },
    stream::{self, Keys, due::Moved},
};

/// Outcomes of one statement.
const BATCH: usize = 512;

/// How long the first outcome of a statement waits for others. A statement costs Postgres as much as some forty rows, and neither the
/// endpoint nor the next delivery waits for it.
const LINGER: Duration = Duration::from_millis(5);

/// Owns the connection of the recorder.
pub struct Recorder<P> {
    receiver: mpsc::Receiver<Item<P>>,
    link: Link,
    redis: stream::Connection,
    keys: Keys,
    /// Later than this goes to Postgres alone until it comes near.
    horizon: Duration,
    due_max: usize,
    /// Told of each entry that is no longer held, acked or not.
    closed: Box<dyn Fn(&Open) + Send>,
    metrics: Arc<Metrics>,
}

/// What a recorder needs.
pub struct Parts {
    pub link: Link,
    pub redis: stream::Connection,
    pub keys: Keys,
    pub horizon: Duration,
    pub due_max: usize,
    pub queue_max: usize,
    pub closed: Box<dyn Fn(&Open) + Send>,
    pub metrics: Arc<Metrics>,
}

impl<P> Recorder<P> {
    pub fn new(parts: Parts) -> (Handle<P>, Recorder<P>) {
        let (sender, receiver) = mpsc::channel(parts.queue_max);
        let recorder = Recorder {
            receiver,
            link: parts.link,
            redis: parts.redis,
            keys: parts.keys,
            horizon: parts.horizon,
            due_max: parts.due_max,
            closed: parts.closed,
            metrics: parts.metrics,
        };
        (Handle { sender }, recorder)
    }

    /// Runs until every handle is gone and everything handed over is settled.
    pub async fn run(mut self) {
        let mut items = Vec::with_capacity(BATCH);
        while self.receiver.recv_many(&mut items, BATCH).await > 0 {
            self.linger(&mut items).await;
            let records = merge(items.iter_mut().filter_map(|item| item.record.take()));
            let updates = DueUpdates::of(&records, self.horizon);
            if !records.is_empty() {
                self.record(records).await;
            }
            // A record that was given up holds its neighbours' entry back no more: the sweep finds what is missing.
            let done: Vec<Arc<Open>> =
                items.drain(..).filter_map(|item| item.entry).filter(|e| e.release()).collect();
            failpoint::hit("recorded");
            self.tell_redis(&updates, &done).await;
            for entry in &done {
                (self.closed)(entry);
            }
        }
    }

    /// Waits for others to join, unless there are many already.
    async fn linger(&mut self, items: &mut Vec<Item<P>>) {
        if items.len() >= BATCH / 2 {
            return;
        }
        tokio::time::sleep(LINGER).await;
        let room = BATCH - items.len();
        if !self.receiver.is_empty() {
            self.receiver.recv_many(items, room).await;
        }
    }

    /// Step one. Tries until Postgres has taken it; the statement may be repeated without harm.
    async fn record(&mut self, records: Vec<Record>) {
        self.metrics.settle.batch_records.record(records.len() as f64);
        let mut parts = vec![records];
        let mut wait = Duration::from_millis(20);
        let mut again = false;
        while let Some(part) = parts.last_mut() {
            let start = Instant::now();
            match self.link.settle(part).await {
                Ok(repeats) => {
                    self.metrics.settle.commit_seconds.record(start.elapsed().as_secs_f64());
                    // A statement sent twice meets its own rows.
                    if !again {
                        self.count_repeats(part, &repeats);
                    }
                    self.count(part);
                    again = false;
                    parts.pop();
                }
                Err(error) if error.fault() == Fault::Row && part.len() > 1 => {
                    let upper = part.split_off(part.len() / 2);
                    parts.push(upper);
                }
                Err(error) if error.fault() == Fault::Row => {
                    if !self.simplify(&mut part[0], &error) {
                        parts.pop();
                    }
                }
                Err(error) => {
                    self.metrics.settle.failures.increment(1);
                    tracing::debug!(error = crate::chain(&error), "outcomes wait for Postgres");
                    again = true;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// Takes the texts out of a record that Postgres refuses. Returns false when there were none left: such
    /// a record is given up, and its delivery stays owed.
    fn simplify(&self, record: &mut Record, error: &store::Error) -> bool {
        let (event, webhook) = (record.event, record.webhook);
        let Some(attempt) = &mut record.attempt else {
            crate::logs::error_seldom!(%event, %webhook, error = crate::chain(error), "outcome cannot be recorded");
            return false;
        };
        if attempt.body.is_none() && attempt.error.is_none() {
            crate::logs::error_seldom!(%event, %webhook, error = crate::chain(error), "outcome cannot be recorded");
            return false;
        }
        crate::logs::warn_seldom!(%event, %webhook, error = crate::chain(error), "outcome recorded without its texts");
        self.metrics.settle.rewritten.increment(1);
        (attempt.body, attempt.error) = (None, None);
        if record.dead.is_some() {
            record.dead = Some("the reason could not be recorded".to_owned());
        }
        true
    }

    /// By how the attempt came into hand that was recorded last.
    fn count_repeats(&self, records: &[Record], repeats: &[Key]) {
        let settle = &self.metrics.settle;
        for record in records.iter().filter(|r| repeats.contains(&(r.event, r.webhook))) {
            match record.origin {
                Origin::Entry => settle.repeats_entry.increment(1),
                Origin::Check => settle.repeats_check.increment(1),
                Origin::Schedule => settle.repeats_schedule.increment(1),
            }
        }
    }

    fn count(&self, records: &[Record]) {
        let metrics = &self.metrics;
        metrics.settle.records.increment(records.len() as u64);
        let count = |f: fn(&Record) -> bool| records.iter().filter(|r| f(r)).count() as u64;
        metrics.retry.scheduled.increment(count(|r| r.later.is_some() && r.attempt.is_some()));
        metrics.dlq.added.increment(count(|r| r.dead.is_some()));
    }

    /// Step two, all at once or not at all. Lost, it is made up for by claims and the feeder.
    async fn tell_redis(&mut self, updates: &DueUpdates, done: &[Arc<Open>]) {
        if updates.is_empty() && done.is_empty() {
            return;
        }
        let mut pipe = redis::pipe();
        pipe.atomic();
        stream::due::schedule(&mut pipe, &self.keys, self.due_max, &updates.new, Moved::New);
        stream::due::schedule(&mut pipe, &self.keys, self.due_max, &updates.moved, Moved::Ended);
        stream::due::forget(&mut pipe, &self.keys, &updates.gone);
        let ids: Vec<String> = done.iter().map(|open| open.id.clone()).collect();
        stream::consumer::ack(&mut pipe, &self.keys, &ids);
        match pipe.query_async::<()>(&mut self.redis).await {
            Ok(()) => self.metrics.settle.acked.increment(ids.len() as u64),
            Err(error) => {
                self.metrics.settle.redis_failures.increment(1);
                tracing::debug!(%error, "acks lost; they are made up for");
            }
        }
    }
}

/// One record a delivery: the last word counts. The first one knows whether the delivery had a row in the
/// schedule when the batch began.
fn merge(records: impl Iterator<Item = Record>) -> Vec<Record> {
    let n = records.size_hint().1.unwrap_or_default();
    let mut merged: Vec<Record> = Vec::with_capacity(n);
    let mut places: IdMap<Key, usize> = IdMap::default();
    places.reserve(n);
    for mut record in records {
        match places.entry((record.event, record.webhook)) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(record);
            }
            std::collections::hash_map::Entry::Occupied(place) => {
                let earlier = &mut merged[*place.get()];
                if let (Some(before), Some(later)) = (&earlier.later, &mut record.later) {
                    later.existing &= before.existing;
                }
                // A hold that comes in after the outcome says nothing new, and nothing undoes a final one.
                let ended = earlier.attempt.is_some() && earlier.later.is_none();
                if !ended && (record.attempt.is_some() || earlier.attempt.is_none()) {
                    *earlier = record;
                }
            }
        }
    }
    merged
}

/// What `due` has to learn.
#[derive(Debug, Default)]
struct DueUpdates {
    /// Members that enter the near window.
    new: Vec<(Key, i64)>,
    /// Members that we lease and that get another time.
    moved: Vec<(Key, i64)>,
    gone: Vec<Key>,
}

impl DueUpdates {
    fn of(records: &[Record], horizon: Duration) -> DueUpdates {
        let horizon_ms = i64::try_from(horizon.as_millis()).unwrap_or(i64::MAX);
        let mut updates = DueUpdates::default();
        for record in records {
            let key = (record.event, record.webhook);
            let later = record.later.as_ref().filter(|later| !SHELVED.contains(&later.reason));
            match later {
                Some(later) if later.delay_ms <= horizon_ms && record.was_scheduled => {
                    updates.moved.push((key, later.delay_ms));
                }
                Some(later) if later.delay_ms <= horizon_ms => updates.new.push((key, later.delay_ms)),
                _ if record.was_scheduled => updates.gone.push(key),
                // Never was in due, and is not to be.
                _ => {}
            }
        }
        updates
    }

    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.moved.is_empty() && self.gone.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{AccountId, EventId, Try, WebhookId},
        store::settle::{Attempt, Later, Status},
    };

    fn record(event: i64, attempt: Option<Status>, later: Option<(i64, bool)>) -> Record {
        Record {
            event: EventId(event),
            webhook: WebhookId(1),
            account: AccountId(1),
            tried: Try::FIRST,
            was_scheduled: later.is_some_and(|(_, existing)| existing),
            origin: Origin::Entry,
            attempt: attempt.map(|status| Attempt {
                status,
                code: None,
                body: None,
                error: None,
                reason_code: "x",
                duration_ms: 1,
                transform: None,
            }),
            later: later.map(|(delay_ms, existing)| Later {
                next_attempt: 1,
                delay_ms,
                expires_ms: 1,
                reason: "retry",
                pin: None,
                existing,
            }),
            dead: None,
        }
    }

    #[test]
    fn a_hold_and_its_outcome_in_one_batch_are_one_record() {
        let hold = || record(1, None, Some((5000, false)));
        let merged = merge([hold(), record(1, Some(Status::Success), None)].into_iter());
        assert_eq!(merged.len(), 1);
        assert!(merged[0].later.is_none());
        // A failure after a hold still has to make the row: the hold's was not written.
        let merged = merge([hold(), record(1, Some(Status::Failed), Some((200, true)))].into_iter());
        assert!(!merged[0].later.as_ref().unwrap().existing);
        let merged = merge([record(1, Some(Status::Success), None), hold()].into_iter());
        assert!(merged[0].attempt.is_some());
    }

    #[test]
    fn due_learns_only_of_the_near_window() {
        let horizon = Duration::from_secs(60);
        let records = [
            record(1, Some(Status::Failed), Some((200, false))),
            record(2, Some(Status::Failed), Some((100_000, false))),
            record(3, Some(Status::Failed), Some((100_000, true))),
            record(4, Some(Status::Success), None),
            record(5, Some(Status::Failed), Some((300, true))),
        ];
        let updates = DueUpdates::of(&records, horizon);
        let key = |event| (EventId(event), WebhookId(1));
        assert_eq!(updates.new, [(key(1), 200)]);
        assert_eq!(updates.moved, [(key(5), 300)]);
        assert_eq!(updates.gone, [key(3)]);
    }
}
