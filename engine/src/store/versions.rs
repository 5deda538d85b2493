//! What changes a webhook's transform. Every change is a transaction that begins by raising the configuration version: the
//! row lock of `engine_state` puts changes in order, and each statement after it sees all that was done before.

use deadpool_postgres::Transaction;
use tokio_postgres::IsolationLevel;

use super::{Error, Store};
use crate::model::{AccountId, WebhookId};

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not this account's, or gone.
    NoWebhook,
    NoTransform,
    NoVersion,
    /// It is being compiled, or was rejected.
    NotReady,
    /// This upload is still being compiled.
    Compiling(i32),
    /// In force, or named by deliveries that are still owed.
    InUse,
    /// As many as there may be are in use.
    TooMany,
}

/// What a change came to; `Err` on the outside is Postgres's.
pub type Changed<T> = Result<Result<T, Refused>, Error>;

/// A module to become a version.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    pub sha256: &'a [u8; 32],
    pub size: i32,
    /// Whether it is compiled already.
    pub ready: bool,
    /// Versions that a webhook may have.
    pub versions_max: i64,
}

/// The version that stands for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    pub version: i32,
    /// False for the same bytes as in the version before.
    pub is_new: bool,
}

/// New settings; what is none stays.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Names and values in turn.
    pub config: Option<&'a [String]>,
    pub on_error: Option<&'a str>,
}

const RAISE: &str = "UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version";

/// Without an account it is the engine's own change.
const LOCK: &str = "
SELECT account_id, transform_version, transform_last, transform_settled, transform_suspended IS NOT NULL
FROM webhooks WHERE id = $1 AND ($2::bigint IS NULL OR account_id = $2) AND state <> 'deleted'
FOR NO KEY UPDATE";

/// The upload that comes into force once it is compiled.
const PENDING: &str = "
SELECT max(version) FROM transforms
WHERE webhook_id = $1 AND version > $2 AND state = 'compiling' AND removed_at IS NULL";

const IS_SAME: &str = "
SELECT state FROM transforms WHERE webhook_id = $1 AND version = $2 AND sha256 = $3";

const ADD: &str = "
INSERT INTO transforms (webhook_id, version, sha256, size, config, on_error, state, compiling_at)
SELECT $1::bigint, $2::int, $3::bytea, $4::int, coalesce(f.config, '{}'), coalesce(f.on_error, 'retry'), $5::text,
    CASE WHEN $5::text = 'compiling' THEN now() END
FROM (VALUES (1)) AS one LEFT JOIN transforms AS f ON f.webhook_id = $1 AND f.version = $6";

const COPY: &str = "
INSERT INTO transforms (webhook_id, version, sha256, size, config, on_error, state)
SELECT webhook_id, $3::int, sha256, size, coalesce($4::text[], config), coalesce($5::text, on_error), 'ready'
FROM transforms WHERE webhook_id = $1 AND version = $2
    AND (coalesce($4::text[], config), coalesce($5::text, on_error)) <> (config, on_error)";

/// The oldest that nobody needs make room for the newest, $2. Returns whether there is room at last: removed ones count as
/// long as deliveries are owed with them, or their number would have no bound.
const MAKE_ROOM: &str = "
WITH t AS MATERIALIZED (
    SELECT version, removed_at IS NOT NULL AS is_removed, version IN ($2, $3) OR EXISTS (SELECT FROM scheduled AS s
        WHERE s.webhook_id = $1 AND s.transform_version = transforms.version AND s.transform_version > 0) AS is_used
    FROM transforms WHERE webhook_id = $1
), gone AS (
    UPDATE transforms SET removed_at = now() WHERE webhook_id = $1 AND version IN (
        SELECT version FROM t WHERE NOT is_removed AND NOT is_used ORDER BY version
        LIMIT greatest(0, (SELECT count(*) FROM t WHERE NOT is_removed OR is_used) - $4))
)
SELECT count(*) <= $4 FROM t WHERE is_used";

/// Resuming gives what waited a whole schedule, as it does when an account resumes its webhook.
const PUT: &str = "
WITH a AS (UPDATE accounts SET version = $2 WHERE id = $3)
UPDATE webhooks SET version = $2, updated_at = date_trunc('milliseconds', clock_timestamp()),
    transform_version = $4, transform_last = $5, transform_settled = $6,
    resumed_at = CASE WHEN $7 AND transform_suspended IS NOT NULL AND state = 'paused' THEN now() ELSE resumed_at END,
    failing_since = CASE WHEN $7 AND transform_suspended IS NOT NULL THEN NULL ELSE failing_since END,
    still_failing_at = CASE WHEN $7 AND transform_suspended IS NOT NULL THEN NULL ELSE still_failing_at END,
    state = CASE WHEN $7 AND transform_suspended IS NOT NULL AND state = 'paused' THEN 'active' ELSE state END,
    transform_suspended = CASE WHEN $8 THEN NULL ELSE transform_suspended END
WHERE id = $1";

/// Compare-and-set: of two that compiled it one is heard, and none when it was removed meanwhile.
const COMPILED: &str = "
UPDATE transforms SET state = $3, reason = $4, compiling_at = NULL
WHERE webhook_id = $1 AND version = $2 AND state = 'compiling' AND removed_at IS NULL";

const READY: &str = "
UPDATE transforms SET state = 'ready', reason = NULL WHERE webhook_id = $1 AND version = $2";

const STATE: &str = "
SELECT state FROM transforms WHERE webhook_id = $1 AND version = $2 AND removed_at IS NULL";

const REMOVE: &str = "
UPDATE transforms SET removed_at = now()
WHERE webhook_id = $1 AND ($2::int IS NULL OR version = $2) AND removed_at IS NULL";

const IS_OWED: &str = "
SELECT EXISTS (SELECT FROM scheduled WHERE webhook_id = $1 AND transform_version = $2 AND transform_version > 0)";

/// A change under way: nobody else makes one until it ends.
struct Change<'a> {
    work: Transaction<'a>,
    config_version: i64,
    webhook: WebhookId,
    account: AccountId,
    in_force: Option<i32>,
    last: i32,
    settled: i32,
    suspended: bool,
}

impl<'a> Change<'a> {
    /// None when the webhook is gone, or not the account's.
    async fn begin(
        client: &'a mut deadpool_postgres::Client,
        webhook: WebhookId,
        account: Option<AccountId>,
    ) -> Result<Option<Change<'a>>, Error> {
        let work = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        let raise = work.prepare_cached(RAISE).await?;
        let lock = work.prepare_cached(LOCK).await?;
        let config_version = work.query_one(&raise, &[]).await?.get(0);
        let Some(row) = work.query_opt(&lock, &[&webhook, &account]).await? else {
            return Ok(None);
        };
        Ok(Some(Change {
            config_version,
            webhook,
            account: row.get(0),
            in_force: row.get(1),
            last: row.get(2),
            settled: row.get(3),
            suspended: row.get(4),
            work,
        }))
    }

    async fn pending(&self) -> Result<Option<i32>, Error> {
        let statement = self.work.prepare_cached(PENDING).await?;
        Ok(self.work.query_one(&statement, &[&self.webhook, &self.settled]).await?.get(0))
    }

    /// The state of a version that was not removed.
    async fn state(&self, version: i32) -> Result<Option<String>, Error> {
        let statement = self.work.prepare_cached(STATE).await?;
        let row = self.work.query_opt(&statement, &[&self.webhook, &version]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    async fn make_room(&self, newest: i32, max: i64) -> Result<bool, Error> {
        let statement = self.work.prepare_cached(MAKE_ROOM).await?;
        let in_force = self.in_force.unwrap_or(newest);
        // The one in force stays as long as the newest may turn out to be worse.
        let row = self.work.query_one(&statement, &[&self.webhook, &newest, &in_force, &max.max(2)]).await?;
        Ok(row.get(0))
    }

    /// Puts a version into force that can be called: nothing uploaded before takes its place, and its webhook is resumed.
    fn settle(&mut self, version: i32) {
        self.in_force = Some(version);
        self.settled = self.last;
    }

    /// Writes what was changed here to the webhook, for dispatchers to see, and commits.
    async fn commit(self, resumes: bool, ends_suspension: bool) -> Result<(), Error> {
        let statement = self.work.prepare_cached(PUT).await?;
        let Change { config_version, webhook, account, in_force, last, settled, .. } = &self;
        self.work
            .execute(
                &statement,
                &[webhook, config_version, account, in_force, last, settled, &resumes, &ends_suspension],
            )
            .await?;
        Ok(self.work.commit().await?)
    }
}

impl Store {
    /// Keeps a module's bytes. Without a version they go again after a while.
    pub async fn keep_module(&self, sha256: &[u8; 32], wasm: &[u8]) -> Result<(), Error> {
        let client = self.client().await?;
        let hash = sha256.as_slice();
        let known = "UPDATE transform_modules SET uploaded_at = now() WHERE sha256 = $1";
        if client.execute(&client.prepare_cached(known).await?, &[&hash]).await? == 0 {
            let new = "INSERT INTO transform_modules (sha256, wasm) VALUES ($1, $2)
                       ON CONFLICT (sha256) DO UPDATE SET uploaded_at = now()";
            client.execute(&client.prepare_cached(new).await?, &[&hash, &wasm]).await?;
        }
        Ok(())
    }

    /// The version of a webhook that an upload of these bytes would be the same as.
    pub async fn same_upload(&self, webhook: WebhookId, sha256: &[u8; 32]) -> Result<Option<i32>, Error> {
        let client = self.client().await?;
        let sql = "SELECT t.version FROM webhooks AS w JOIN transforms AS t ON t.webhook_id = w.id
                       AND t.version = coalesce((SELECT max(p.version) FROM transforms AS p WHERE p.webhook_id = w.id
                           AND p.version > w.transform_settled AND p.state = 'compiling' AND p.removed_at IS NULL),
                           w.transform_version)
                   WHERE w.id = $1 AND t.sha256 = $2";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_opt(&statement, &[&webhook, &sha256.as_slice()]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Adds a version whose module is kept already, with the settings of the one in force. It comes into force at once if
    /// it is ready or there is none.
    pub async fn add_version(
        &self,
        account: AccountId,
        webhook: WebhookId,
        upload: &Upload<'_>,
    ) -> Changed<Added> {
        let mut client = self.client().await?;
        let Some(mut change) = Change::begin(&mut client, webhook, Some(account)).await? else {
            return Ok(Err(Refused::NoWebhook));
        };
        let hash = upload.sha256.as_slice();
        let before = change.pending().await?.or(change.in_force);
        if let Some(version) = before {
            let statement = change.work.prepare_cached(IS_SAME).await?;
            let same = change.work.query_opt(&statement, &[&webhook, &version, &hash]).await?;
            if let Some(row) = same {
                let is_waiting = row.get::<_, &str>(0) == "compiling";
                if upload.ready && is_waiting {
                    let statement = change.work.prepare_cached(COMPILED).await?;
                    let none = None::<&str>;
                    change.work.execute(&statement, &[&webhook, &version, &"ready", &none]).await?;
                    change.settle(version);
                    change.commit(true, true).await?;
                }
                return Ok(Ok(Added { version, is_new: false }));
            }
        }
        let version = change.last + 1;
        let state = if upload.ready { "ready" } else { "compiling" };
        let statement = change.work.prepare_cached(ADD).await?;
        change
            .work
            .execute(&statement, &[&webhook, &version, &hash, &upload.size, &state, &change.in_force])
            .await?;
        if !change.make_room(version, upload.versions_max).await? {
            return Ok(Err(Refused::TooMany));
        }
        change.last = version;
        if upload.ready {
            change.settle(version);
        } else if change.in_force.is_none() {
            change.in_force = Some(version);
        }
        change.commit(upload.ready, upload.ready).await?;
        Ok(Ok(Added { version, is_new: true }))
    }

    /// Notes that a version was compiled, or why it is rejected. Returns whether anybody waited for that.
    pub async fn compiled(
        &self,
        webhook: WebhookId,
        version: i32,
        outcome: Result<(), &str>,
    ) -> Result<bool, Error> {
        let mut client = self.client().await?;
        let Some(mut change) = Change::begin(&mut client, webhook, None).await? else {
            return Ok(false);
        };
        let state = if outcome.is_ok() { "ready" } else { "rejected" };
        let statement = change.work.prepare_cached(COMPILED).await?;
        if change.work.execute(&statement, &[&webhook, &version, &state, &outcome.err()]).await? == 0 {
            return Ok(false);
        }
        let was_in_force = change.in_force == Some(version);
        let comes = outcome.is_ok() && (was_in_force || version > change.settled);
        if comes {
            change.in_force = Some(version);
            // Later uploads may still take its place.
            change.settled = change.settled.max(version);
        } else if was_in_force {
            // The next upload is then the first.
            change.in_force = change.pending().await?;
        }
        change.commit(comes, comes).await?;
        Ok(true)
    }

    /// A new version with the module of the one in force. Returns its number, or that of the one in force when nothing
    /// changes.
    pub async fn configure_transform(
        &self,
        account: AccountId,
        webhook: WebhookId,
        settings: &Settings<'_>,
        versions_max: i64,
    ) -> Changed<i32> {
        let mut client = self.client().await?;
        let Some(mut change) = Change::begin(&mut client, webhook, Some(account)).await? else {
            return Ok(Err(Refused::NoWebhook));
        };
        // An upload under way has the settings from before: a version made now would keep it from ever coming into force.
        if let Some(version) = change.pending().await? {
            return Ok(Err(Refused::Compiling(version)));
        }
        let Some(in_force) = change.in_force else {
            return Ok(Err(Refused::NoTransform));
        };
        let version = change.last + 1;
        let statement = change.work.prepare_cached(COPY).await?;
        let Settings { config, on_error } = settings;
        let made =
            change.work.execute(&statement, &[&webhook, &in_force, &version, config, on_error]).await?;
        if made == 0 {
            return Ok(Ok(in_force));
        }
        if !change.make_room(version, versions_max).await? {
            return Ok(Err(Refused::TooMany));
        }
        change.last = version;
        change.settle(version);
        change.commit(true, true).await?;
        Ok(Ok(version))
    }

    /// Puts a version into force. A suspended one is given another chance.
    pub async fn activate_version(
        &self,
        account: AccountId,
        webhook: WebhookId,
        version: i32,
    ) -> Changed<()> {
        let mut client = self.client().await?;
        let Some(mut change) = Change::begin(&mut client, webhook, Some(account)).await? else {
            return Ok(Err(Refused::NoWebhook));
        };
        let Some(state) = change.state(version).await? else {
            return Ok(Err(Refused::NoVersion));
        };
        if !matches!(state.as_str(), "ready" | "suspended") {
            return Ok(Err(Refused::NotReady));
        }
        if state == "ready" && change.in_force == Some(version) && !change.suspended {
            if change.pending().await?.is_none() {
                return Ok(Ok(()));
            }
        } else {
            let statement = change.work.prepare_cached(READY).await?;
            change.work.execute(&statement, &[&webhook, &version]).await?;
        }
        change.settle(version);
        change.commit(true, true).await?;
        Ok(Ok(()))
    }

    /// Takes a webhook's transform away, and all versions with it. One that was paused for it stays paused: what waits was
    /// not meant to go out as it is.
    pub async fn remove_transform(&self, account: AccountId, webhook: WebhookId) -> Changed<()> {
        let mut client = self.client().await?;
        let Some(mut change) = Change::begin(&mut client, webhook, Some(account)).await? else {
            return Ok(Err(Refused::NoWebhook));
        };
        let statement = change.work.prepare_cached(REMOVE).await?;
        if change.work.execute(&statement, &[&webhook, &None::<i32>]).await? == 0 {
            return Ok(Err(Refused::NoTransform));
        }
        change.in_force = None;
        change.settled = change.last;
        change.commit(false, true).await?;
        Ok(Ok(()))
    }

    /// Removes one version that nobody needs.
    pub async fn remove_version(&self, account: AccountId, webhook: WebhookId, version: i32) -> Changed<()> {
        let mut client = self.client().await?;
        let Some(change) = Change::begin(&mut client, webhook, Some(account)).await? else {
            return Ok(Err(Refused::NoWebhook));
        };
        if change.state(version).await?.is_none() {
            return Ok(Err(Refused::NoVersion));
        }
        let statement = change.work.prepare_cached(IS_OWED).await?;
        let is_owed: bool = change.work.query_one(&statement, &[&webhook, &version]).await?.get(0);
        if is_owed || change.in_force == Some(version) {
            return Ok(Err(Refused::InUse));
        }
        let statement = change.work.prepare_cached(REMOVE).await?;
        change.work.execute(&statement, &[&webhook, &Some(version)]).await?;
        change.commit(false, false).await?;
        Ok(Ok(()))
    }
}
