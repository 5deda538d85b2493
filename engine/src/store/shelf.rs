//! Rows of the schedule that wait for their lane's word and not for a time: see [`SHELVED`](super::settle::SHELVED).

use super::{Error, Store};
use crate::model::{EventId, Key, WebhookId};

/// Webhooks found by one look.
const WEBHOOKS_MAX: i64 = 10_000;

/// Skips from webhook to webhook in the index (PostgreSQL wiki, "Loose indexscan"): its cost is that of the webhooks, not
/// of their rows. Paused ones keep theirs.
const WEBHOOKS: &str = "
WITH RECURSIVE w AS (
    (SELECT webhook_id FROM scheduled WHERE reason IN ('breaker', 'backlog', 'paused') ORDER BY webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT s.webhook_id FROM scheduled AS s WHERE reason IN ('breaker', 'backlog', 'paused')
            AND s.webhook_id > w.webhook_id ORDER BY s.webhook_id LIMIT 1)
    FROM w WHERE w.webhook_id IS NOT NULL
)
SELECT f.webhook_id, coalesce(h.state, 'deleted') IN ('disabled', 'deleted')
FROM (SELECT webhook_id FROM w LIMIT $1) AS f LEFT JOIN webhooks AS h ON h.id = f.webhook_id
WHERE f.webhook_id IS NOT NULL AND h.state IS DISTINCT FROM 'paused'";

const PULL: &str = "
UPDATE scheduled SET next_at = now(), reason = 'parked' WHERE (event_id, webhook_id) IN (
    SELECT event_id, webhook_id FROM scheduled
    WHERE webhook_id = $1 AND reason IN ('breaker', 'backlog', 'paused') AND expires_at > now()
        AND NOT EXISTS (SELECT FROM webhooks WHERE id = $1 AND state = 'paused')
    ORDER BY event_id LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING event_id";

/// Ends what a statement took out of the schedule as `gone`, with the code and the text of a reason. The attempt that was not
/// made is recorded as the one that ended it, so that every outcome has a row.
pub(super) const END: &str = "
attempts AS (
    INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, error, reason_code, duration_ms, created_at)
    SELECT event_id, webhook_id, round, attempt, 'dead', why, code, 0, date_trunc('milliseconds', clock_timestamp())
    FROM gone ON CONFLICT DO NOTHING
), letters AS (
    INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
    SELECT e.account_id, g.event_id, g.webhook_id, g.round, g.attempt - 1, g.why, g.code
    FROM gone AS g JOIN events AS e ON e.id = g.event_id
    ON CONFLICT (event_id, webhook_id, round) DO NOTHING
)
SELECT count(*) FROM gone";

const EXPIRE: &str = "
WITH gone AS (
    DELETE FROM scheduled WHERE (event_id, webhook_id) IN (
        SELECT event_id, webhook_id FROM scheduled
        WHERE next_at <= now() AND expires_at <= now() AND reason IN ('breaker', 'backlog', 'paused')
        ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED)
    RETURNING event_id, webhook_id, round, attempt, 'expired_while_parked' AS code,
        'its time was up while it waited: ' || reason AS why
), ";

impl Store {
    /// Webhooks for which something is shelved, but for paused ones, and whether each is disabled or gone.
    pub async fn shelved_webhooks(&self) -> Result<Vec<(WebhookId, bool)>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(WEBHOOKS).await?;
        let rows = client.query(&statement, &[&WEBHOOKS_MAX]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Takes up to `limit` of a webhook's deliveries from the shelf, the oldest first: they are due now.
    pub async fn pull_shelved(&self, webhook: WebhookId, limit: i64) -> Result<Vec<Key>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(PULL).await?;
        let rows = client.query(&statement, &[&webhook, &limit]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, EventId>(0), webhook)).collect())
    }

    /// Dead-letters up to `limit` shelved deliveries whose time is up. Returns how many there were.
    pub async fn expire_shelved(&self, limit: i64) -> Result<u64, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(&format!("{EXPIRE}{END}")).await?;
        let gone: i64 = client.query_one(&statement, &[&limit]).await?.get(0);
        Ok(gone.unsigned_abs())
    }
}
