//! Versions of webhooks' transforms as dispatch and the API read them, and what dispatch notes of them. What changes them is
//! in [`versions`](super::versions).

use bytes::Bytes;
use tokio_postgres::Row;

use super::{Error, Store, webhooks};
use crate::model::{AccountId, Timestamp, Transform, WebhookId};

/// What dispatchers counted of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub calls: i64,
    /// Those that gave another payload or body.
    pub changed: i64,
    pub dropped: i64,
    pub failed: i64,
    pub cpu_us: i64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.changed += other.changed;
        self.dropped += other.dropped;
        self.failed += other.failed;
        self.cpu_us += other.cpu_us;
    }
}

/// One version as the API shows it.
#[derive(Debug)]
pub struct Version {
    pub version: i32,
    pub sha256: [u8; 32],
    /// Bytes of the module.
    pub size: i32,
    /// `compiling`, `ready`, `rejected` or `suspended`.
    pub state: String,
    pub reason: Option<String>,
    /// `retry`, `original` or `drop`.
    pub on_error: String,
    pub config: Vec<(String, String)>,
    pub created_at: Timestamp,
    pub counts: Counts,
}

/// What stands at a webhook.
#[derive(Clone, Copy, Debug)]
pub struct InForce {
    pub version: Option<i32>,
    /// Whether the webhook is paused because its transform kept failing.
    pub suspended: bool,
}

const VERSION: &str = "version, sha256, size, state, reason, on_error, config, created_at,
    calls, changed, dropped, failed, cpu_us";

/// Rows are locked in one order, or two dispatchers that count the same ones could wait for each other.
const COUNT: &str = "
WITH c AS MATERIALIZED (
    SELECT webhook_id, version, sum(calls)::bigint AS calls, sum(changed)::bigint AS changed,
        sum(dropped)::bigint AS dropped, sum(failed)::bigint AS failed, sum(cpu_us)::bigint AS cpu_us
    FROM unnest($1::bigint[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
        AS u (webhook_id, version, calls, changed, dropped, failed, cpu_us)
    GROUP BY webhook_id, version
), l AS MATERIALIZED (
    SELECT t.webhook_id, t.version FROM transforms AS t JOIN c USING (webhook_id, version)
    ORDER BY t.webhook_id, t.version FOR NO KEY UPDATE OF t
)
UPDATE transforms AS t SET calls = t.calls + c.calls, changed = t.changed + c.changed,
    dropped = t.dropped + c.dropped, failed = t.failed + c.failed, cpu_us = t.cpu_us + c.cpu_us
FROM l JOIN c USING (webhook_id, version) WHERE t.webhook_id = l.webhook_id AND t.version = l.version";

/// Of several processes one suspends it: the others find it suspended when they have the row's lock. A pause that the
/// account made stays its own.
const SUSPEND: &str = "
WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
w AS (UPDATE webhooks AS w SET version = config_version,
          updated_at = date_trunc('milliseconds', clock_timestamp()),
          transform_suspended = CASE WHEN t.on_error = 'retry' AND w.state = 'active' THEN t.version
              ELSE w.transform_suspended END,
          state = CASE WHEN t.on_error = 'retry' AND w.state = 'active' THEN 'paused' ELSE w.state END
      FROM v, transforms AS t
      WHERE w.id = $1 AND w.transform_version = $2 AND w.state <> 'deleted'
          AND t.webhook_id = $1 AND t.version = $2 AND t.state = 'ready'
      RETURNING w.account_id, config_version),
a AS (UPDATE accounts SET version = config_version FROM w WHERE accounts.id = w.account_id),
t AS (UPDATE transforms SET state = 'suspended', reason = $3 FROM w
      WHERE webhook_id = $1 AND transforms.version = $2 AND state = 'ready' RETURNING 1)
SELECT count(*) FROM t";

fn version(row: &Row) -> Version {
    Version {
        version: row.get(0),
        sha256: hash(row.get(1)),
        size: row.get(2),
        state: row.get(3),
        reason: row.get(4),
        on_error: row.get(5),
        config: pairs(row.get(6)),
        created_at: row.get(7),
        counts: Counts {
            calls: row.get(8),
            changed: row.get(9),
            dropped: row.get(10),
            failed: row.get(11),
            cpu_us: row.get(12),
        },
    }
}

/// A hash as it stands in a row. One of another length is none of ours and matches no module.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or([0; 32])
}

fn pairs(flat: Vec<String>) -> Vec<(String, String)> {
    let mut flat = flat.into_iter();
    let mut pairs = Vec::with_capacity(flat.len() / 2);
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        pairs.push((name, value));
    }
    pairs
}

impl Store {
    /// One version, also a removed one: a delivery that was sent with it is made with it again.
    pub async fn transform(&self, webhook: WebhookId, version: i32) -> Result<Option<Transform>, Error> {
        let client = self.client().await?;
        let sql = "SELECT version, sha256, config, on_error, state FROM transforms
                   WHERE webhook_id = $1 AND version = $2";
        let row = client.query_opt(&client.prepare_cached(sql).await?, &[&webhook, &version]).await?;
        Ok(row.as_ref().map(|row| webhooks::transform(row, 0)))
    }

    /// A module's bytes as they were uploaded.
    pub async fn module(&self, sha256: &[u8; 32]) -> Result<Option<Bytes>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached("SELECT wasm FROM transform_modules WHERE sha256 = $1").await?;
        let row = client.query_opt(&statement, &[&sha256.as_slice()]).await?;
        Ok(row.map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))))
    }

    /// What is in force at a webhook, if it is this account's.
    pub async fn in_force(&self, account: AccountId, webhook: WebhookId) -> Result<Option<InForce>, Error> {
        let client = self.client().await?;
        let sql = "SELECT transform_version, transform_suspended IS NOT NULL FROM webhooks
                   WHERE id = $1 AND account_id = $2 AND state <> 'deleted'";
        let row = client.query_opt(&client.prepare_cached(sql).await?, &[&webhook, &account]).await?;
        Ok(row.map(|row| InForce { version: row.get(0), suspended: row.get(1) }))
    }

    /// A webhook's versions, newest first, or the one with a number.
    pub async fn versions(&self, webhook: WebhookId, number: Option<i32>) -> Result<Vec<Version>, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT {VERSION} FROM transforms WHERE webhook_id = $1 AND removed_at IS NULL
                 AND ($2::int IS NULL OR version = $2) ORDER BY version DESC"
        );
        let rows = client.query(&client.prepare_cached(&sql).await?, &[&webhook, &number]).await?;
        Ok(rows.iter().map(version).collect())
    }

    /// Adds what was counted since the last time. Versions that are gone are passed over.
    pub async fn add_transform_counts(&self, counted: &[(WebhookId, i32, Counts)]) -> Result<(), Error> {
        let client = self.client().await?;
        let webhooks: Vec<WebhookId> = counted.iter().map(|(webhook, ..)| *webhook).collect();
        let versions: Vec<i32> = counted.iter().map(|(_, version, _)| *version).collect();
        let column = |of: fn(&Counts) -> i64| -> Vec<i64> { counted.iter().map(|(.., c)| of(c)).collect() };
        let (calls, changed) = (column(|c| c.calls), column(|c| c.changed));
        let (dropped, failed, cpu) = (column(|c| c.dropped), column(|c| c.failed), column(|c| c.cpu_us));
        let statement = client.prepare_cached(COUNT).await?;
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&webhooks, &versions, &calls, &changed, &dropped, &failed, &cpu];
        client.execute(&statement, &params).await?;
        Ok(())
    }

    /// Suspends the version that is in force, because it keeps failing. The webhook is paused with it if its failures are
    /// tried again. Returns whether it was this call that did so.
    pub async fn suspend_transform(
        &self,
        webhook: WebhookId,
        version: i32,
        reason: &str,
    ) -> Result<bool, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(SUSPEND).await?;
        let row = client.query_one(&statement, &[&webhook, &version, &reason]).await?;
        Ok(row.get::<_, i64>(0) > 0)
    }
}
