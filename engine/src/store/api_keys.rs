//! An account's API keys, as it makes, sees and revokes them.

use tokio_postgres::{IsolationLevel, Row};

use super::{Error, Store};
use crate::model::{AccountId, Timestamp};

/// A key as the API shows it. Its text is nowhere.
#[derive(Debug)]
pub struct Shown {
    pub id: i64,
    pub name: String,
    /// The first characters of its text.
    pub prefix: String,
    /// `manage` or `send`.
    pub scope: String,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
}

/// A key to be made.
#[derive(Debug)]
pub struct New<'a> {
    pub name: &'a str,
    pub scope: &'a str,
    pub hash: &'a [u8; 32],
    pub prefix: &'a str,
}

/// What became of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    Done,
    Unknown,
    /// Without it nobody could manage the account any more.
    LastManager,
}

const COLUMNS: &str = "id, name, prefix, scope, created_at, last_used_at";

const RAISE: &str = "UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version";

const REVOKE: &str = "
UPDATE api_keys SET revoked_at = now(), version = $3
WHERE id = $2 AND account_id = $1 AND revoked_at IS NULL AND (scope <> 'manage' OR EXISTS (
    SELECT FROM api_keys AS other WHERE other.account_id = $1 AND other.id <> $2 AND other.scope = 'manage'
        AND other.revoked_at IS NULL))";

fn shown(row: &Row) -> Shown {
    Shown {
        id: row.get(0),
        name: row.get(1),
        prefix: row.get(2),
        scope: row.get(3),
        created_at: row.get(4),
        last_used_at: row.get(5),
    }
}

impl Store {
    /// Makes a key; none when the account has `max` already.
    pub async fn add_key(&self, account: AccountId, new: &New<'_>, max: i64) -> Result<Option<Shown>, Error> {
        let mut client = self.client().await?;
        // Two at once are counted one after the other: the first statement has the lock that puts changes in order.
        let work = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        let version: i64 = work.query_one(&work.prepare_cached(RAISE).await?, &[]).await?.get(0);
        let sql = format!(
            "INSERT INTO api_keys (account_id, hash, prefix, scope, name, version)
             SELECT $1, $2, $3, $4, $5, $6::bigint
             WHERE (SELECT count(*) FROM api_keys WHERE account_id = $1 AND revoked_at IS NULL) < $7
             RETURNING {COLUMNS}"
        );
        let (hash, New { name, scope, prefix, .. }) = (new.hash.as_slice(), new);
        let statement = work.prepare_cached(&sql).await?;
        let row = work.query_opt(&statement, &[&account, &hash, prefix, scope, name, &version, &max]).await?;
        work.commit().await?;
        Ok(row.as_ref().map(shown))
    }

    /// An account's keys that were not revoked, newest first, below `before`.
    pub async fn list_keys(&self, account: AccountId, before: i64, limit: i64) -> Result<Vec<Shown>, Error> {
        let client = self.client().await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM api_keys WHERE account_id = $1 AND id < $2 AND revoked_at IS NULL
             ORDER BY id DESC LIMIT $3"
        );
        let rows = client.query(&client.prepare_cached(&sql).await?, &[&account, &before, &limit]).await?;
        Ok(rows.iter().map(shown).collect())
    }

    /// Revokes a key. Gateways notice within about a second.
    pub async fn revoke_key(&self, account: AccountId, id: i64) -> Result<Revoked, Error> {
        let mut client = self.client().await?;
        // As above: of the last two, revoked at once, one stays.
        let work = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        let version: i64 = work.query_one(&work.prepare_cached(RAISE).await?, &[]).await?.get(0);
        if work.execute(&work.prepare_cached(REVOKE).await?, &[&account, &id, &version]).await? > 0 {
            work.commit().await?;
            return Ok(Revoked::Done);
        }
        let sql = "SELECT FROM api_keys WHERE id = $2 AND account_id = $1 AND revoked_at IS NULL";
        let is_there = work.query_opt(&work.prepare_cached(sql).await?, &[&account, &id]).await?.is_some();
        Ok(if is_there { Revoked::LastManager } else { Revoked::Unknown })
    }

    /// Notes that keys were used.
    pub async fn note_used(&self, hashes: &[[u8; 32]]) -> Result<(), Error> {
        let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        let client = self.client().await?;
        // In one order, and those another gateway is at are its own to note.
        let sql = "UPDATE api_keys SET last_used_at = date_trunc('milliseconds', now()) WHERE id IN (
                       SELECT id FROM api_keys WHERE hash = ANY ($1) AND revoked_at IS NULL
                       FOR NO KEY UPDATE SKIP LOCKED)";
        client.execute(&client.prepare_cached(sql).await?, &[&hashes]).await?;
        Ok(())
    }
}
