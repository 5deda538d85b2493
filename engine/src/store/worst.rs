//! Which webhooks fare worst of late, for those who watch.

use std::time::Duration;

use super::{Error, Store};
use crate::model::{AccountId, WebhookId};

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
SELECT webhook_id, h.account_id, coalesce(h.name, ''), coalesce(h.state, 'deleted'), coalesce(attempts, 0),
    coalesce(failed, 0), ms, coalesce(waiting, 0), waits.reason
FROM tried FULL JOIN waits USING (webhook_id) LEFT JOIN webhooks AS h ON h.id = webhook_id
CROSS JOIN LATERAL (SELECT CASE $5::text WHEN 'failures' THEN coalesce(failed, 0)::float8 WHEN 'backlog' THEN coalesce(waiting, 0)
    WHEN 'latency' THEN coalesce(ms, 0) ELSE coalesce(failed, 0) + coalesce(waiting, 0) END AS bad) AS by
WHERE bad > 0 ORDER BY bad DESC, ms DESC NULLS LAST, webhook_id LIMIT $4";

/// What makes a webhook worse than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Failed attempts and waiting deliveries together.
    Trouble,
    Failures,
    /// The mean time of an attempt.
    Latency,
    Backlog,
}

impl By {
    /// Reads the name.
    pub fn of(name: &str) -> Option<By> {
        [By::Trouble, By::Failures, By::Latency, By::Backlog].into_iter().find(|by| by.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            By::Trouble => "trouble",
            By::Failures => "failures",
            By::Latency => "latency",
            By::Backlog => "backlog",
        }
    }
}

/// One webhook with what went wrong with it.
#[derive(Clone, Debug)]
pub struct Worst {
    pub webhook: WebhookId,
    /// None when its row is not there any more.
    pub account: Option<AccountId>,
    pub name: String,
    pub state: String,
    /// Of the newest events.
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
    /// Up to `limit` webhooks, the worst first, by a part that is bounded however much there is: the attempts of the newest
    /// 1,000 events, and the 10,000 deliveries of the schedule whose time comes first.
    ///
    /// # Errors
    /// When Postgres cannot be asked, or takes more than two seconds.
    pub async fn worst_webhooks(&self, by: By, limit: i64) -> Result<Vec<Worst>, Error> {
        let ask = async {
            let client = self.client().await?;
            let statement = client.prepare_cached(WORST).await?;
            let rows =
                client.query(&statement, &[&EVENTS, &ATTEMPTS, &SCHEDULED, &limit, &by.name()]).await?;
            Ok(rows
                .iter()
                .map(|row| Worst {
                    webhook: row.get(0),
                    account: row.get(1),
                    name: row.get(2),
                    state: row.get(3),
                    attempts: row.get(4),
                    failed: row.get(5),
                    ms: row.get(6),
                    waiting: row.get(7),
                    reason: row.get(8),
                })
                .collect())
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(Error::Slow))
    }
}
