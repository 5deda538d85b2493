//! Webhooks: registering them, and reading what dispatch needs of them.
//!
//! Every change raises the configuration version in its own transaction. The row lock on `engine_state`
//! puts these transactions in order, so "version greater than mine" misses nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use deadpool_postgres::Object;
use tokio_postgres::{Row, types::ToSql};

use super::{Error, Seal, Store, manage::Change};
use crate::model::{
    AccountId, OnError, Own, State, Timestamp, Transform, TransformState, Webhook, WebhookId,
};

type Column<'a> = &'a (dyn ToSql + Sync);

/// A webhook to be made.
#[derive(Debug)]
pub struct New<'a> {
    pub name: &'a str,
    pub url: &'a str,
    pub secret: &'a str,
    pub event_types: Option<&'a [String]>,
    /// Name, URL and types in it are not looked at.
    pub settings: &'a Change,
}

impl New<'_> {
    /// The parameters of a statement that makes it: its columns but for the id, two more, and the id.
    fn columns<'a>(&'a self, place: &'a Place, one: Column<'a>, two: Column<'a>) -> [Column<'a>; 13] {
        let own = self.settings;
        [
            &self.name,
            &self.url,
            &place.secret,
            &self.event_types,
            &own.state,
            &own.headers,
            &own.rate_limit,
            &own.retry_waits_ms,
            &own.timeout_ms,
            &own.in_flight_max,
            one,
            two,
            &place.id,
        ]
    }
}

/// The id of a webhook to be made, which its stored secret is bound to.
struct Place {
    id: WebhookId,
    secret: String,
}

/// A key to be made with a new account.
#[derive(Debug)]
pub struct NewKey<'a> {
    pub hash: &'a [u8; 32],
    pub prefix: &'a str,
}

/// What Postgres gave a new webhook.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub id: WebhookId,
    pub account: AccountId,
    pub created_at: Timestamp,
}

const WITH_ACCOUNT: &str = "
WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
a AS (INSERT INTO accounts (version) SELECT config_version FROM v RETURNING id, version),
k AS (INSERT INTO api_keys (account_id, hash, prefix, version) SELECT id, $11, $12, version FROM a)
INSERT INTO webhooks (id, account_id, name, url, secret, event_types, state, headers, rate_limit, retry_waits_ms,
    timeout_ms, in_flight_max, since_version, version) OVERRIDING SYSTEM VALUE
SELECT $13::bigint, id, $1, $2, $3, $4, coalesce($5::text, 'active'), coalesce($6::text[], '{}'), $7::float8, $8::bigint[], $9::int, $10::int, version, version
FROM a RETURNING id, account_id, created_at";

const FOR_ACCOUNT: &str = "
WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
a AS (UPDATE accounts SET version = config_version FROM v
      WHERE id = $11 AND (SELECT count(*) FROM webhooks WHERE account_id = $11 AND state <> 'deleted') < $12
      RETURNING id, config_version)
INSERT INTO webhooks (id, account_id, name, url, secret, event_types, state, headers, rate_limit, retry_waits_ms,
    timeout_ms, in_flight_max, since_version, version) OVERRIDING SYSTEM VALUE
SELECT $13::bigint, id, $1, $2, $3, $4, coalesce($5::text, 'active'), coalesce($6::text[], '{}'), $7::float8, $8::bigint[], $9::int, $10::int, config_version,
    config_version
FROM a RETURNING id, account_id, created_at";

/// Of what [`webhook`] reads: a webhook and the version of its transform that is in force.
const SELECT: &str = "
SELECT w.id, w.account_id, w.url, w.secret, w.event_types, w.state, w.since_version, w.until_version,
    w.headers, w.rate_limit, w.retry_waits_ms, w.timeout_ms, w.in_flight_max,
    t.version, t.sha256, t.config, t.on_error, t.state, w.secret_before, w.secret_until
FROM webhooks AS w LEFT JOIN transforms AS t ON t.webhook_id = w.id AND t.version = w.transform_version";

fn made(row: &Row) -> Made {
    Made { id: row.get(0), account: row.get(1), created_at: row.get(2) }
}

fn webhook(row: &Row, seal: &Seal) -> Webhook {
    let (id, state): (WebhookId, &str) = (row.get(0), row.get(5));
    let secret = seal.open(id, row.get(3)).ok();
    // One that signs no more is not worth a key.
    let before: Option<(&str, Timestamp)> = row.get::<_, Option<&str>>(18).zip(row.get(19));
    let before = before.filter(|(_, until)| *until > Timestamp::now());
    let opened = before.map(|(before, until)| Some((seal.open(id, before).ok()?, until)));
    Webhook {
        id,
        account: row.get(1),
        url: row.get(2),
        // With one signature of two, some receivers would refuse what others take.
        secret: secret.filter(|_| opened != Some(None)),
        secret_before: opened.flatten(),
        event_types: row.get(4),
        state: match state {
            "active" => State::Active,
            "paused" => State::Paused,
            "disabled" => State::Disabled,
            _ => State::Deleted,
        },
        since: row.get(6),
        until: row.get(7),
        own: own(row),
        transform: row.get::<_, Option<i32>>(13).is_some().then(|| transform(row, 13)),
    }
}

/// A version of a transform in the columns from `at` on: version, hash, config, onError and state.
pub(super) fn transform(row: &Row, at: usize) -> Transform {
    let config: Vec<String> = row.get(at + 2);
    Transform {
        version: row.get(at),
        // Postgres has hashes of 32 bytes only; any other would fit no module.
        sha256: row.get::<_, &[u8]>(at + 1).try_into().unwrap_or_default(),
        config: Arc::new(config.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()),
        on_error: match row.get(at + 3) {
            "original" => OnError::Original,
            "drop" => OnError::Drop,
            _ => OnError::Retry,
        },
        state: match row.get(at + 4) {
            "compiling" => TransformState::Compiling,
            "ready" => TransformState::Ready,
            "suspended" => TransformState::Suspended,
            _ => TransformState::Rejected,
        },
    }
}

fn own(row: &Row) -> Own {
    let headers: Vec<String> = row.get(8);
    Own {
        headers: headers.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
        rate_limit: row.get(9),
        in_flight_max: row.get::<_, Option<i32>>(12).and_then(|max| usize::try_from(max).ok()),
        ..timing(row, 10)
    }
}

/// Of a webhook's own settings those that say when a delivery ends: `retry_waits_ms` in column `at`, and `timeout_ms`
/// in the next.
pub(super) fn timing(row: &Row, at: usize) -> Own {
    let ms = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    Own {
        retry: row.get::<_, Option<Vec<i64>>>(at).map(|waits| waits.into_iter().map(ms).collect()),
        timeout: row.get::<_, Option<i32>>(at + 1).map(|timeout| ms(timeout.into())),
        ..Own::default()
    }
}

impl Store {
    /// Makes an account, its key and its first webhook.
    pub async fn register(&self, new: &New<'_>, key: &NewKey<'_>) -> Result<Made, Error> {
        let client = self.client().await?;
        let place = self.place(&client, new).await?;
        let hash = key.hash.as_slice();
        let row = client.query_one(WITH_ACCOUNT, &new.columns(&place, &hash, &key.prefix)).await?;
        Ok(made(&row))
    }

    /// Adds a webhook to an account; none when it has `max` already.
    pub async fn add_webhook(
        &self,
        account: AccountId,
        new: &New<'_>,
        max: i64,
    ) -> Result<Option<Made>, Error> {
        let client = self.client().await?;
        let place = self.place(&client, new).await?;
        let row = client.query_opt(FOR_ACCOUNT, &new.columns(&place, &account, &max)).await?;
        Ok(row.as_ref().map(made))
    }

    /// Takes an id for a webhook, and with it what is stored of its secret.
    async fn place(&self, client: &Object, new: &New<'_>) -> Result<Place, Error> {
        let next = "SELECT nextval(pg_get_serial_sequence('webhooks', 'id'))";
        let id = client.query_one(&client.prepare_cached(next).await?, &[]).await?.get(0);
        Ok(Place { id, secret: self.seal.close(id, new.secret) })
    }

    /// Every webhook of these accounts, disabled ones too.
    pub async fn webhooks_of(&self, accounts: &[AccountId]) -> Result<Vec<Webhook>, Error> {
        let client = self.client().await?;
        let sql = format!("{SELECT} WHERE w.account_id = ANY ($1) ORDER BY w.id");
        let statement = client.prepare_cached(&sql).await?;
        let rows = client.query(&statement, &[&accounts]).await?;
        Ok(rows.iter().map(|row| webhook(row, &self.seal)).collect())
    }

    /// One webhook as dispatch needs it, if it is this account's; paused and disabled ones too.
    pub async fn webhook_to_call(&self, account: AccountId, id: WebhookId) -> Result<Option<Webhook>, Error> {
        let client = self.client().await?;
        let sql = format!("{SELECT} WHERE w.account_id = $1 AND w.id = $2 AND w.state <> 'deleted'");
        let row = client.query_opt(&client.prepare_cached(&sql).await?, &[&account, &id]).await?;
        Ok(row.map(|row| webhook(&row, &self.seal)))
    }

    /// The configuration in which each of these accounts changed last.
    pub async fn versions_of(&self, accounts: &[AccountId]) -> Result<HashMap<AccountId, i64>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached("SELECT id, version FROM accounts WHERE id = ANY ($1)").await?;
        let rows = client.query(&statement, &[&accounts]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// The configuration version, and the accounts that changed after `version`.
    pub async fn changed_accounts(&self, version: i64) -> Result<(i64, Vec<AccountId>), Error> {
        let client = self.client().await?;
        let sql =
            "SELECT s.config_version, a.id FROM engine_state AS s LEFT JOIN accounts AS a ON a.version > $1";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&version]).await?;
        let now = rows.first().map_or(version, |row| row.get(0));
        self.address.history().read(now);
        Ok((now, rows.iter().filter_map(|row| row.get(1)).collect()))
    }
}
