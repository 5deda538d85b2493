//! Rows of the schedule that wait for their lane's word and not for a time: see [`SHELVED`](super::settle::SHELVED).

use super::{Error, Store};
use crate::model::{AccountId, EventId, Key, WebhookId};

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

/// What one look at shelved deliveries whose time is up came to.
#[derive(Clone, Copy, Debug)]
pub struct Expired {
    /// Dead-lettered.
    pub gone: u64,
    /// These, and those that were given more time.
    pub looked: u64,
}

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
) SELECT (SELECT count(*) FROM gone)";

/// Until when nothing of a webhook `h` expires; null for one that was never paused. Time in a pause does not count: as long as it
/// lasts there is no end, and from its end on what waited has a whole schedule, the deployment's ($3, in milliseconds) or
/// the webhook's own if its waits are longer. Asked where an expiry is, and not written into a million rows when a webhook is resumed.
pub(super) const SPARED_UNTIL: &str = "
    CASE h.state WHEN 'paused' THEN now() WHEN 'active' THEN h.resumed_at END + interval '1 millisecond'
        * greatest($3::float8, 1.2 * (SELECT sum(wait) FROM unnest(h.retry_waits_ms) AS wait))";

/// What is spared is moved on, or it would stand in the way of the rest at every look.
fn expire() -> String {
    format!(
        "WITH up AS MATERIALIZED (
            SELECT s.event_id, s.webhook_id, {SPARED_UNTIL} AS spared
            FROM scheduled AS s LEFT JOIN webhooks AS h ON h.id = s.webhook_id
            WHERE s.next_at <= now() AND s.expires_at <= now() AND s.reason IN ('breaker', 'backlog', 'paused')
            ORDER BY s.next_at LIMIT $1 FOR UPDATE OF s SKIP LOCKED
        ), spared AS (
            UPDATE scheduled AS s SET next_at = up.spared, expires_at = up.spared FROM up
            WHERE s.event_id = up.event_id AND s.webhook_id = up.webhook_id AND up.spared > now()
        ), gone AS (
            DELETE FROM scheduled AS s USING up
            WHERE s.event_id = up.event_id AND s.webhook_id = up.webhook_id AND (up.spared > now()) IS NOT TRUE
            RETURNING s.event_id, s.webhook_id, s.round, s.attempt, $2::text AS code,
                'its time was up while it waited: ' || s.reason AS why
        ), {END}, (SELECT count(*) FROM up)"
    )
}

impl Store {
    /// Webhooks for which something is shelved, but for paused ones, and whether each is disabled or gone.
    pub async fn shelved_webhooks(&self) -> Result<Vec<(WebhookId, bool)>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(WEBHOOKS).await?;
        let rows = client.query(&statement, &[&WEBHOOKS_MAX]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whose a webhook is; none for one that is gone.
    pub async fn account_of(&self, webhook: WebhookId) -> Result<Option<AccountId>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached("SELECT account_id FROM webhooks WHERE id = $1").await?;
        Ok(client.query_opt(&statement, &[&webhook]).await?.map(|row| row.get(0)))
    }

    /// Takes up to `limit` of a webhook's deliveries from the shelf, the oldest first: they are due now.
    pub async fn pull_shelved(&self, webhook: WebhookId, limit: i64) -> Result<Vec<Key>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(PULL).await?;
        let rows = client.query(&statement, &[&webhook, &limit]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, EventId>(0), webhook)).collect())
    }

    /// Looks at up to `limit` shelved deliveries whose time is up, and dead-letters those that are not [spared](SPARED_UNTIL).
    pub async fn expire_shelved(&self, limit: i64, spare_ms: i64) -> Result<Expired, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(&expire()).await?;
        let row =
            client.query_one(&statement, &[&limit, &"expired_while_parked", &(spare_ms as f64)]).await?;
        let (gone, looked): (i64, i64) = (row.get(0), row.get(1));
        Ok(Expired { gone: gone.unsigned_abs(), looked: looked.unsigned_abs() })
    }
}
