//! Where an event's deliveries are, for the API.

use tokio_postgres::Row;

use super::{Error, Store};
use crate::model::{AccountId, EventId, Timestamp, WebhookId};

/// One attempt, as the API shows it.
#[derive(Debug)]
pub struct AttemptRow {
    pub id: i64,
    pub webhook: WebhookId,
    pub round: i16,
    pub attempt: i16,
    pub status: String,
    pub code: Option<i16>,
    pub body: Option<String>,
    pub error: Option<String>,
    pub reason_code: String,
    pub duration_ms: i32,
    pub transform: Option<i32>,
    pub created_at: Timestamp,
}

/// A delivery in the schedule.
#[derive(Debug)]
pub struct Waiting {
    pub webhook: WebhookId,
    pub round: i16,
    pub attempt: i16,
    pub next_at: Timestamp,
    pub expires_at: Timestamp,
    pub reason: String,
}

fn attempt(row: &Row) -> AttemptRow {
    AttemptRow {
        id: row.get(0),
        webhook: row.get(1),
        round: row.get(2),
        attempt: row.get(3),
        status: row.get(4),
        code: row.get(5),
        body: row.get(6),
        error: row.get(7),
        reason_code: row.get(8),
        duration_ms: row.get(9),
        created_at: row.get(10),
        transform: row.get(11),
    }
}

impl Store {
    /// The attempts of one event, oldest first, the first 1,000. The account is part of the query, not checked
    /// after it.
    pub async fn attempts(&self, account: AccountId, event: EventId) -> Result<Vec<AttemptRow>, Error> {
        let client = self.client().await?;
        let sql = "SELECT a.id, a.webhook_id, a.round, a.attempt, a.status, a.response_code, a.response_body,
                          a.error, a.reason_code, a.duration_ms, a.created_at, a.transform_version
                   FROM events AS e JOIN delivery_attempts AS a ON a.event_id = e.id
                   WHERE e.id = $1 AND e.account_id = $2 AND a.event_id = $1 ORDER BY a.id LIMIT 1000";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&event, &account]).await?;
        Ok(rows.iter().map(attempt).collect())
    }

    /// The newest attempts of one webhook, by its account's newest `events` only: attempts are found by their event, and
    /// an index by webhook would cost every delivery. The inner limit also keeps Postgres at one look-up an event.
    pub async fn last_outcomes(
        &self,
        account: AccountId,
        webhook: WebhookId,
        events: i64,
        limit: i64,
    ) -> Result<Vec<(EventId, AttemptRow)>, Error> {
        let client = self.client().await?;
        let sql = "SELECT a.id, a.webhook_id, a.round, a.attempt, a.status, a.response_code, NULL::text,
                          a.error, a.reason_code, a.duration_ms, a.created_at, a.transform_version, a.event_id
                   FROM (SELECT id FROM events WHERE account_id = $1 ORDER BY id DESC LIMIT $3) AS e
                   CROSS JOIN LATERAL (SELECT * FROM delivery_attempts WHERE event_id = e.id AND webhook_id = $2
                       ORDER BY round DESC, attempt DESC LIMIT $4) AS a
                   ORDER BY a.id DESC LIMIT $4";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&account, &webhook, &events, &limit]).await?;
        Ok(rows.iter().map(|row| (row.get(12), attempt(row))).collect())
    }

    /// What of an event stands in the schedule.
    pub async fn waiting(&self, event: EventId) -> Result<Vec<Waiting>, Error> {
        let client = self.client().await?;
        let sql = "SELECT webhook_id, round, attempt, next_at, expires_at, reason FROM scheduled
                   WHERE event_id = $1 ORDER BY webhook_id";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&event]).await?;
        Ok(rows
            .iter()
            .map(|row| Waiting {
                webhook: row.get(0),
                round: row.get(1),
                attempt: row.get(2),
                next_at: row.get(3),
                expires_at: row.get(4),
                reason: row.get(5),
            })
            .collect())
    }
}
