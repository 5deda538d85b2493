//! The recorder's statement for what is nearly all of its work: first tries that were delivered.

use super::{Error, Link, settle::Record, settle::Status};
use crate::model::Try;

/// Ids between the first and the last event of a batch. Deliveries of one stream entry are near each other; where they
/// are not, looking at all that is scheduled between them might cost more than it saves.
const SPAN_MAX: i64 = 2048;

/// A plain insert: `ON CONFLICT` costs Postgres a third of the whole statement, and a delivery that was recorded before is rare
/// enough to be found by its unique index. What is scheduled of these events, because another process took them over,
/// is looked for once for all of them.
const DELIVERED: &str = "
WITH t AS MATERIALIZED (SELECT date_trunc('milliseconds', clock_timestamp()) AS at),
near AS MATERIALIZED (
    SELECT event_id, webhook_id FROM scheduled WHERE event_id BETWEEN $1::bigint AND $2::bigint
), settled AS (
    DELETE FROM scheduled AS s USING near AS n, unnest($3::bigint[], $4::bigint[]) AS f (event_id, webhook_id)
    WHERE n.event_id = f.event_id AND n.webhook_id = f.webhook_id
        AND s.event_id = n.event_id AND s.webhook_id = n.webhook_id AND s.round <= $5::smallint
)
INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, response_code, response_body,
    reason_code, duration_ms, created_at)
SELECT a.event_id, a.webhook_id, $5, $6::smallint, 'success', a.code, a.body, $7::text, a.duration, t.at
FROM t, unnest($3, $4, $8::smallint[], $9::text[], $10::int[]) AS a (event_id, webhook_id, code, body, duration)";

/// The statement's parameters.
pub(super) struct Delivered<'a> {
    first: i64,
    last: i64,
    reason: &'static str,
    event: Vec<i64>,
    webhook: Vec<i64>,
    code: Vec<Option<i16>>,
    body: Vec<Option<&'a str>>,
    duration: Vec<i32>,
}

impl<'a> Delivered<'a> {
    /// None when one of the records is anything but a first try that was delivered.
    pub(super) fn of(records: &'a [Record]) -> Option<Delivered<'a>> {
        let reason = records.first()?.attempt.as_ref()?.reason_code;
        let n = records.len();
        let mut columns = Delivered {
            first: i64::MAX,
            last: i64::MIN,
            reason,
            event: Vec::with_capacity(n),
            webhook: Vec::with_capacity(n),
            code: Vec::with_capacity(n),
            body: Vec::with_capacity(n),
            duration: Vec::with_capacity(n),
        };
        for record in records {
            let attempt = record.attempt.as_ref()?;
            let plain = attempt.status == Status::Success
                && attempt.reason_code == reason
                && attempt.error.is_none()
                && record.tried == Try::FIRST
                && !record.was_scheduled
                && record.later.is_none()
                && record.dead.is_none();
            if !plain {
                return None;
            }
            columns.first = columns.first.min(record.event.0);
            columns.last = columns.last.max(record.event.0);
            columns.event.push(record.event.0);
            columns.webhook.push(record.webhook.0);
            columns.code.push(attempt.code);
            columns.body.push(attempt.body.as_deref());
            columns.duration.push(attempt.duration_ms);
        }
        (columns.last - columns.first < SPAN_MAX).then_some(columns)
    }
}

impl Link {
    /// Writes them all, or none and says false when one of them was recorded before.
    pub(super) async fn delivered(&mut self, c: &Delivered<'_>) -> Result<bool, Error> {
        let Try { round, attempt } = Try::FIRST;
        let outcome = self
            .query(
                DELIVERED,
                &[
                    &c.first,
                    &c.last,
                    &c.event,
                    &c.webhook,
                    &round,
                    &attempt,
                    &c.reason,
                    &c.code,
                    &c.body,
                    &c.duration,
                ],
            )
            .await;
        match outcome {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{AccountId, EventId, WebhookId},
        store::settle::Attempt,
    };

    fn record(event: i64) -> Record {
        Record {
            event: EventId(event),
            webhook: WebhookId(1),
            account: AccountId(1),
            tried: Try::FIRST,
            was_scheduled: false,
            attempt: Some(Attempt {
                status: Status::Success,
                code: Some(200),
                body: None,
                error: None,
                reason_code: "delivered",
                duration_ms: 1,
            }),
            later: None,
            dead: None,
        }
    }

    #[test]
    fn only_first_tries_that_were_delivered_take_the_short_way() {
        let records = [record(7), record(5), record(6)];
        let columns = Delivered::of(&records).unwrap();
        assert_eq!((columns.first, columns.last, columns.event), (5, 7, vec![7, 5, 6]));
        assert!(Delivered::of(&[]).is_none());
        let breaks: [fn(&mut Record); 6] = [
            |r| r.was_scheduled = true,
            |r| r.tried.attempt = 2,
            |r| r.attempt = None,
            |r| r.attempt.as_mut().unwrap().status = Status::Dead,
            |r| r.dead = Some("x".to_owned()),
            |r| r.event = EventId(5 + SPAN_MAX),
        ];
        for change in breaks {
            let mut records = [record(5), record(6)];
            change(&mut records[1]);
            assert!(Delivered::of(&records).is_none());
        }
    }
}
