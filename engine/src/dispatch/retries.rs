//! Brings back what is due: leases members of `due` while there is room for retries, reads their rows, and
//! hands them to their lanes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    Context, Delivery,
    budget::{Ask, Bytes},
    poison, work,
};
use crate::{
    failpoint,
    model::Key,
    store::{self, scheduled::Owed, settle::Origin},
    stream::due::{Due, LEASE_MAX},
};

/// Pause when nothing was due. It bounds how late a retry is.
const IDLE: Duration = Duration::from_millis(50);

/// How long a retry without room is left alone.
const CROWDED: Duration = Duration::from_secs(1);

/// Pause when something was: Redis has others to serve between two script calls.
const BUSY: Duration = Duration::from_millis(1);

/// Of Postgres or of Redis; either way the round is over.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) async fn run(context: Arc<Context>, mut due: Due, mut stop: watch::Receiver<bool>) {
    // A suspect in hand. There is one at a time.
    let mut careful = JoinSet::new();
    loop {
        while careful.try_join_next().is_some() {}
        let pause = match round(&context, &mut due, &mut careful).await {
            Ok(0) => IDLE,
            Ok(_) => BUSY,
            Err(error) => {
                tracing::debug!(error = crate::chain(&*error), "retries wait");
                Duration::from_millis(500)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = crate::stopped(&mut stop) => break,
        }
    }
    // What is noted as in hand alone when a process ends is taken for what it died of.
    while careful.join_next().await.is_some() {}
}

/// Leases once. Returns how many members came.
async fn round(context: &Arc<Context>, due: &mut Due, careful: &mut JoinSet<()>) -> Result<usize, Failure> {
    if context.gate.epoch().is_none() {
        return Ok(0);
    }
    let term = context.fence.term();
    let room = context.retry_budget.free().min(LEASE_MAX);
    if room == 0 || context.retry_budget.is_full() || !context.fence.holds(term) {
        return Ok(0);
    }
    let lease = context.lease();
    let until = Instant::now() + lease;
    let leased =
        due.lease(room, i64::try_from(lease.as_millis())?, careful.is_empty(), &context.gate).await?;
    if let Some(key) = leased.suspect {
        careful.spawn(poison::retry_carefully(context.clone(), due.clone(), key, until, term));
    }
    let keys = leased.keys;
    if keys.is_empty() {
        return Ok(usize::from(leased.suspect.is_some()));
    }
    failpoint::hit("leased");
    context.metrics.retry.leased.increment(keys.len() as u64);
    let n = keys.len();
    hand_out(context, due, keys, until, term).await?;
    Ok(n)
}

/// Hands leased members to their lanes. When that fails, those that are not there go back. Returns for how many there was no room:
/// they come again later.
pub(super) async fn hand_out(
    context: &Arc<Context>,
    due: &mut Due,
    keys: Vec<Key>,
    until: Instant,
    term: u64,
) -> Result<usize, Failure> {
    let owed = match look_up(context, due, &keys).await {
        Ok(owed) => owed,
        Err(error) => {
            // Or they would wait for the lease to end.
            due.release(&keys).await?;
            return Err(error);
        }
    };
    let mut rows = owed.into_iter();
    let mut crowded = Vec::new();
    while let Some(row) = rows.next() {
        let key = row.key;
        match take(context, due, row, until, term).await {
            Ok(None) => {}
            Ok(Some(wait)) => crowded.push((key, i64::try_from(wait.as_millis())?)),
            Err(error) => {
                // Those before it are in their lanes already.
                let left = std::iter::once(key).chain(rows.map(|row| row.key));
                let left: Vec<Key> = left.chain(crowded.iter().map(|(key, _)| *key)).collect();
                due.release(&left).await?;
                return Err(error);
            }
        }
    }
    // Nobody waits here for room: that would make everybody's retries wait behind one lane.
    due.postpone(&crowded).await?;
    Ok(crowded.len())
}

/// The rows whose time has come. Members that nothing is owed for are forgotten, and those that are early go back.
pub(super) async fn look_up(context: &Context, due: &mut Due, keys: &[Key]) -> Result<Vec<Owed>, Failure> {
    let mut owed = context.store.owed(keys, context.spare_ms()).await?;
    // Who mended a webhook and then asks for its dead letters means the mended one.
    if let Some(version) = owed.iter().map(|row| row.version).max() {
        context.registry.catch_up(version).await?;
    }
    forget_stale(context, due, keys, &owed).await?;
    // The row was moved on while its member was not: the row is right.
    let early: Vec<(Key, i64)> =
        owed.extract_if(.., |row| row.due_in_ms > 1000).map(|row| (row.key, row.due_in_ms)).collect();
    due.postpone(&early).await?;
    Ok(owed)
}

/// Members without a row are settled; rows without an event can never be.
async fn forget_stale(context: &Context, due: &mut Due, keys: &[Key], owed: &[Owed]) -> Result<(), Failure> {
    let rows: HashSet<Key> = owed.iter().map(|o| o.key).collect();
    let mut gone: Vec<Key> = keys.iter().copied().filter(|key| !rows.contains(key)).collect();
    let orphans: Vec<Key> = owed.iter().filter(|o| o.event.is_none()).map(|o| o.key).collect();
    if !orphans.is_empty() {
        context.metrics.dispatch.orphans.increment(orphans.len() as u64);
        context.store.drop_orphans(&orphans).await?;
        gone.extend(&orphans);
    }
    if !gone.is_empty() {
        context.metrics.retry.stale.increment(gone.len() as u64);
        due.remove(&gone).await?;
    }
    Ok(())
}

/// Hands a delivery to its lane. When there is no room for it, says for how long to leave it.
pub(super) async fn take(
    context: &Arc<Context>,
    due: &mut Due,
    row: Owed,
    until: Instant,
    term: u64,
) -> Result<Option<Duration>, Failure> {
    let Some(mut delivery) = context.retry_of(row, until, term).await? else { return Ok(None) };
    let lane = context.lanes.of(delivery.target.webhook.id);
    if lane.standing().open {
        // It goes to the shelf and holds nothing.
        work::admit(context, delivery).await;
        return Ok(None);
    }
    let load = lane.load();
    let ask = Ask { account: delivery.event.account, busy: load.busy, slow: load.slow };
    match context.retry_budget.try_permit(ask, delivery.event.payload.len(), &mut Bytes::default()) {
        Ok(permit) => delivery.permit = Some(permit),
        // It is leased and stands in the schedule: there it may as well wait.
        Err(_) => return Ok(Some(CROWDED)),
    }
    context.lengthen(due, &mut delivery).await?;
    work::admit(context, delivery).await;
    Ok(None)
}

impl Context {
    /// The delivery behind a row that is ours until then. None when there is nothing to send; then it is settled.
    pub(super) async fn retry_of(
        &self,
        row: Owed,
        until: Instant,
        term: u64,
    ) -> Result<Option<Delivery>, store::Error> {
        let Some(event) = row.event else { return Ok(None) };
        let mut found = self.registry.webhook(event.account, row.key.1).await?;
        if found.is_none() {
            // What we know of the account may be older than the row.
            self.registry.poll().await?;
            found = self.registry.webhook(event.account, row.key.1).await?;
        }
        let Some(target) = found else {
            work::webhook_gone(self, event.account, row.key, row.tried, None).await;
            return Ok(None);
        };
        let delivery = Delivery {
            event,
            target,
            tried: row.tried,
            pin: row.pin,
            was_scheduled: true,
            origin: Origin::Schedule,
            entry: None,
            lease: Some(self.leases.note(row.key, until)),
            term,
            permit: None,
            probe_until: None,
        };
        if row.expires_in_ms < 0 {
            self.metrics.retry.expired.increment(1);
            let why = "its time was up before an attempt could be made";
            work::dead_without_call(self, delivery, "expired", why).await;
            return Ok(None);
        }
        Ok(Some(delivery))
    }
}
