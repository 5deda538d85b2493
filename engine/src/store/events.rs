//! The group commit, and reading back what it wrote.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio_postgres::{Row, types::ToSql};

use super::{Error, Link, Store, Text};
use crate::model::{AccountId, Batch, Event, EventId, Span, Timestamp, Trace, WebhookId};

/// Ids a block holds; the sequence counts blocks.
pub const BLOCK: i64 = 1024;

macro_rules! commit {
    ($column:literal, $value:literal, $array:literal, $name:literal) => {
        concat!(
            "
WITH batch AS (
    INSERT INTO batches (first_id, last_id, n, owner, config_version, created_at)
    SELECT $1::bigint, $1::bigint + $5::int - 1, $5::int, $6::bigint, config_version,
        date_trunc('milliseconds', clock_timestamp())
    FROM engine_state
    RETURNING config_version, created_at
), inserted AS (
    INSERT INTO events (id, account_id, type, payload, created_at",
            $column,
            ")
    SELECT $1::bigint + e.n - 1, e.account, e.type, e.payload, batch.created_at",
            $value,
            "
    FROM batch, unnest($2::bigint[], $3::text[], $4::text[]",
            $array,
            ") WITH ORDINALITY AS e (account, type, payload",
            $name,
            ", n)
)
SELECT config_version, created_at, CASE WHEN $7 THEN nextval('event_id_blocks') END FROM batch"
        )
    };
}

/// Events and their batch row in one statement: one round trip, one implicit transaction. It also fetches the next
/// block of ids when asked to.
///
/// `created_at` and the configuration version are read by the statement itself, so that no node's clock
/// and no cache decides which webhooks an event is owed to.
const COMMIT: &str = commit!("", "", "", "");

/// Likewise, where some event has a trace: other batches do not pay for the array.
const COMMIT_TRACED: &str = commit!(", trace", ", e.trace", ", $8::bytea[]", ", trace");

const LOOK_UP: &str = "SELECT config_version, created_at, NULL::bigint FROM batches
    WHERE first_id = $1 AND n = $2 AND owner = $3";

const MARK: &str = "UPDATE batches SET state = 1 WHERE first_id IN (
    SELECT first_id FROM batches WHERE first_id = ANY ($1::bigint[]) AND owner = $2 AND state = 0
    FOR UPDATE SKIP LOCKED)";

/// What one group commit sends.
#[derive(Debug, Default)]
pub struct Insert {
    pub first: i64,
    pub accounts: Vec<i64>,
    pub kinds: Vec<Box<str>>,
    pub payloads: Vec<Text>,
    /// Empty when no event has one.
    pub traces: Vec<Option<Trace>>,
}

impl Insert {
    pub fn len(&self) -> i32 {
        i32::try_from(self.accounts.len()).expect("a batch has at most 1,024 events")
    }

    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Takes the upper half out, for finding the row that Postgres refuses.
    pub fn split(&mut self) -> Insert {
        let at = self.accounts.len() / 2;
        Insert {
            first: self.first + at as i64,
            accounts: self.accounts.split_off(at),
            kinds: self.kinds.split_off(at),
            payloads: self.payloads.split_off(at),
            traces: self.traces.split_off(at.min(self.traces.len())),
        }
    }
}

/// What a committed batch came back with.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub version: i64,
    pub at: Timestamp,
    /// A block of ids for the next batch, when one was asked for.
    pub block: Option<i64>,
}

impl Committed {
    fn from_row(row: &Row) -> Committed {
        Committed { version: row.get(0), at: row.get(1), block: row.get(2) }
    }
}

impl Link {
    /// Makes ready for the first commit.
    pub async fn warm_commit(&mut self) -> Result<(), Error> {
        self.warm(COMMIT).await
    }

    /// Commits a batch of `owner`.
    pub async fn commit(
        &mut self,
        insert: &Insert,
        owner: i64,
        want_block: bool,
    ) -> Result<Committed, Error> {
        let n = insert.len();
        let params: [&(dyn ToSql + Sync); 8] = [
            &insert.first,
            &insert.accounts,
            &insert.kinds,
            &insert.payloads,
            &n,
            &owner,
            &want_block,
            &insert.traces,
        ];
        let (sql, params) =
            if insert.traces.is_empty() { (COMMIT, &params[..7]) } else { (COMMIT_TRACED, &params[..]) };
        let rows = self.query(sql, params).await?;
        let committed = rows.first().map(Committed::from_row).ok_or(Error::NotMigrated)?;
        self.history().read(committed.version);
        if let Some(block) = committed.block {
            self.history().note(block);
        }
        Ok(committed)
    }

    /// Whether a batch whose commit had no answer is there.
    pub async fn look_up(&mut self, insert: &Insert, owner: i64) -> Result<Option<Committed>, Error> {
        let rows = self.query(LOOK_UP, &[&insert.first, &insert.len(), &owner]).await?;
        Ok(rows.first().map(Committed::from_row))
    }

    /// Marks batches of `owner` as streamed, those that are still there and still `owner`'s.
    pub async fn mark(&mut self, streamed: &[i64], owner: i64) -> Result<(), Error> {
        self.query(MARK, &[&streamed, &owner]).await?;
        Ok(())
    }

    /// A block of ids, as a round trip of its own, for the first batch after an idle time.
    pub async fn block(&mut self) -> Result<i64, Error> {
        let rows = self.query("SELECT nextval('event_id_blocks')", &[]).await?;
        let block = rows.first().map(|row| row.get(0)).ok_or(Error::NotMigrated)?;
        self.history().note(block);
        Ok(block)
    }
}

/// Payload bytes after which a page of events ends.
pub const PAGE_BYTES: i64 = 1 << 20;

const RANGES: &str = "SELECT e.id, e.account_id, e.type, e.payload, e.created_at, e.trace
    FROM unnest($1::bigint[], $2::bigint[]) AS r (first, last)
    CROSS JOIN LATERAL (SELECT * FROM events WHERE id BETWEEN r.first AND r.last ORDER BY id) AS e";

fn event(row: &Row) -> Event {
    Event {
        id: row.get(0),
        account: row.get(1),
        kind: row.get(2),
        payload: row.get::<_, Text>(3).0,
        created_at: row.get(4),
        trace: None,
    }
}

/// As [`event`], with the trace in column 5, for those who deliver it.
fn traced(row: &Row) -> Event {
    Event { trace: trace(row, 5), ..event(row) }
}

pub(super) fn trace(row: &Row, column: usize) -> Option<Box<Trace>> {
    row.get::<_, Option<&[u8]>>(column).and_then(Trace::from_stored).map(Box::new)
}

impl Store {
    /// The events of several batches in one query, in the order of `spans`.
    pub async fn batches(&self, spans: &[Span]) -> Result<Vec<Batch>, Error> {
        let firsts: Vec<i64> = spans.iter().map(|s| s.first.0).collect();
        let lasts: Vec<i64> = spans.iter().map(|s| s.last().0).collect();
        let client = self.client().await?;
        let statement = client.prepare_cached(RANGES).await?;
        let rows = client.query(&statement, &[&firsts, &lasts]).await?;
        let mut found: HashMap<i64, Arc<Event>> = rows
            .iter()
            .map(|row| {
                let event = traced(row);
                (event.id.0, Arc::new(event))
            })
            .collect();
        Ok(spans
            .iter()
            .map(|span| Batch {
                span: *span,
                events: (span.first.0..=span.last().0).filter_map(|id| found.remove(&id)).collect(),
            })
            .collect())
    }

    /// Events by their ids, in any order. Those that are gone are missing.
    pub async fn events_of(&self, ids: &[EventId]) -> Result<HashMap<EventId, Arc<Event>>, Error> {
        let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
        let client = self.client().await?;
        let sql = "SELECT id, account_id, type, payload, created_at, trace FROM events WHERE id = ANY ($1)";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&ids]).await?;
        Ok(rows.iter().map(|row| (row.get(0), Arc::new(traced(row)))).collect())
    }

    /// Ids, accounts and types of a batch, without payloads, for the sweep.
    pub async fn outline(&self, span: Span) -> Result<Vec<(EventId, AccountId, String)>, Error> {
        let client = self.client().await?;
        let sql = "SELECT id, account_id, type FROM events WHERE id BETWEEN $1 AND $2";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&span.first, &span.last()]).await?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
    }

    /// Of a batch's deliveries, those that are final or stand in `scheduled`: not to be started again.
    pub async fn settled(&self, span: Span) -> Result<Vec<(EventId, WebhookId)>, Error> {
        let client = self.client().await?;
        let sql = "SELECT event_id, webhook_id FROM delivery_attempts
                   WHERE event_id BETWEEN $1 AND $2 AND status <> 'failed'
                   UNION SELECT event_id, webhook_id FROM scheduled WHERE event_id BETWEEN $1 AND $2";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&span.first, &span.last()]).await?;
        Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
    }

    /// An account's events, newest first, below `before`. A page ends early once its payloads reach
    /// [`PAGE_BYTES`], but always holds one event if there is one.
    pub async fn list_events(
        &self,
        account: AccountId,
        before: EventId,
        limit: i64,
    ) -> Result<Vec<Event>, Error> {
        let client = self.client().await?;
        let sql = "SELECT id, account_id, type, payload, created_at FROM (
                       SELECT *, sum(octet_length(payload)) OVER (ORDER BY id DESC) - octet_length(payload) AS before
                       FROM (SELECT * FROM events WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3) AS page
                   ) AS measured WHERE before < $4::bigint ORDER BY id DESC";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&account, &before, &limit, &PAGE_BYTES]).await?;
        Ok(rows.iter().map(event).collect())
    }

    /// One event, if it is this account's.
    pub async fn event(&self, account: AccountId, id: EventId) -> Result<Option<Event>, Error> {
        let client = self.client().await?;
        let sql =
            "SELECT id, account_id, type, payload, created_at FROM events WHERE id = $1 AND account_id = $2";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_opt(&statement, &[&id, &account]).await?;
        Ok(row.as_ref().map(event))
    }
}

impl From<Bytes> for Text {
    fn from(bytes: Bytes) -> Text {
        Text(bytes)
    }
}
