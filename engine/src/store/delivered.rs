//! The recorder's statements for what is nearly all of its work: first tries that ended well.

use tokio_postgres::types::ToSql;

use super::{
    Error, Link,
    settle::{Attempt, Record, Status},
};
use crate::model::Try;

type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Ids between the first and the last event of a batch. Deliveries of one stream entry are near each other; where they
/// are not, looking at all that is scheduled between them might cost more than it saves.
const SPAN_MAX: i64 = 2048;

/// Deletes what is scheduled of deliveries that have ended: from $1 to $2, of the keys in $3 and $4, up to round $5.
macro_rules! settled {
    () => {
        "
WITH t AS MATERIALIZED (SELECT date_trunc('milliseconds', clock_timestamp()) AS at),
near AS MATERIALIZED (
    SELECT event_id, webhook_id FROM scheduled WHERE event_id BETWEEN $1::bigint AND $2::bigint
), settled AS (
    DELETE FROM scheduled AS s USING near AS n, unnest($3::bigint[], $4::bigint[]) AS f (event_id, webhook_id)
    WHERE n.event_id = f.event_id AND n.webhook_id = f.webhook_id
        AND s.event_id = n.event_id AND s.webhook_id = n.webhook_id AND s.round <= $5::smallint
)
"
    };
}

/// A plain insert: `ON CONFLICT` costs Postgres a third of the whole statement, and a delivery that was recorded before is rare
/// enough to be found by its unique index. What is scheduled of these events, because another process took them over,
/// is looked for once for all of them.
const DELIVERED: &str = concat!(
    settled!(),
    "INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, response_code, response_body,
    reason_code, duration_ms, transform_version, created_at)
SELECT a.event_id, a.webhook_id, $5, $6::smallint, 'success', a.code, a.body, $7::text, a.duration, $11::int, t.at
FROM t, unnest($3, $4, $8::smallint[], $9::text[], $10::int[]) AS a (event_id, webhook_id, code, body, duration)"
);

/// Likewise where rows differ in more, because transforms had a say: some are filtered, or went through other versions.
const TRANSFORMED: &str = concat!(
    settled!(),
    "INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, response_code, response_body,
    error, reason_code, duration_ms, transform_version, created_at)
SELECT a.event_id, a.webhook_id, $5, $6::smallint, a.status, a.code, a.body, a.error, a.reason, a.duration, a.version, t.at
FROM t, unnest($3, $4, $7::text[], $8::smallint[], $9::text[], $10::text[], $11::text[], $12::int[], $13::int[])
    AS a (event_id, webhook_id, status, code, body, error, reason, duration, version)"
);

/// The statement's parameters.
pub(super) struct Delivered<'a> {
    first: i64,
    last: i64,
    reason: &'static str,
    /// Of the transform that all of them went through.
    version: Option<i32>,
    event: Vec<i64>,
    webhook: Vec<i64>,
    code: Vec<Option<i16>>,
    body: Vec<Option<&'a str>>,
    duration: Vec<i32>,
    /// Where they differ in more than keys, code, body and duration.
    transformed: Option<Transformed<'a>>,
}

/// What rows differ in beside it.
#[derive(Default)]
struct Transformed<'a> {
    status: Vec<&'static str>,
    error: Vec<Option<&'a str>>,
    reason: Vec<&'static str>,
    version: Vec<Option<i32>>,
}

/// Whether an attempt is one of the usual, whose rows differ in nothing but keys, code, body and duration.
fn is_plain(attempt: &Attempt, first: &Attempt) -> bool {
    attempt.status == Status::Success
        && attempt.reason_code == first.reason_code
        && attempt.error.is_none()
        && attempt.transform == first.transform
}

impl<'a> Delivered<'a> {
    /// None when one of the records is anything but a first try that was delivered or filtered.
    pub(super) fn of(records: &'a [Record]) -> Option<Delivered<'a>> {
        let first = records.first()?.attempt.as_ref()?;
        let n = records.len();
        let mut columns = Delivered {
            first: i64::MAX,
            last: i64::MIN,
            reason: first.reason_code,
            version: first.transform,
            event: Vec::with_capacity(n),
            webhook: Vec::with_capacity(n),
            code: Vec::with_capacity(n),
            body: Vec::with_capacity(n),
            duration: Vec::with_capacity(n),
            transformed: None,
        };
        if !records.iter().filter_map(|record| record.attempt.as_ref()).all(|a| is_plain(a, first)) {
            columns.transformed = Some(Transformed::default());
        }
        for record in records {
            let attempt = record.attempt.as_ref()?;
            let ended_well = matches!(attempt.status, Status::Success | Status::Filtered)
                && record.tried == Try::FIRST
                && !record.was_scheduled
                && record.later.is_none()
                && record.dead.is_none();
            if !ended_well {
                return None;
            }
            if let Some(transformed) = &mut columns.transformed {
                transformed.status.push(attempt.status.name());
                transformed.error.push(attempt.error.as_deref());
                transformed.reason.push(attempt.reason_code);
                transformed.version.push(attempt.transform);
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
        let keys: [Parameter<'_>; 6] = [&c.first, &c.last, &c.event, &c.webhook, &round, &attempt];
        let mut parameters = keys.to_vec();
        let sql = match &c.transformed {
            None => {
                parameters.extend([&c.reason as Parameter<'_>, &c.code, &c.body, &c.duration, &c.version]);
                DELIVERED
            }
            Some(t) => {
                let status: Parameter<'_> = &t.status;
                parameters.extend([status, &c.code, &c.body, &t.error, &t.reason, &c.duration, &t.version]);
                TRANSFORMED
            }
        };
        match self.query(sql, &parameters).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settle::Origin;
    use super::*;
    use crate::model::{AccountId, EventId, WebhookId};

    fn record(event: i64) -> Record {
        Record {
            event: EventId(event),
            webhook: WebhookId(1),
            account: AccountId(1),
            tried: Try::FIRST,
            was_scheduled: false,
            origin: Origin::Entry,
            attempt: Some(Attempt {
                status: Status::Success,
                code: Some(200),
                body: None,
                error: None,
                reason_code: "delivered",
                duration_ms: 1,
                transform: None,
            }),
            later: None,
            dead: None,
        }
    }

    #[test]
    fn only_first_tries_that_ended_well_take_the_short_way() {
        let records = [record(7), record(5), record(6)];
        let columns = Delivered::of(&records).unwrap();
        assert_eq!((columns.first, columns.last, columns.event), (5, 7, vec![7, 5, 6]));
        assert!(Delivered::of(&[]).is_none());
        assert!(columns.transformed.is_none() && columns.version.is_none());
        let mut records = [record(5), record(6)];
        records.iter_mut().for_each(|r| r.attempt.as_mut().unwrap().transform = Some(3));
        let columns = Delivered::of(&records).unwrap();
        assert!(columns.transformed.is_none() && columns.version == Some(3), "one version for all");
        records[1].attempt.as_mut().unwrap().transform = None;
        assert_eq!(Delivered::of(&records).unwrap().transformed.unwrap().version, [Some(3), None]);
        let mut records = [record(5), record(6)];
        let attempt = records[1].attempt.as_mut().unwrap();
        (attempt.status, attempt.transform, attempt.reason_code) = (Status::Filtered, Some(3), "filtered");
        let transformed = Delivered::of(&records).unwrap().transformed.unwrap();
        assert_eq!(transformed.version, [None, Some(3)]);
        assert_eq!(transformed.reason, ["delivered", "filtered"]);
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
