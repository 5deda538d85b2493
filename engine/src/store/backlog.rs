//! How much of one webhook's work may wait in the schedule, and ending what is too much.

use super::{Error, Store, shelf::END};
use crate::model::WebhookId;

/// The least that a row of the schedule takes on disk: 4 bytes of pointer, 24 of header, 48 of columns. The table's size by it
/// is a number of rows that no statistics can be wrong about; a table that is empty inside only costs a count.
const ROW_BYTES: i64 = 76;

/// Goes from webhook to webhook in the index, from $1 on, and counts the rows of each up to $2, until $3 rows are counted; that a
/// webhook has to be found counts as ten. Of those with more than $4 it says how many they have.
const CROWDED: &str = "
WITH RECURSIVE w AS (
    SELECT f.webhook_id, c.n, c.n + 10 AS seen
    FROM (SELECT webhook_id FROM scheduled WHERE webhook_id > $1 ORDER BY webhook_id LIMIT 1) AS f
    CROSS JOIN LATERAL (SELECT count(*) AS n FROM
        (SELECT FROM scheduled AS s WHERE s.webhook_id = f.webhook_id LIMIT $2) AS s) AS c
    UNION ALL
    SELECT f.webhook_id, c.n, w.seen + c.n + 10
    FROM w CROSS JOIN LATERAL (SELECT s.webhook_id FROM scheduled AS s WHERE s.webhook_id > w.webhook_id
        ORDER BY s.webhook_id LIMIT 1) AS f
    CROSS JOIN LATERAL (SELECT count(*) AS n FROM
        (SELECT FROM scheduled AS s WHERE s.webhook_id = f.webhook_id LIMIT $2) AS s) AS c
    WHERE w.seen < $3
)
SELECT array_agg(webhook_id) FILTER (WHERE n > $4), array_agg(n - $4) FILTER (WHERE n > $4), max(webhook_id), max(seen) >= $3
FROM w";

/// What is shelved is in nobody's hands and not in `due`. The oldest go first: they are the nearest to their expiry, and who comes
/// back after so long a time wants to know of today.
const END_SHELVED: &str = "
WITH gone AS (
    DELETE FROM scheduled WHERE (event_id, webhook_id) IN (
        SELECT event_id, webhook_id FROM scheduled
        WHERE webhook_id = $1 AND reason IN ('breaker', 'backlog', 'paused')
        ORDER BY event_id LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING event_id, webhook_id, round, attempt, 'backlog_limit' AS code, $3::text AS why
), ";

/// A retry beyond $4 is not in `due` yet, and its row is in nobody's hands: a lease begins when its time has come. Those whose
/// time is furthest away go first: waits grow with the attempts, so they are those that were tried most.
const END_RETRIES: &str = "
WITH gone AS (
    DELETE FROM scheduled WHERE (event_id, webhook_id) IN (
        SELECT event_id, webhook_id FROM scheduled
        WHERE webhook_id = $1 AND reason = 'retry' AND next_at > now() + $4 * interval '1 millisecond'
        ORDER BY next_at DESC LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING event_id, webhook_id, round, attempt, 'backlog_limit' AS code, $3::text AS why
), ";

/// What one look at the schedule found.
#[derive(Debug, Default)]
pub struct Crowded {
    /// Webhooks with more than they may have, and by how many deliveries.
    pub over: Vec<(WebhookId, i64)>,
    /// The webhook to go on after; none when there is no further one.
    pub next: Option<WebhookId>,
}

/// How far a look at the schedule goes.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Deliveries that one webhook may have.
    pub max: i64,
    /// What is above that is counted up to here.
    pub surplus_max: i64,
    /// Rows counted by one statement, beside those of its last webhook.
    pub rows: i64,
}

impl Store {
    /// More than there are rows in the schedule, at no cost.
    pub async fn scheduled_at_most(&self) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = "SELECT pg_relation_size('scheduled') / $1::bigint";
        Ok(client.query_one(&client.prepare_cached(sql).await?, &[&ROW_BYTES]).await?.get(0))
    }

    /// Webhooks after `after` for which more is scheduled than may be.
    pub async fn crowded_webhooks(&self, after: WebhookId, look: Look) -> Result<Crowded, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(CROWDED).await?;
        let count_max = look.max.saturating_add(look.surplus_max);
        let row = client.query_one(&statement, &[&after, &count_max, &look.rows, &look.max]).await?;
        let webhooks: Vec<WebhookId> = row.get::<_, Option<_>>(0).unwrap_or_default();
        let surplus: Vec<i64> = row.get::<_, Option<_>>(1).unwrap_or_default();
        let next = row.get::<_, Option<WebhookId>>(2).filter(|_| row.get::<_, Option<bool>>(3) == Some(true));
        Ok(Crowded { over: webhooks.into_iter().zip(surplus).collect(), next })
    }

    /// Dead-letters up to `limit` of a webhook's deliveries because `max` is all it may have: of what is shelved, the oldest, and
    /// with `retries_beyond_ms` of its retries that are further away than this. Returns how many there were.
    pub async fn end_surplus(
        &self,
        webhook: WebhookId,
        limit: i64,
        max: i64,
        retries_beyond_ms: Option<i64>,
    ) -> Result<u64, Error> {
        let client = self.client().await?;
        let why = format!("more than {max} deliveries waited for its webhook");
        let gone: i64 = match retries_beyond_ms {
            None => {
                let statement = client.prepare_cached(&format!("{END_SHELVED}{END}")).await?;
                client.query_one(&statement, &[&webhook, &limit, &why]).await?.get(0)
            }
            Some(beyond) => {
                let beyond = beyond as f64;
                let statement = client.prepare_cached(&format!("{END_RETRIES}{END}")).await?;
                client.query_one(&statement, &[&webhook, &limit, &why, &beyond]).await?.get(0)
            }
        };
        Ok(gone.unsigned_abs())
    }
}
