//! Replaying to a webhook what it missed.

use tokio_postgres::IsolationLevel;

use super::{Error, Store};
use crate::model::{AccountId, EventId, Timestamp, WebhookId};

/// How far, in milliseconds, the order of ids and that of times may differ. Ids are taken before their events are
/// committed: by the time a block lasts, a second, and what a commit may take, a few.
const MARGIN_MS: i64 = 120_000;

/// An account's events with ids in `first..end` that were accepted in `since..until`.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub first: EventId,
    pub end: EventId,
    pub since: Timestamp,
    pub until: Timestamp,
}

/// What became of one page of events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Now in the schedule as a new round.
    pub replayed: i64,
    /// Delivered before.
    pub delivered: i64,
    /// On their way already.
    pub pending: i64,
}

/// Times have no index, so the id is found by halving the account's ids: 53 steps at most, each a look into the
/// index by account. Noise in the order of times is harmless: an event from before the margin has only earlier ones
/// below it. OFFSET 0 has each step look once.
const ID_AT: &str = "
WITH RECURSIVE search (low, high) AS (
    SELECT (SELECT id FROM events WHERE account_id = $1 ORDER BY id LIMIT 1),
        (SELECT id + 1 FROM events WHERE account_id = $1 ORDER BY id DESC LIMIT 1)
    UNION ALL
    SELECT CASE WHEN is_before THEN middle + 1 ELSE low END, CASE WHEN is_before THEN high ELSE middle END
    FROM (SELECT low, high, middle, coalesce((SELECT created_at FROM events
            WHERE account_id = $1 AND id >= middle ORDER BY id LIMIT 1) < $2, false) AS is_before
        FROM (SELECT low, high, low + (high - low) / 2 AS middle FROM search WHERE low < high) AS halved
        OFFSET 0) AS looked
)
SELECT low FROM search WHERE low >= high";

const IN_RANGE: &str = "account_id = $1 AND id >= $2 AND id < $3 AND created_at >= $4 AND created_at < $5";

/// As long as this lock is held there is no other replay to the webhook, and its state does not change. Its own
/// statement, so that the next one sees what the replay before it did.
const LOCK: &str = "SELECT FROM webhooks WHERE id = $1 AND account_id = $2 AND state IN ('active', 'paused')
    FOR NO KEY UPDATE";

/// What was filtered was not missed. A batch row says that the first delivery may be on its way, unless that has ended.
/// Batches do not overlap, so the nearest one below is the only one that can hold an event. Of a dead letter the row
/// lock decides who brings it back: a requeue at the same time, or we.
const REPLAY: &str = "
WITH asked AS MATERIALIZED (
    SELECT k.id,
        EXISTS (SELECT FROM delivery_attempts WHERE event_id = k.id AND webhook_id = $2
            AND status NOT IN ('failed', 'dead')) AS is_delivered,
        EXISTS (SELECT FROM scheduled WHERE event_id = k.id AND webhook_id = $2) OR (
            coalesce((SELECT last_id FROM batches WHERE first_id <= k.id ORDER BY first_id DESC LIMIT 1) >= k.id, false)
            AND NOT EXISTS (SELECT FROM delivery_attempts WHERE event_id = k.id AND webhook_id = $2
                AND status <> 'failed')) AS is_owed,
        EXISTS (SELECT FROM dlq_entries WHERE event_id = k.id AND webhook_id = $2
            AND requeued_at IS NULL) AS has_letter
    FROM unnest($1::bigint[]) AS k (id)
), missed AS MATERIALIZED (
    SELECT id, has_letter FROM asked WHERE NOT is_delivered AND NOT is_owed
), letter AS MATERIALIZED (
    SELECT d.id, d.event_id FROM dlq_entries AS d JOIN missed AS m ON m.id = d.event_id
    WHERE d.webhook_id = $2 AND d.requeued_at IS NULL FOR UPDATE OF d SKIP LOCKED
), requeued AS (
    UPDATE dlq_entries SET requeued_at = date_trunc('milliseconds', clock_timestamp())
    WHERE id IN (SELECT id FROM letter)
), replayed AS (
    INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason, transform_version)
    SELECT m.id, $2, 1 + greatest(
            coalesce((SELECT max(round) FROM delivery_attempts WHERE event_id = m.id AND webhook_id = $2), 0),
            coalesce((SELECT max(round) FROM dlq_entries WHERE event_id = m.id AND webhook_id = $2), 0)),
        1, now(), now() + $3 * interval '1 millisecond', 'replayed', sent_version(m.id, $2)
    FROM missed AS m WHERE NOT has_letter OR m.id IN (SELECT event_id FROM letter)
    ON CONFLICT DO NOTHING RETURNING event_id
)
SELECT (SELECT count(*) FROM replayed), (SELECT count(*) FROM asked WHERE is_delivered)";

impl Store {
    /// The time by Postgres, as events are stamped.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let client = self.client().await?;
        let sql = "SELECT date_trunc('milliseconds', clock_timestamp())";
        Ok(client.query_one(&client.prepare_cached(sql).await?, &[]).await?.get(0))
    }

    /// Bounds of ids outside of which there is none of an account's events from `since..until`. Those within may be
    /// some minutes earlier or later.
    pub async fn range(
        &self,
        account: AccountId,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<Range, Error> {
        let client = self.client().await?;
        // Planned anew for this account: a plan for any would read everybody's events where one has few among many.
        let statement = client.prepare(ID_AT).await?;
        let at = async |time: i64| -> Result<EventId, Error> {
            let row = client.query_opt(&statement, &[&account, &Timestamp(time)]).await?;
            // An account without events has no bounds either.
            Ok(row.map_or(EventId(0), |row| row.get(0)))
        };
        let (first, end) = (at(since.0 - MARGIN_MS).await?, at(until.0 + MARGIN_MS).await?);
        Ok(Range { first, end, since, until })
    }

    /// The first `limit` events of a range, by id, with their types.
    pub async fn events_in(
        &self,
        account: AccountId,
        range: &Range,
        limit: i64,
    ) -> Result<Vec<(EventId, String)>, Error> {
        let client = self.client().await?;
        let sql = format!("SELECT id, type FROM events WHERE {IN_RANGE} ORDER BY id LIMIT $6");
        let statement = client.prepare(&sql).await?;
        let Range { first, end, since, until } = range;
        let rows = client.query(&statement, &[&account, first, end, since, until, &limit]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// How many events there are in a range, counted up to `max`.
    pub async fn count_events_in(&self, account: AccountId, range: &Range, max: i64) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM events WHERE {IN_RANGE} ORDER BY id LIMIT $6) AS found"
        );
        let statement = client.prepare(&sql).await?;
        let Range { first, end, since, until } = range;
        Ok(client.query_one(&statement, &[&account, first, end, since, until, &max]).await?.get(0))
    }

    /// Schedules those of an account's events that a webhook of it missed, at once, as new rounds that end
    /// `expires_ms` from now. None when the webhook takes no work, or is not there any more.
    pub async fn replay(
        &self,
        account: AccountId,
        webhook: WebhookId,
        events: &[EventId],
        expires_ms: i64,
    ) -> Result<Option<Counts>, Error> {
        let mut client = self.client().await?;
        let work = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        let lock = work.prepare_cached(LOCK).await?;
        if work.query_opt(&lock, &[&webhook, &account]).await?.is_none() {
            return Ok(None);
        }
        let statement = work.prepare_cached(REPLAY).await?;
        let row = work.query_one(&statement, &[&events, &webhook, &(expires_ms as f64)]).await?;
        work.commit().await?;
        let (replayed, delivered) = (row.get(0), row.get(1));
        let pending = i64::try_from(events.len()).unwrap_or(i64::MAX) - replayed - delivered;
        Ok(Some(Counts { replayed, delivered, pending }))
    }
}
