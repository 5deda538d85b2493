//! Webhooks from which nothing but failures comes, and disabling them. See "Failing webhooks" in ARCHITECTURE.md.

use super::{Error, Store};
use crate::model::{EventId, Span, WebhookId};

/// Candidates of one look.
const CANDIDATES_MAX: i64 = 100;

/// How long after the last failure a process may take to tell of a success before it: several times what it takes.
const TELLING_MS: f64 = 3000.0;

/// A success anywhere ends the failing, whoever saw the failures.
const SUCCEEDED: &str = "
UPDATE webhooks SET failing_since = NULL, still_failing_at = NULL
WHERE failing_since IS NOT NULL AND state <> 'disabled' AND id = ANY ($1::bigint[])";

/// Writes a row twice in all, however often its webhook fails.
const FAILED: &str = "
UPDATE webhooks SET failing_since = coalesce(failing_since, now()),
    still_failing_at = CASE WHEN failing_since < now() - $2 * interval '1 millisecond' THEN now() END
WHERE id = ANY ($1::bigint[]) AND state = 'active' AND still_failing_at IS NULL
    AND (failing_since IS NULL OR failing_since < now() - $2 * interval '1 millisecond')";

const CANDIDATES: &str = "
SELECT id FROM webhooks WHERE still_failing_at < now() - $1 * interval '1 millisecond'
    AND failing_since < still_failing_at - $2 * interval '1 millisecond' AND state = 'active'
ORDER BY still_failing_at LIMIT $3";

/// Asks once more what made it a candidate, of the row as it is when its lock is had: of several processes one disables
/// it, and a success that was told meanwhile counts. The account is told of it by an event in the same transaction, at
/// the configuration in which the webhook is out already, and at most once an hour.
const DISABLE: &str = "
WITH t AS MATERIALIZED (SELECT date_trunc('milliseconds', clock_timestamp()) AS at),
v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
w AS (UPDATE webhooks SET state = 'disabled', until_version = config_version, version = config_version,
             updated_at = at, disabled_reason = $2, still_failing_at = NULL,
             disabled_event_at = CASE WHEN disabled_event_at > at - interval '1 hour' THEN disabled_event_at ELSE at END
      FROM v, t WHERE id = $1 AND state NOT IN ('disabled', 'deleted')
          AND ($3::float8 IS NULL OR (state = 'active' AND still_failing_at IS NOT NULL
              AND failing_since < still_failing_at - $3 * interval '1 millisecond'))
      RETURNING id, account_id, name, url, failing_since, disabled_event_at = at AS is_told, at, config_version),
a AS (UPDATE accounts SET version = config_version FROM w WHERE accounts.id = w.account_id),
e AS MATERIALIZED (SELECT nextval('event_id_blocks') * 1024 AS first FROM w WHERE is_told),
event AS (
    INSERT INTO events (id, account_id, type, payload, created_at)
    SELECT first, account_id, $4::text, json_build_object('webhookId', id, 'name', name,
        'url', regexp_replace(regexp_replace(url, '[?#].*$', ''), '^([^:]+://)[^/]*@', '\\1'), 'reason', $2::text,
        'failingSince', to_char(failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
        'disabledAt', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'))::text, at
    FROM e, w
), batch AS (
    INSERT INTO batches (first_id, last_id, n, owner, config_version, created_at)
    SELECT first, first, 1, $5::bigint, config_version, at FROM e, w
)
SELECT config_version, first FROM w LEFT JOIN e ON true";

/// The type of the event that tells an account.
const DISABLED: &str = "eventpulse.webhook.disabled";

/// Why a webhook is disabled by the engine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its endpoint answered 410.
    Gone,
    /// Nothing but failures came for so many milliseconds.
    Failing { after_ms: i64 },
}

impl Cause {
    /// As it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Gone => "410 Gone",
            Cause::Failing { .. } => "failing",
        }
    }
}

impl Store {
    /// Notes that these webhooks have taken deliveries again.
    pub async fn note_succeeded(&self, webhooks: &[WebhookId]) -> Result<(), Error> {
        let client = self.client().await?;
        client.execute(&client.prepare_cached(SUCCEEDED).await?, &[&webhooks]).await?;
        Ok(())
    }

    /// Notes that the last word of these webhooks is a failure.
    pub async fn note_failed(&self, webhooks: &[WebhookId], after_ms: i64) -> Result<(), Error> {
        let client = self.client().await?;
        let after = after_ms as f64;
        client.execute(&client.prepare_cached(FAILED).await?, &[&webhooks, &after]).await?;
        Ok(())
    }

    /// Some of the webhooks that have failed for longer than `after_ms`, as far as everybody has told.
    pub async fn failing_webhooks(&self, after_ms: i64) -> Result<Vec<WebhookId>, Error> {
        let client = self.client().await?;
        let after = after_ms as f64;
        let statement = client.prepare_cached(CANDIDATES).await?;
        let rows = client.query(&statement, &[&TELLING_MS, &after, &CANDIDATES_MAX]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Disables a webhook. What it is owed is dead-lettered as it comes up; later events are not owed to it. None when
    /// it was not this call that did; else the batch of `owner` that tells of it, if there is one, to be streamed.
    pub async fn disable_webhook(
        &self,
        id: WebhookId,
        cause: Cause,
        owner: i64,
    ) -> Result<Option<Option<Span>>, Error> {
        let after = match cause {
            Cause::Gone => None,
            Cause::Failing { after_ms } => Some(after_ms as f64),
        };
        let client = self.client().await?;
        let statement = client.prepare_cached(DISABLE).await?;
        let row = client.query_opt(&statement, &[&id, &cause.name(), &after, &DISABLED, &owner]).await?;
        Ok(row.map(|row| {
            let first: Option<EventId> = row.get(1);
            first.map(|first| Span { first, n: 1, version: row.get(0) })
        }))
    }
}
