//! Which webhooks fare worst of late, for those who watch.

use std::time::Duration;

use super::{Error, Store};
use crate::model::WebhookId;

/// Newest events whose attempts are looked at, and attempts of one of them.
const EVENTS: i64 = 1000;
const ATTEMPTS: i64 = 50;

/// Rows of the schedule that are looked at, those whose time comes first.
const SCHEDULED: i64 = 10_000;

/// Longest time that Postgres may take for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Attempts have no index by time, and counting a schedule may take seconds: both are looked at from one end, so far and no
/// further. The inner limit also keeps Postgres at one look-up an event.
const WORST: &str = "
WITH tried AS (
    SELECT a.webhook_id, count(*) AS attempts, count(*) FILTER (WHERE a.status IN ('failed', 'dead')) AS failed,
        avg(a.duration_ms)::float8 AS ms
    FROM (SELECT id FROM events ORDER BY id DESC LIMIT $1) AS e
    CROSS JOIN LATERAL (SELECT webhook_id, status, duration_ms FROM delivery_attempts WHERE event_id = e.id LIMIT $2) AS a
    GROUP BY 1
), waits AS (
    SELECT webhook_id, count(*) AS waiting, mode() WITHIN GROUP (ORDER BY reason) AS reason
    FROM (SELECT webhook_id, reason FROM scheduled ORDER BY next_at LIMIT $3) AS s GROUP BY 1
)
SELECT webhook_id, coalesce(h.name, ''), coalesce(h.state, 'deleted'), coalesce(attempts, 0), coalesce(failed, 0), ms,
    coalesce(waiting, 0), waits.reason
FROM tried FULL JOIN waits USING (webhook_id) LEFT JOIN webhooks AS h ON h.id = webhook_id
WHERE coalesce(failed, 0) + coalesce(waiting, 0) > 0
ORDER BY coalesce(failed, 0) + coalesce(waiting, 0) DESC, ms DESC NULLS LAST, webhook_id LIMIT $4";

/// One webhook with what went wrong with it.
#[derive(Clone, Debug)]
pub struct Worst {
    pub webhook: WebhookId,
    pub name: String,
    pub state: String,
    /// Of the account's newest events.
    pub attempts: i64,
    pub failed: i64,
    /// Of these attempts, the mean; none without any.
    pub ms: Option<f64>,
    /// Deliveries in the schedule, among those looked at.
    pub waiting: i64,
    /// Why most of them wait.
    pub reason: Option<String>,
}

impl Store {
    /// Up to `limit` webhooks by failed attempts and waiting deliveries together, of a part that is bounded however much
    /// there is.
    ///
    /// # Errors
    /// When Postgres cannot be asked, or takes more than two seconds.
    pub async fn worst_webhooks(&self, limit: i64) -> Result<Vec<Worst>, Error> {
        let ask = async {
            let client = self.client().await?;
            let statement = client.prepare_cached(WORST).await?;
            let rows = client.query(&statement, &[&EVENTS, &ATTEMPTS, &SCHEDULED, &limit]).await?;
            Ok(rows
                .iter()
                .map(|row| Worst {
                    webhook: row.get(0),
                    name: row.get(1),
                    state: row.get(2),
                    attempts: row.get(3),
                    failed: row.get(4),
                    ms: row.get(5),
                    waiting: row.get(6),
                    reason: row.get(7),
                })
                .collect())
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(Error::Slow))
    }
}
