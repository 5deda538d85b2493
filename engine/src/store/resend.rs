//! Sending an event to a webhook once more, because its account asks for it.

use super::{Error, Store};
use crate::model::{AccountId, EventId, WebhookId};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Resend {
    Done,
    UnknownEvent,
    UnknownWebhook,
    WebhookDisabled,
    /// It is owed already.
    Owed,
}

/// A new round, unless the delivery stands in the schedule or may still be on its way to its first one. Its dead letters are requeued by
/// it: a second requeue of the same delivery would be a second sending. They are locked first, as a requeue does, or the two
/// could wait for each other.
const RESEND: &str = "
WITH letters AS MATERIALIZED (
    SELECT id FROM dlq_entries WHERE event_id = $1 AND webhook_id = $2 AND account_id = $3 AND requeued_at IS NULL FOR UPDATE
), sent AS (
    INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason, transform_version)
    SELECT e.id, w.id, 1 + greatest(
            coalesce((SELECT max(round) FROM delivery_attempts WHERE event_id = e.id AND webhook_id = w.id), 0),
            coalesce((SELECT max(round) FROM dlq_entries WHERE event_id = e.id AND webhook_id = w.id), 0)),
        1, now(), now() + $4 * interval '1 millisecond', 'resent',
        sent_version(e.id, w.id)
    FROM events AS e, webhooks AS w
    WHERE e.id = $1 AND e.account_id = $3 AND w.id = $2 AND w.account_id = $3 AND w.state IN ('active', 'paused')
        AND (SELECT count(*) FROM letters) >= 0
        AND (NOT EXISTS (SELECT FROM batches WHERE first_id BETWEEN $1 - 1023 AND $1 AND last_id >= $1)
            OR EXISTS (SELECT FROM delivery_attempts AS a WHERE a.event_id = e.id AND a.webhook_id = w.id
                AND a.status <> 'failed'))
    ON CONFLICT DO NOTHING RETURNING event_id
), requeued AS (
    UPDATE dlq_entries SET requeued_at = date_trunc('milliseconds', clock_timestamp())
    WHERE id IN (SELECT id FROM letters) AND EXISTS (SELECT FROM sent)
)
SELECT event_id FROM sent";

impl Store {
    /// Schedules an event for a webhook of the same account at once, as a new round, and marks its dead letters as requeued.
    pub async fn resend(
        &self,
        account: AccountId,
        event: EventId,
        webhook: WebhookId,
        expires_ms: i64,
    ) -> Result<Resend, Error> {
        let client = self.client().await?;
        let expires = expires_ms as f64;
        let statement = client.prepare_cached(RESEND).await?;
        if client.query_opt(&statement, &[&event, &webhook, &account, &expires]).await?.is_some() {
            return Ok(Resend::Done);
        }
        let sql = "SELECT EXISTS (SELECT FROM events WHERE id = $1 AND account_id = $3),
            (SELECT state FROM webhooks WHERE id = $2 AND account_id = $3 AND state <> 'deleted')";
        let row = client.query_one(sql, &[&event, &webhook, &account]).await?;
        Ok(match (row.get(0), row.get::<_, Option<&str>>(1)) {
            (false, _) => Resend::UnknownEvent,
            (true, None) => Resend::UnknownWebhook,
            (true, Some("disabled")) => Resend::WebhookDisabled,
            (true, Some(_)) => Resend::Owed,
        })
    }
}
