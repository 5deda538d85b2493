//! What `eventpulse explain` asks beyond what the API does: an event of whichever account, and who streams its batch.

use super::{Error, Store};
use crate::model::{AccountId, EventId, Span, Timestamp, WebhookId};

/// An event without its payload.
#[derive(Debug)]
pub struct Outline {
    pub account: AccountId,
    pub kind: String,
    /// Of the payload, in UTF-8.
    pub bytes: i32,
    pub created_at: Timestamp,
    /// The time by Postgres.
    pub now: Timestamp,
}

/// The batch of an event, while something of it may be owed.
#[derive(Debug)]
pub struct Batch {
    pub span: Span,
    pub streamed: bool,
    /// The instance that streams it.
    pub owner: i64,
    /// How often that instance has beaten, about once a second; none when it has left or was found dead.
    pub beat: Option<i64>,
}

/// A webhook's name, and what its row says that dispatch does not need.
#[derive(Debug)]
pub struct Named {
    pub webhook: WebhookId,
    pub name: String,
    pub disabled_reason: Option<String>,
    pub created_at: Timestamp,
}

impl Store {
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn outline_of(&self, event: EventId) -> Result<Option<Outline>, Error> {
        let client = self.client().await?;
        let sql = "SELECT account_id, type, octet_length(payload), created_at,
                          date_trunc('milliseconds', clock_timestamp()) FROM events WHERE id = $1";
        let row = client.query_opt(sql, &[&event]).await?;
        Ok(row.map(|row| Outline {
            account: row.get(0),
            kind: row.get(1),
            bytes: row.get(2),
            created_at: row.get(3),
            now: row.get(4),
        }))
    }

    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn batch_row_of(&self, event: EventId) -> Result<Option<Batch>, Error> {
        let client = self.client().await?;
        let sql = "SELECT b.first_id, b.n, b.config_version, b.state = 1, b.owner, i.beat
                   FROM batches AS b LEFT JOIN instances AS i ON i.id = b.owner
                   WHERE b.first_id BETWEEN $1::bigint - 1023 AND $1 AND b.last_id >= $1";
        let row = client.query_opt(sql, &[&event]).await?;
        Ok(row.map(|row| Batch {
            span: Span { first: row.get(0), n: row.get(1), version: row.get(2) },
            streamed: row.get(3),
            owner: row.get(4),
            beat: row.get(5),
        }))
    }

    /// Every webhook of an account, deleted ones too.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn names_of(&self, account: AccountId) -> Result<Vec<Named>, Error> {
        let client = self.client().await?;
        let sql =
            "SELECT id, name, disabled_reason, created_at FROM webhooks WHERE account_id = $1 ORDER BY id";
        let rows = client.query(sql, &[&account]).await?;
        Ok(rows
            .iter()
            .map(|row| Named {
                webhook: row.get(0),
                name: row.get(1),
                disabled_reason: row.get(2),
                created_at: row.get(3),
            })
            .collect())
    }
}
