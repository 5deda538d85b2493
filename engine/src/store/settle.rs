//! One statement a recorder batch: attempts, the schedule and the dead letters together.

use super::{Error, Link, delivered::Delivered};
use crate::model::{AccountId, EventId, Key, Pin, Try, WebhookId};

/// Reasons for which a row of the schedule waits for its lane's word and not for a time: its next_at is its expiry, and
/// it is never in `due`.
pub const SHELVED: [&str; 3] = ["breaker", "backlog", "paused"];

/// How a delivery stands after what is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Success,
    /// Its transform dropped it.
    Filtered,
    /// To be tried again.
    Failed,
    Dead,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Success => "success",
            Status::Filtered => "filtered",
            Status::Failed => "failed",
            Status::Dead => "dead",
        }
    }
}

/// One row of `delivery_attempts`. The texts hold valid UTF-8 without NUL: one foreign byte in them
/// would stop the recorder for everybody.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub status: Status,
    pub code: Option<i16>,
    pub body: Option<String>,
    pub error: Option<String>,
    pub reason_code: &'static str,
    pub duration_ms: i32,
    /// Which version of a transform made what was sent; 0 for the original, none when nothing was sent. Of a first try that
    /// succeeded with the original none will do.
    pub transform: Option<i32>,
}

/// That a delivery is owed later.
#[derive(Clone, Debug)]
pub struct Later {
    pub next_attempt: i16,
    pub delay_ms: i64,
    /// Counted from now; only a new row takes it.
    pub expires_ms: i64,
    pub reason: &'static str,
    /// What was sent. The first word stays.
    pub pin: Option<Pin>,
    /// Whether the delivery came from a `scheduled` row. Then only that row, unchanged, is moved on.
    pub existing: bool,
}

/// How a delivery came into hand, which says by what window one came that had been made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By a stream entry that nobody was known to have had.
    Entry,
    /// By one that somebody may have had, after a look at what was settled.
    Check,
    /// By its row in the schedule.
    Schedule,
}

/// What one delivery wants written.
#[derive(Clone, Debug)]
pub struct Record {
    pub event: EventId,
    pub webhook: WebhookId,
    pub account: AccountId,
    /// The try this record is about.
    pub tried: Try,
    /// Whether the delivery stood in the schedule, and so perhaps in `due`.
    pub was_scheduled: bool,
    pub origin: Origin,
    pub attempt: Option<Attempt>,
    pub later: Option<Later>,
    /// The reason for a dead letter.
    pub dead: Option<String>,
}

impl Record {
    /// Nothing is owed any more, whatever row of the schedule there is.
    fn is_final(&self) -> bool {
        self.later.is_none()
    }
}

/// Attempts already recorded keep their row, unless the new one is final and the old one is not. A first
/// try enters the schedule only when no process has settled it meanwhile; a retry only moves the row it
/// was read from. So one delivery never splits into two chains. A retry that is promised is made: its expiry is
/// never before it.
const SETTLE: &str = "
WITH t AS MATERIALIZED (SELECT date_trunc('milliseconds', clock_timestamp()) AS at),
attempts AS (
    INSERT INTO delivery_attempts AS old (event_id, webhook_id, round, attempt, status, response_code,
        response_body, error, reason_code, duration_ms, transform_version, created_at)
    SELECT a.*, t.at FROM t, unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::smallint[], $5::text[],
        $6::smallint[], $7::text[], $8::text[], $9::text[], $10::int[], $30::int[]) AS a
    ON CONFLICT (event_id, webhook_id, round, attempt) DO UPDATE SET status = excluded.status,
        response_code = excluded.response_code, response_body = excluded.response_body,
        error = excluded.error, reason_code = excluded.reason_code, duration_ms = excluded.duration_ms,
        transform_version = excluded.transform_version
        WHERE old.status = 'failed' AND excluded.status <> 'failed'
    RETURNING event_id, webhook_id, created_at = (SELECT at FROM t) AS fresh
), later AS MATERIALIZED (
    SELECT * FROM unnest($11::bigint[], $12::bigint[], $13::smallint[], $14::smallint[], $15::smallint[],
        $16::bigint[], $17::bigint[], $18::text[], $19::bool[], $31::int[], $32::bigint[])
        AS l (event_id, webhook_id, round, tried, next_attempt, delay_ms, expires_ms, reason, existing, version, hash)
), added AS (
    INSERT INTO scheduled AS old (event_id, webhook_id, round, attempt, next_at, expires_at, reason,
        transform_version, body_hash)
    SELECT event_id, webhook_id, round, next_attempt, now() + delay_ms * interval '1 millisecond',
        now() + expires_ms * interval '1 millisecond', reason, version, hash
    FROM later WHERE NOT existing AND NOT EXISTS (
        SELECT FROM delivery_attempts AS d WHERE d.event_id = later.event_id
            AND d.webhook_id = later.webhook_id AND d.round >= later.round AND d.status <> 'failed')
    ON CONFLICT (event_id, webhook_id) DO UPDATE
        SET attempt = excluded.attempt, next_at = excluded.next_at, reason = excluded.reason,
            transform_version = coalesce(old.transform_version, excluded.transform_version),
            body_hash = coalesce(old.body_hash, excluded.body_hash)
        WHERE old.round = excluded.round AND old.attempt <= excluded.attempt
), moved AS (
    UPDATE scheduled AS s SET attempt = next_attempt, reason = l.reason,
        transform_version = coalesce(s.transform_version, l.version), body_hash = coalesce(s.body_hash, l.hash),
        next_at = CASE WHEN l.reason IN ('breaker', 'backlog', 'paused')
            THEN least(s.expires_at, now() + delay_ms * interval '1 millisecond')
            ELSE now() + delay_ms * interval '1 millisecond' END,
        expires_at = CASE WHEN l.reason IN ('breaker', 'backlog', 'paused')
            THEN least(s.expires_at, now() + l.delay_ms * interval '1 millisecond')
            WHEN l.reason = 'retry'
            THEN greatest(s.expires_at, now() + (l.delay_ms + 10000) * interval '1 millisecond') ELSE s.expires_at END
    FROM later AS l WHERE l.existing AND s.event_id = l.event_id AND s.webhook_id = l.webhook_id
        AND s.round = l.round AND s.attempt = l.tried
), settled AS (
    DELETE FROM scheduled AS s USING unnest($20::bigint[], $21::bigint[], $22::smallint[])
        AS f (event_id, webhook_id, round)
    WHERE s.event_id = f.event_id AND s.webhook_id = f.webhook_id AND s.round <= f.round
), dead AS (
    INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
    SELECT * FROM unnest($23::bigint[], $24::bigint[], $25::bigint[], $26::smallint[], $27::smallint[],
        $28::text[], $29::text[]) AS d (account_id, event_id, webhook_id, round, attempts, reason, code)
    WHERE NOT EXISTS (SELECT FROM delivery_attempts AS a WHERE a.event_id = d.event_id
        AND a.webhook_id = d.webhook_id AND a.round = d.round AND a.status IN ('success', 'filtered'))
    ON CONFLICT (event_id, webhook_id, round) DO NOTHING
)
SELECT * FROM unnest($1, $2) AS a (event_id, webhook_id)
EXCEPT SELECT event_id, webhook_id FROM attempts WHERE fresh";

/// A statement's parameters, a column each.
#[derive(Default)]
struct Columns {
    attempts: Attempts,
    later: Laters,
    finals: (Vec<i64>, Vec<i64>, Vec<i16>),
    dead: Dead,
}

#[derive(Default)]
struct Attempts {
    event: Vec<i64>,
    webhook: Vec<i64>,
    round: Vec<i16>,
    attempt: Vec<i16>,
    status: Vec<&'static str>,
    code: Vec<Option<i16>>,
    body: Vec<Option<String>>,
    error: Vec<Option<String>>,
    reason: Vec<&'static str>,
    duration: Vec<i32>,
    transform: Vec<Option<i32>>,
}

#[derive(Default)]
struct Laters {
    event: Vec<i64>,
    webhook: Vec<i64>,
    round: Vec<i16>,
    tried: Vec<i16>,
    next: Vec<i16>,
    delay: Vec<i64>,
    expires: Vec<i64>,
    reason: Vec<&'static str>,
    existing: Vec<bool>,
    version: Vec<Option<i32>>,
    hash: Vec<Option<i64>>,
}

#[derive(Default)]
struct Dead {
    account: Vec<i64>,
    event: Vec<i64>,
    webhook: Vec<i64>,
    round: Vec<i16>,
    attempts: Vec<i16>,
    reason: Vec<String>,
    code: Vec<&'static str>,
}

impl Columns {
    fn push(&mut self, record: &Record) {
        let (event, webhook, round) = (record.event.0, record.webhook.0, record.tried.round);
        if let Some(attempt) = &record.attempt {
            let a = &mut self.attempts;
            a.event.push(event);
            a.webhook.push(webhook);
            a.round.push(round);
            a.attempt.push(record.tried.attempt);
            a.status.push(attempt.status.name());
            a.code.push(attempt.code);
            a.body.push(attempt.body.clone());
            a.error.push(attempt.error.clone());
            a.reason.push(attempt.reason_code);
            a.duration.push(attempt.duration_ms);
            a.transform.push(attempt.transform);
        }
        if let Some(later) = &record.later {
            let l = &mut self.later;
            l.event.push(event);
            l.webhook.push(webhook);
            l.round.push(round);
            l.tried.push(record.tried.attempt);
            l.next.push(later.next_attempt);
            l.delay.push(later.delay_ms);
            l.expires.push(later.expires_ms);
            l.reason.push(later.reason);
            l.existing.push(later.existing);
            l.version.push(later.pin.map(|pin| pin.version));
            l.hash.push(later.pin.and_then(|pin| pin.hash));
        }
        if record.is_final() {
            self.finals.0.push(event);
            self.finals.1.push(webhook);
            self.finals.2.push(round);
        }
        if let (Some(reason), Some(attempt)) = (&record.dead, &record.attempt) {
            let d = &mut self.dead;
            d.account.push(record.account.0);
            d.event.push(event);
            d.webhook.push(webhook);
            d.round.push(round);
            d.attempts.push(record.tried.attempt);
            d.reason.push(reason.clone());
            d.code.push(attempt.reason_code);
        }
    }
}

impl Link {
    /// Writes a recorder batch, which names each delivery once. Returns the deliveries whose attempts had been
    /// recorded before.
    pub async fn settle(&mut self, records: &[Record]) -> Result<Vec<Key>, Error> {
        if let Some(columns) = Delivered::of(records)
            && self.delivered(&columns).await?
        {
            return Ok(Vec::new());
        }
        let mut c = Columns::default();
        for record in records {
            c.push(record);
        }
        let (a, l, d) = (&c.attempts, &c.later, &c.dead);
        let rows = self
            .query(
                SETTLE,
                &[
                    &a.event,
                    &a.webhook,
                    &a.round,
                    &a.attempt,
                    &a.status,
                    &a.code,
                    &a.body,
                    &a.error,
                    &a.reason,
                    &a.duration,
                    &l.event,
                    &l.webhook,
                    &l.round,
                    &l.tried,
                    &l.next,
                    &l.delay,
                    &l.expires,
                    &l.reason,
                    &l.existing,
                    &c.finals.0,
                    &c.finals.1,
                    &c.finals.2,
                    &d.account,
                    &d.event,
                    &d.webhook,
                    &d.round,
                    &d.attempts,
                    &d.reason,
                    &d.code,
                    &a.transform,
                    &l.version,
                    &l.hash,
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}
