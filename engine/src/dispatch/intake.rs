//! Entries become deliveries: read the batch, find who is owed what, and hand each delivery to its lane.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    Context, Delivery, Permit,
    budget::{Ask, Bytes, Refusal},
    parking,
    registry::Webhooks,
    spans, work,
};
use crate::{
    deliver::Target,
    ingest::Ring,
    model::{AccountId, Batch, Event, IdMap, Key, Span},
    settle::{Item, Open},
    store,
    stream::{
        Entry,
        consumer::{Claims, Reader},
    },
};

/// Entries of one read. A batch holds at most 1,024 events, so more than a few would only wait.
const READ_MAX: usize = 16;

/// Entries whose events are in memory before they have permits.
const LOAD_MAX: usize = 4;

/// Shared by the reader and by those who bring claimed entries.
#[derive(Clone)]
pub(super) struct Intake {
    pub(super) context: Arc<Context>,
    ring: Option<Arc<Ring>>,
}

impl Intake {
    pub(super) fn new(context: Arc<Context>, ring: Option<Arc<Ring>>) -> Intake {
        Intake { context, ring }
    }

    /// Reads new entries until stopped.
    pub(super) async fn run(self, mut reader: Reader, mut claims: Claims, mut stop: watch::Receiver<bool>) {
        let mut told = false;
        let mut group = false;
        loop {
            let term = self.context.fence.term();
            let read = async {
                self.context.gate.open().await;
                if self.context.first_budget.is_full() {
                    self.context.metrics.dispatch.held_full.increment(1);
                }
                self.context.first_budget.room().await;
                if !group {
                    // A consumer without a beat is robbed by the others, so the beat comes before the first read.
                    claims.beat(self.context.config.dispatch.dead_after).await?;
                    reader.make_group().await?;
                    group = true;
                }
                reader.read(READ_MAX).await
            };
            let outcome = tokio::select! {
                // Reading ends at once; what a dropped read brings is pending, and another process claims it.
                biased;
                () = crate::stopped(&mut stop) => return,
                outcome = read => outcome,
            };
            match outcome {
                Ok(entries) => {
                    told = false;
                    self.take(entries, term, false, &mut stop).await;
                }
                Err(error) => {
                    // With the group our beat may be gone too.
                    group = false;
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = crate::chain(&error), "the stream cannot be read");
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Takes entries in hand that were read in `term`. `check` says that some of their deliveries may be settled.
    pub(super) async fn take(
        &self,
        entries: Vec<Entry>,
        term: u64,
        check: bool,
        stop: &mut watch::Receiver<bool>,
    ) {
        let entries = self.hold(entries);
        self.context.metrics.dispatch.entries.increment(entries.len() as u64);
        let mut left = &entries[..];
        while !left.is_empty() {
            let (part, rest) = left.split_at(left.len().min(LOAD_MAX));
            let loaded = tokio::select! {
                biased;
                () = crate::stopped(stop) => return self.let_go(left),
                loaded = self.load(part, check) => loaded,
            };
            match loaded {
                Ok(loaded) => {
                    for (entry, batch, settled) in loaded {
                        if !self.fan_out(&entry, batch, &settled, term, stop).await {
                            return;
                        }
                    }
                    left = rest;
                }
                Err(error) => {
                    tracing::debug!(error = crate::chain(&error), "entries wait for Postgres");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Notes that we hold these. A second entry of a batch in hand stays pending until the first is settled,
    /// and is then found to be nothing new.
    fn hold(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        entries.retain(|entry| self.context.opened.insert(entry));
        entries
    }

    fn let_go(&self, entries: &[Entry]) {
        for entry in entries {
            self.context.opened.remove(&entry.id);
        }
    }

    /// The events of each entry and, where something may be settled, what is.
    pub(super) async fn load(&self, entries: &[Entry], check: bool) -> Result<Vec<Loaded>, store::Error> {
        let context = &self.context;
        if let Some(version) = entries.iter().map(|e| e.span.version).max() {
            context.registry.catch_up(version).await?;
        }
        let mut found: IdMap<i64, Batch> = IdMap::default();
        if let Some(ring) = &self.ring {
            let batches = entries.iter().filter_map(|e| ring.take(e.span.first));
            found.extend(batches.map(|b| (b.span.first.0, b)));
            context.metrics.dispatch.from_ring.increment(found.len() as u64);
        }
        let rest: Vec<Span> =
            entries.iter().map(|e| e.span).filter(|s| !found.contains_key(&s.first.0)).collect();
        if !rest.is_empty() {
            let read = context.store.batches(&rest).await?;
            context.metrics.dispatch.from_postgres.increment(read.len() as u64);
            found.extend(read.into_iter().map(|b| (b.span.first.0, b)));
        }
        let mut loaded = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut settled = HashSet::new();
            let entry = Entry { check: check || entry.check, ..entry.clone() };
            if entry.check {
                context.metrics.dispatch.checked.increment(1);
                settled.extend(context.store.settled(entry.span).await?);
            }
            if let Some(batch) = found.remove(&entry.span.first.0) {
                let accounts: Vec<AccountId> =
                    batch.events.iter().map(|e| e.account).collect::<HashSet<_>>().into_iter().collect();
                let webhooks = context.registry.webhooks(&accounts).await?;
                let accounts = accounts.into_iter().zip(webhooks).collect();
                loaded.push((entry, Owed { batch, accounts }, settled));
            }
        }
        Ok(loaded)
    }

    /// Hands an entry's deliveries to their lanes. False when it was stopped midway: the entry stays pending, for
    /// another process to claim.
    async fn fan_out(
        &self,
        entry: &Entry,
        owed: Owed,
        settled: &HashSet<Key>,
        term: u64,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let context = &self.context;
        let open = Arc::new(Open::new(entry.id.clone(), entry.span.first.0, term, entry.check));
        spans::taken(&context.tracer, &owed.batch);
        let missing = usize::try_from(entry.span.n).unwrap_or(0).saturating_sub(owed.batch.events.len());
        context.metrics.dispatch.orphans.increment(missing as u64);
        let mut unmatched = 0;
        for event in &owed.batch.events {
            match self.hand_over(entry, event, owed.webhooks(event), settled, &open, stop).await {
                Some(matched) => unmatched += u64::from(!matched),
                None => return false,
            }
        }
        context.metrics.dispatch.unmatched.increment(unmatched);
        context.recorder.settle(Item { record: None, entry: Some(open), permit: None }).await;
        true
    }

    /// Hands one event's deliveries to their lanes, and says whether it matched any webhook. None when it was stopped midway.
    pub(super) async fn hand_over(
        &self,
        entry: &Entry,
        event: &Arc<Event>,
        webhooks: &[Arc<Target>],
        settled: &HashSet<Key>,
        open: &Arc<Open>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<bool> {
        let context = &self.context;
        let (mut matched, mut deliveries, mut bytes) = (false, 0, Bytes::default());
        for target in webhooks.iter().filter(|t| t.webhook.eligible(&event.kind, entry.span.version)) {
            matched = true;
            if settled.contains(&(event.id, target.webhook.id)) {
                continue;
            }
            let load = context.lanes.of(target.webhook.id).load();
            open.add();
            deliveries += 1;
            if context.deferred.waits_for(target.webhook.id) && context.defer(target, load, event, open) {
                continue;
            }
            let ask = Ask { account: event.account, busy: load.busy, slow: load.slow };
            let permit = self.permit(event, ask, &mut bytes, stop).await?;
            let delivery = Delivery::first(event.clone(), target.clone(), open.clone(), permit);
            if delivery.permit.is_some() {
                work::admit(context, delivery).await;
            } else {
                parking::turn_away(context, delivery).await;
            }
        }
        context.metrics.dispatch.deliveries.increment(deliveries);
        Some(matched)
    }

    /// A permit, and none for whom there is no room while others may come. An idle lane waits; the outer none says that
    /// the wait was ended by a stop.
    async fn permit(
        &self,
        event: &Event,
        ask: Ask,
        bytes: &mut Bytes,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Option<Permit>> {
        let budget = &self.context.first_budget;
        let size = event.payload.len();
        match budget.try_permit(ask, size, bytes) {
            Ok(permit) => return Some(Some(permit)),
            Err(Refusal::NotForYou) => return Some(None),
            Err(Refusal::Full) => self.context.metrics.dispatch.held_full.increment(1),
        }
        tokio::select! {
            biased;
            () = crate::stopped(stop) => None,
            permit = budget.permit(ask.account, size, bytes) => Some(Some(permit)),
        }
    }
}

/// A batch and the webhooks of its accounts.
pub(super) struct Owed {
    pub(super) batch: Batch,
    accounts: IdMap<AccountId, Webhooks>,
}

impl Owed {
    /// Of the event's account, whether they want it or not.
    pub(super) fn webhooks(&self, event: &Event) -> &[Arc<Target>] {
        self.accounts.get(&event.account).map_or(&[][..], |webhooks| webhooks.as_slice())
    }
}

pub(super) type Loaded = (Entry, Owed, HashSet<Key>);
