//! Webhooks as their account sees and changes them. Every statement asks for the account.

use tokio_postgres::Row;

use super::{Error, Store};
use crate::model::{AccountId, Timestamp, WebhookId};

/// A webhook as the API shows it. Values of its headers stay here.
#[derive(Debug)]
pub struct Shown {
    pub id: WebhookId,
    pub name: String,
    pub url: String,
    pub event_types: Option<Vec<String>>,
    pub state: String,
    pub disabled_reason: Option<String>,
    /// Names and values in turn.
    pub headers: Vec<String>,
    pub rate_limit: Option<f64>,
    pub retry_waits_ms: Option<Vec<i64>>,
    pub timeout_ms: Option<i32>,
    pub in_flight_max: Option<i32>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What to change; what is none stays. Of fields with a default the inner none is that default.
#[derive(Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Option<Vec<String>>>,
    /// `active`, `paused`, `disabled` or `deleted`.
    pub state: Option<&'static str>,
    /// All headers, names and values in turn.
    pub headers: Option<Vec<String>>,
    pub rate_limit: Option<Option<f64>>,
    pub retry_waits_ms: Option<Option<Vec<i64>>>,
    pub timeout_ms: Option<Option<i32>>,
    pub in_flight_max: Option<Option<i32>>,
}

const COLUMNS: &str =
    "id, name, url, event_types, state, disabled_reason, headers, rate_limit, retry_waits_ms,
    timeout_ms, in_flight_max, created_at, updated_at";

/// The new values as a row of their own, so that `state` below is the old one. Enabled again, a webhook is owed what
/// comes from then on. Another place or another start is given its time before it counts as failing, and a suspended
/// transform another chance. A state is the account's own from then on.
const CHANGE: &str = "
WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
w AS (UPDATE webhooks SET version = config_version,
    updated_at = date_trunc('milliseconds', clock_timestamp()),
    name = coalesce($3, name), url = coalesce($4, url),
    event_types = CASE WHEN $5 THEN $6::text[] ELSE event_types END,
    transform_suspended = CASE WHEN $7::text IS NULL THEN transform_suspended END,
    since_version = CASE WHEN state = 'disabled' AND $7::text IN ('active', 'paused') THEN config_version
        ELSE since_version END,
    until_version = CASE WHEN $7::text IN ('disabled', 'deleted') THEN coalesce(until_version, config_version)
        WHEN $7::text IN ('active', 'paused') THEN NULL ELSE until_version END,
    disabled_reason = CASE WHEN $7::text = 'disabled' THEN coalesce(disabled_reason, 'by the account')
        WHEN $7::text IN ('active', 'paused') THEN NULL ELSE disabled_reason END,
    resumed_at = CASE WHEN state = 'paused' AND $7::text = 'active' THEN now() ELSE resumed_at END,
    failing_since = CASE WHEN $4::text IS NOT NULL OR $7::text IN ('active', 'paused') THEN NULL ELSE failing_since END,
    still_failing_at = NULL,
    state = coalesce($7::text, state), headers = coalesce($8::text[], headers),
    rate_limit = CASE WHEN $9 THEN $10::float8 ELSE rate_limit END,
    retry_waits_ms = CASE WHEN $11 THEN $12::bigint[] ELSE retry_waits_ms END,
    timeout_ms = CASE WHEN $13 THEN $14::int ELSE timeout_ms END,
    in_flight_max = CASE WHEN $15 THEN $16::int ELSE in_flight_max END
    FROM v WHERE id = $2 AND account_id = $1 AND state <> 'deleted' RETURNING webhooks.*),
a AS (UPDATE accounts SET version = config_version FROM v WHERE id = $1 AND EXISTS (SELECT FROM w)),
t AS (UPDATE transforms SET state = CASE state WHEN 'suspended' THEN 'ready' ELSE state END,
    reason = CASE state WHEN 'suspended' THEN NULL ELSE reason END
    FROM w, v WHERE transforms.webhook_id = w.id AND transforms.version = w.transform_version AND w.state = 'active'
        AND (w.resumed_at = now() OR w.since_version = config_version))
SELECT ";

fn shown(row: &Row) -> Shown {
    Shown {
        id: row.get(0),
        name: row.get(1),
        url: row.get(2),
        event_types: row.get(3),
        state: row.get(4),
        disabled_reason: row.get(5),
        headers: row.get(6),
        rate_limit: row.get(7),
        retry_waits_ms: row.get(8),
        timeout_ms: row.get(9),
        in_flight_max: row.get(10),
        created_at: row.get(11),
        updated_at: row.get(12),
    }
}

impl Store {
    /// An account's webhooks, newest first, below `before`.
    pub async fn list_webhooks(
        &self,
        account: AccountId,
        before: WebhookId,
        limit: i64,
    ) -> Result<Vec<Shown>, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM webhooks WHERE account_id = $1 AND id < $2 AND state <> 'deleted'
             ORDER BY id DESC LIMIT $3"
        );
        let rows = client.query(&client.prepare_cached(&sql).await?, &[&account, &before, &limit]).await?;
        Ok(rows.iter().map(shown).collect())
    }

    /// One webhook, if it is this account's.
    pub async fn webhook(&self, account: AccountId, id: WebhookId) -> Result<Option<Shown>, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM webhooks WHERE account_id = $1 AND id = $2 AND state <> 'deleted'"
        );
        let row = client.query_opt(&client.prepare_cached(&sql).await?, &[&account, &id]).await?;
        Ok(row.as_ref().map(shown))
    }

    /// How much stands in the schedule for a webhook, counted up to `max`, and how much of it waits for its lane.
    pub async fn scheduled_for(&self, id: WebhookId, max: i64) -> Result<(i64, i64), Error> {
        let client = self.client().await?;
        let sql = "SELECT count(*), count(*) FILTER (WHERE reason IN ('breaker', 'backlog', 'paused'))
                   FROM (SELECT reason FROM scheduled WHERE webhook_id = $1 LIMIT $2) AS s";
        let row = client.query_one(&client.prepare_cached(sql).await?, &[&id, &max]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Changes a webhook; none when it is not this account's. Dispatchers notice within about a second.
    pub async fn change_webhook(
        &self,
        account: AccountId,
        id: WebhookId,
        change: &Change,
    ) -> Result<Option<Shown>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(&format!("{CHANGE}{COLUMNS} FROM w")).await?;
        let row = client
            .query_opt(
                &statement,
                &[
                    &account,
                    &id,
                    &change.name,
                    &change.url,
                    &change.event_types.is_some(),
                    &change.event_types.as_ref().and_then(Option::as_ref),
                    &change.state,
                    &change.headers,
                    &change.rate_limit.is_some(),
                    &change.rate_limit.flatten(),
                    &change.retry_waits_ms.is_some(),
                    &change.retry_waits_ms.as_ref().and_then(Option::as_ref),
                    &change.timeout_ms.is_some(),
                    &change.timeout_ms.flatten(),
                    &change.in_flight_max.is_some(),
                    &change.in_flight_max.flatten(),
                ],
            )
            .await?;
        Ok(row.as_ref().map(shown))
    }
}
