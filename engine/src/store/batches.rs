//! The batch rows: who streams them, and what of them is still owed.

use std::collections::HashMap;

use tokio_postgres::Row;

use super::{Error, Link, Store};
use crate::model::{AccountId, EventId, Span};

fn span(row: &Row) -> Span {
    Span { first: row.get(0), n: row.get(1), version: row.get(2) }
}

/// How many events of one type an account has in a batch.
#[derive(Debug)]
pub struct Kind {
    pub first: EventId,
    pub account: AccountId,
    pub kind: String,
    pub events: i64,
}

fn ranges(spans: &[Span]) -> (Vec<i64>, Vec<i64>) {
    spans.iter().map(|s| (s.first.0, s.last().0)).unzip()
}

/// Any numbers will do that no other lock of ours uses; these read "EvSw", "EvRb" and "EvUp" in ASCII.
const SWEEP_LOCK: i32 = 0x4576_5377;
const REBUILD_LOCK: i32 = 0x4576_5262;
const UPKEEP_LOCK: i32 = 0x4576_5570;

impl Link {
    /// Takes the lock of the sweep, which lasts as long as this connection. False when another process
    /// has it.
    pub async fn try_sweep_lock(&mut self) -> Result<bool, Error> {
        self.try_lock(SWEEP_LOCK).await
    }

    /// The same for the upkeep.
    pub async fn try_upkeep_lock(&mut self) -> Result<bool, Error> {
        self.try_lock(UPKEEP_LOCK).await
    }

    /// The same for making Redis's index again. It is given back when that is done.
    pub async fn try_rebuild_lock(&mut self) -> Result<bool, Error> {
        self.try_lock(REBUILD_LOCK).await
    }

    pub async fn release_rebuild_lock(&mut self) -> Result<(), Error> {
        let sql = "SELECT pg_advisory_unlock($1::int, hashtext(current_schema()))";
        self.query(sql, &[&REBUILD_LOCK]).await?;
        Ok(())
    }

    async fn try_lock(&mut self, lock: i32) -> Result<bool, Error> {
        // By schema too: deployments may share a database.
        let sql = "SELECT CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted
                       AND pid = pg_backend_pid() AND classid::bigint = $1::int) THEN true
                       ELSE pg_try_advisory_lock($1::int, hashtext(current_schema())) END";
        let rows = self.query(sql, &[&lock]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }
}

impl Store {
    /// What batches hold, by account and type. OFFSET 0 keeps each range a scan of its own by the index: as a
    /// plain join the planner, which cannot know how short a range is, reads the whole table once instead.
    pub async fn kinds_of(&self, spans: &[Span]) -> Result<Vec<Kind>, Error> {
        let (firsts, lasts) = ranges(spans);
        let client = self.client().await?;
        let sql = "SELECT r.first, e.account_id, e.type, count(*)
                   FROM unnest($1::bigint[], $2::bigint[]) AS r (first, last)
                   CROSS JOIN LATERAL (SELECT account_id, type FROM events
                       WHERE id BETWEEN r.first AND r.last OFFSET 0) AS e GROUP BY 1, 2, 3";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&firsts, &lasts]).await?;
        let kind =
            |row: &Row| Kind { first: row.get(0), account: row.get(1), kind: row.get(2), events: row.get(3) };
        Ok(rows.iter().map(kind).collect())
    }

    /// How many deliveries of each batch have ended.
    pub async fn count_final(&self, spans: &[Span]) -> Result<HashMap<EventId, i64>, Error> {
        let (firsts, lasts) = ranges(spans);
        let client = self.client().await?;
        let sql = "SELECT first, count(*) FROM (
                       SELECT DISTINCT r.first, a.event_id, a.webhook_id
                       FROM unnest($1::bigint[], $2::bigint[]) AS r (first, last)
                       CROSS JOIN LATERAL (SELECT event_id, webhook_id FROM delivery_attempts
                           WHERE event_id BETWEEN r.first AND r.last AND status <> 'failed' OFFSET 0) AS a
                   ) AS ended GROUP BY first";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&firsts, &lasts]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Batches of `owner` that are marked new although they are older than `age_ms`, oldest first.
    pub async fn unsent_batches(
        &self,
        owner: i64,
        age_ms: i64,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<Span>, Error> {
        let client = self.client().await?;
        let sql = "SELECT first_id, n, config_version FROM batches
                   WHERE owner = $1 AND state = 0 AND first_id > $2
                     AND created_at < now() - $3 * interval '1 millisecond'
                   ORDER BY first_id LIMIT $4";
        let age = age_ms as f64;
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&owner, &after, &age, &limit]).await?;
        Ok(rows.iter().map(span).collect())
    }

    /// Makes `new` batches of a dead owner ours, unless it has beaten since its last known beat (-1 without a row): then it was slow
    /// and is alive. One short statement; rows another process takes over at the same time are left to it.
    pub async fn take_over(&self, dead: i64, beat: i64, me: i64, limit: i64) -> Result<Vec<Span>, Error> {
        let client = self.client().await?;
        let sql = "UPDATE batches SET owner = $2 WHERE first_id IN (
                       SELECT first_id FROM batches WHERE owner = $1 AND state = 0
                       ORDER BY first_id LIMIT $3 FOR UPDATE SKIP LOCKED)
                       AND coalesce((SELECT beat FROM instances WHERE id = $1), -1) = $4
                   RETURNING first_id, n, config_version";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&dead, &me, &limit, &beat]).await?;
        Ok(rows.iter().map(span).collect())
    }

    /// Owners of new batches, alive or not.
    pub async fn owners_of_unsent(&self) -> Result<Vec<i64>, Error> {
        let client = self.client().await?;
        let sql = "SELECT DISTINCT owner FROM batches WHERE state = 0";
        let statement = client.prepare_cached(sql).await?;
        Ok(client.query(&statement, &[]).await?.iter().map(|r| r.get(0)).collect())
    }

    /// Streamed batches older than `age_ms`, by id from `after` on, for the sweep.
    pub async fn streamed_batches(
        &self,
        age_ms: i64,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<Span>, Error> {
        let client = self.client().await?;
        let sql = "SELECT first_id, n, config_version FROM batches
                   WHERE state = 1 AND first_id > $1 AND created_at < now() - $2 * interval '1 millisecond'
                   ORDER BY first_id LIMIT $3";
        let age = age_ms as f64;
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&after, &age, &limit]).await?;
        Ok(rows.iter().map(span).collect())
    }

    /// Removes batches that are accounted for.
    pub async fn remove_batches(&self, spans: &[Span]) -> Result<(), Error> {
        let firsts: Vec<i64> = spans.iter().map(|s| s.first.0).collect();
        let client = self.client().await?;
        let statement = client.prepare_cached("DELETE FROM batches WHERE first_id = ANY ($1)").await?;
        client.execute(&statement, &[&firsts]).await?;
        Ok(())
    }

    /// How many batches are not yet accounted for.
    pub async fn count_batches(&self) -> Result<i64, Error> {
        let client = self.client().await?;
        Ok(client.query_one("SELECT count(*) FROM batches", &[]).await?.get(0))
    }

    /// The batch that holds an event while it is not accounted for, and whether it was streamed.
    pub async fn batch_of(&self, event: EventId) -> Result<Option<(Span, bool)>, Error> {
        let client = self.client().await?;
        let sql = "SELECT first_id, n, config_version, state FROM batches
                   WHERE first_id BETWEEN $1::bigint - 1023 AND $1 AND last_id >= $1";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_opt(&statement, &[&event]).await?;
        Ok(row.map(|row| (span(&row), row.get::<_, i16>(3) == 1)))
    }
}
