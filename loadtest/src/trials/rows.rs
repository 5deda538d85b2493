//! Work by the million, written into the tables as the engine would have, because nobody has the time to produce it.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::{stack::Error, wire};

/// Ids come in blocks of so many: see `event_id_blocks` in the first migration.
const BLOCK: u64 = 1024;

/// Rows of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub n: u64,
    /// Webhooks whose name begins so share them evenly.
    pub webhooks: &'a str,
    pub reason: &'a str,
    /// When the first is due, from now on.
    pub after: Duration,
    /// Over how long they are spread, by turns and not in their order. Zero for a moment.
    pub span: Duration,
}

/// Writes an event and a row of the schedule for each, tried once. Payloads say when they are due. Gives how long it took.
///
/// # Errors
/// When Postgres refuses.
pub async fn insert(postgres: &Client, rows: Rows<'_>) -> Result<Duration, Error> {
    let start = Instant::now();
    let block: i64 = postgres.query_one("SELECT nextval('event_id_blocks')", &[]).await?.get(0);
    let blocks = rows.n.div_ceil(BLOCK) as i64;
    postgres.execute("SELECT setval('event_id_blocks', $1)", &[&(block + blocks)]).await?;
    let (after, span) = (rows.after.as_secs_f64(), rows.span.as_secs_f64());
    let (first, n) = (block * BLOCK as i64, rows.n as i64);
    let like = format!("{}%", rows.webhooks);
    let stamp = "1".repeat(16);
    // A large odd stride, so that neighbours in the table are not due together.
    postgres
        .execute(
            "CREATE TEMP TABLE work AS
             WITH w AS (SELECT id, account_id, row_number() OVER (ORDER BY id) - 1 AS at, count(*) OVER () AS n
                        FROM webhooks WHERE name LIKE $1)
             SELECT $2::bigint + i AS event, w.id AS webhook, w.account_id AS account,
                 now() + interval '1 second' * ($3::float8 + $4::float8 * (i * 7919 % $5::bigint) / $5::bigint) AS due
             FROM generate_series(0, $5::bigint - 1) AS i
             JOIN w ON w.at = i % (SELECT max(n) FROM w)",
            &[&like, &first, &after, &span, &n],
        )
        .await?;
    postgres
        .execute(
            "INSERT INTO events (id, account_id, type, payload, created_at)
             SELECT event, account, 'order.created',
                 replace($1::text, $2::text, (extract(epoch FROM due) * 1000000)::bigint::text),
                 date_trunc('milliseconds', now())
             FROM work",
            &[&wire::payload(300), &stamp],
        )
        .await?;
    // What waits for its lane has its expiry in place of a time.
    postgres
        .execute(
            "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
             SELECT event, webhook, 1, 2, CASE $1::text WHEN 'breaker' THEN due + interval '1 day' ELSE due END,
                 due + interval '1 day', $1
             FROM work",
            &[&rows.reason],
        )
        .await?;
    postgres.batch_execute("DROP TABLE work; ANALYZE events; ANALYZE scheduled; CHECKPOINT").await?;
    Ok(start.elapsed())
}

/// Writes events of one webhook that were delivered at the first attempt, of few bytes. Gives how long it took.
///
/// # Errors
/// When Postgres refuses.
pub async fn settled(postgres: &Client, n: u64, webhook: i64) -> Result<Duration, Error> {
    let start = Instant::now();
    let block: i64 = postgres.query_one("SELECT nextval('event_id_blocks')", &[]).await?.get(0);
    let blocks = n.div_ceil(BLOCK) as i64;
    postgres.execute("SELECT setval('event_id_blocks', $1)", &[&(block + blocks)]).await?;
    let (first, n) = (block * BLOCK as i64, n as i64);
    postgres
        .execute(
            "INSERT INTO events (id, account_id, type, payload, created_at)
             SELECT $1::bigint + i, account_id, 'order.created', '{}', date_trunc('milliseconds', now())
             FROM webhooks, generate_series(0, $2::bigint - 1) AS i WHERE webhooks.id = $3",
            &[&first, &n, &webhook],
        )
        .await?;
    postgres
        .execute(
            "INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, response_code, reason_code,
                 duration_ms, created_at)
             SELECT $1::bigint + i, $3, 1, 1, 'success', 200, 'delivered', 1, date_trunc('milliseconds', now())
             FROM generate_series(0, $2::bigint - 1) AS i",
            &[&first, &n, &webhook],
        )
        .await?;
    // Or autovacuum and the kernel would do it in the middle of what is measured.
    for statement in ["VACUUM ANALYZE events", "VACUUM ANALYZE delivery_attempts", "CHECKPOINT"] {
        postgres.batch_execute(statement).await?;
    }
    std::process::Command::new("sync").status()?;
    Ok(start.elapsed())
}
