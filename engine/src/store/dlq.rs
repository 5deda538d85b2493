//! Dead letters.

use tokio_postgres::Row;

use super::{Error, Store, webhooks::timing};
use crate::model::{AccountId, EventId, Key, Own, Timestamp, WebhookId};

/// How many milliseconds from now a delivery to a webhook with these settings is given up.
pub type Expiry<'a> = &'a (dyn Fn(&Own) -> i64 + Sync);

/// One dead letter.
#[derive(Debug)]
pub struct Entry {
    pub id: i64,
    pub event: EventId,
    pub webhook: WebhookId,
    pub round: i16,
    pub attempts: i16,
    pub reason: String,
    pub reason_code: String,
    pub created_at: Timestamp,
    pub requeued_at: Option<Timestamp>,
}

/// The columns of an [`Entry`].
const ENTRY: &str = "id, event_id, webhook_id, round, attempts, reason, reason_code, created_at, requeued_at";

fn entry(row: &Row) -> Entry {
    Entry {
        id: row.get(0),
        event: row.get(1),
        webhook: row.get(2),
        round: row.get(3),
        attempts: row.get(4),
        reason: row.get(5),
        reason_code: row.get(6),
        created_at: row.get(7),
        requeued_at: row.get(8),
    }
}

/// What came of a requeue.
#[derive(Debug, PartialEq, Eq)]
pub enum Requeue {
    Done(Key),
    Unknown,
    AlreadyRequeued,
    /// The same delivery is on its way already, in a later round.
    Owed,
    WebhookDisabled,
}

/// Which dead letters are meant; what is none does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub webhook: Option<WebhookId>,
    pub reason_code: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// The part of a statement that a filter is, after the account in $1.
const FILTER: &str = "account_id = $1 AND ($2::bigint IS NULL OR webhook_id = $2)
    AND ($3::text IS NULL OR reason_code = $3)
    AND ($4::timestamptz IS NULL OR created_at >= $4) AND ($5::timestamptz IS NULL OR created_at < $5)";

/// What came of one page.
#[derive(Debug)]
pub struct Page {
    pub looked: usize,
    /// The id to go on after.
    pub last: Option<i64>,
    pub requeued: Vec<Key>,
}

/// A letter whose delivery is on its way in a later round stays as it is. Of several letters of one delivery all are requeued, by one
/// round, which is later than any that was tried: after a resend that may be more than the letter's own.
const REQUEUE: &str = "
WITH letter AS (
    UPDATE dlq_entries AS d SET requeued_at = date_trunc('milliseconds', clock_timestamp())
    FROM webhooks AS w, unnest($1::bigint[], $3::bigint[]) AS asked (id, expires_ms)
    WHERE d.id = asked.id AND d.account_id = $2 AND d.requeued_at IS NULL
      AND w.id = d.webhook_id AND w.state IN ('active', 'paused')
      AND NOT EXISTS (SELECT FROM scheduled AS s
          WHERE s.event_id = d.event_id AND s.webhook_id = d.webhook_id AND s.round > d.round)
    RETURNING d.event_id, d.webhook_id, d.round, asked.expires_ms
), delivery AS (
    SELECT event_id, webhook_id, max(round) AS round, max(expires_ms) AS expires_ms
    FROM letter GROUP BY event_id, webhook_id
)
INSERT INTO scheduled AS old (event_id, webhook_id, round, attempt, next_at, expires_at, reason, transform_version)
SELECT event_id, webhook_id, 1 + greatest(round, (SELECT max(a.round) FROM delivery_attempts AS a
        WHERE a.event_id = delivery.event_id AND a.webhook_id = delivery.webhook_id)),
    1, now(), now() + expires_ms * interval '1 millisecond', 'requeued', sent_version(event_id, webhook_id)
FROM delivery
ON CONFLICT (event_id, webhook_id) DO UPDATE SET round = excluded.round, attempt = 1, next_at = excluded.next_at,
    expires_at = excluded.expires_at, reason = excluded.reason, transform_version = excluded.transform_version,
    body_hash = NULL WHERE old.round < excluded.round
RETURNING event_id, webhook_id";

/// Ids of letters from the first column on, and when each one's new round ends by its webhook's own settings.
fn rounds(rows: &[Row], expiry: Expiry<'_>) -> (Vec<i64>, Vec<i64>) {
    rows.iter().map(|row| (row.get::<_, i64>(0), expiry(&timing(row, 1)))).unzip()
}

/// Looks at the next 1,000 letters by primary key (a number and no parameter, so that every plan knows it) and removes those of them that are old: ids are given out in the order of time,
/// so no index by age is needed, and a page with a young one in it is the last. What is still owed keeps its letter, which
/// says where it came from; one that is requeued at this moment is locked or no longer as it was looked at.
const REMOVE_OLD: &str = "
WITH page AS MATERIALIZED (
    SELECT id, requeued_at, created_at < now() - $2 * interval '1 millisecond' AS old
    FROM dlq_entries WHERE id > $1 ORDER BY id LIMIT 1000
), gone AS (
    DELETE FROM dlq_entries WHERE id = ANY (ARRAY(
        SELECT d.id FROM page JOIN dlq_entries AS d ON d.id = page.id
        WHERE page.old AND d.requeued_at IS NOT DISTINCT FROM page.requeued_at
            AND NOT EXISTS (SELECT FROM scheduled AS s WHERE s.event_id = d.event_id AND s.webhook_id = d.webhook_id)
        FOR UPDATE OF d SKIP LOCKED))
    RETURNING id
)
SELECT (SELECT count(*) FROM gone), max(id), count(*) = 1000 AND bool_and(old) FROM page";

/// What came of one step through the old letters.
#[derive(Debug)]
pub struct Removed {
    pub letters: u64,
    /// The id to go on after; none when the rest is not old enough.
    pub next: Option<i64>,
}

impl Store {
    /// Removes those of the next 1,000 dead letters after `after` that are older than `age_ms` and have nothing owed.
    pub async fn remove_old_letters(&self, after: i64, age_ms: i64) -> Result<Removed, Error> {
        let client = self.client().await?;
        let age = age_ms as f64;
        let statement = client.prepare_cached(REMOVE_OLD).await?;
        let row = client.query_one(&statement, &[&after, &age]).await?;
        let (letters, last): (i64, Option<i64>) = (row.get(0), row.get(1));
        let goes_on = row.get::<_, Option<bool>>(2) == Some(true);
        Ok(Removed { letters: letters.unsigned_abs(), next: last.filter(|_| goes_on) })
    }

    /// An account's dead letters that a filter names, newest first, below `before`.
    pub async fn list_dlq(
        &self,
        account: AccountId,
        filter: &Filter,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Entry>, Error> {
        let client = self.client().await?;
        let sql =
            format!("SELECT {ENTRY} FROM dlq_entries WHERE {FILTER} AND id < $6 ORDER BY id DESC LIMIT $7");
        let statement = client.prepare_cached(&sql).await?;
        let Filter { webhook, reason_code, since, until } = filter;
        let rows = client
            .query(&statement, &[&account, webhook, reason_code, since, until, &before, &limit])
            .await?;
        Ok(rows.iter().map(entry).collect())
    }

    /// The first 1,000 dead letters of one event, oldest first, of whichever account.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn letters_of(&self, event: EventId) -> Result<Vec<Entry>, Error> {
        let client = self.client().await?;
        let sql = format!("SELECT {ENTRY} FROM dlq_entries WHERE event_id = $1 ORDER BY id LIMIT 1000");
        Ok(client.query(&sql, &[&event]).await?.iter().map(entry).collect())
    }

    /// Puts a dead letter back into the schedule as a new round, in one statement: of two requeues at once
    /// one wins.
    pub async fn requeue(&self, account: AccountId, id: i64, expiry: Expiry<'_>) -> Result<Requeue, Error> {
        let client = self.client().await?;
        let sql = "SELECT d.id, w.retry_waits_ms, w.timeout_ms FROM dlq_entries AS d
                   JOIN webhooks AS w ON w.id = d.webhook_id WHERE d.id = $1 AND d.account_id = $2";
        let (ids, expires) = rounds(&client.query(sql, &[&id, &account]).await?, expiry);
        if let Some(row) = client.query_opt(REQUEUE, &[&ids, &account, &expires]).await? {
            return Ok(Requeue::Done((row.get(0), row.get(1))));
        }
        let sql = "SELECT requeued_at IS NOT NULL, EXISTS (SELECT FROM scheduled AS s
                       WHERE s.event_id = d.event_id AND s.webhook_id = d.webhook_id AND s.round > d.round)
                   FROM dlq_entries AS d WHERE id = $1 AND account_id = $2";
        Ok(match client.query_opt(sql, &[&id, &account]).await? {
            None => Requeue::Unknown,
            Some(row) if row.get(0) => Requeue::AlreadyRequeued,
            Some(row) if row.get(1) => Requeue::Owed,
            Some(_) => Requeue::WebhookDisabled,
        })
    }

    /// Requeues those of one page of a filter's dead letters that can be, the oldest first, above `after`.
    pub async fn requeue_page(
        &self,
        account: AccountId,
        filter: &Filter,
        after: i64,
        limit: i64,
        expiry: Expiry<'_>,
    ) -> Result<Page, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT d.id, w.retry_waits_ms, w.timeout_ms FROM (SELECT id, webhook_id FROM dlq_entries
                 WHERE {FILTER} AND requeued_at IS NULL AND id > $6 ORDER BY id LIMIT $7) AS d
             LEFT JOIN webhooks AS w ON w.id = d.webhook_id ORDER BY d.id"
        );
        let statement = client.prepare_cached(&sql).await?;
        let Filter { webhook, reason_code, since, until } = filter;
        let rows =
            client.query(&statement, &[&account, webhook, reason_code, since, until, &after, &limit]).await?;
        let (ids, expires) = rounds(&rows, expiry);
        let statement = client.prepare_cached(REQUEUE).await?;
        let rows = client.query(&statement, &[&ids, &account, &expires]).await?;
        let requeued = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Page { looked: ids.len(), last: ids.last().copied(), requeued })
    }

    /// How many of a filter's dead letters above `after` are not requeued, counted up to `max`.
    pub async fn count_letters(
        &self,
        account: AccountId,
        filter: &Filter,
        after: i64,
        max: i64,
    ) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM dlq_entries WHERE {FILTER} AND requeued_at IS NULL AND id > $6
             ORDER BY id LIMIT $7) AS found"
        );
        let statement = client.prepare_cached(&sql).await?;
        let Filter { webhook, reason_code, since, until } = filter;
        let row = client
            .query_one(&statement, &[&account, webhook, reason_code, since, until, &after, &max])
            .await?;
        Ok(row.get(0))
    }
}
