//! Accounts and their keys. A key is stored as its SHA-256 alone.

use super::{Error, Store};
use crate::model::AccountId;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything its account may.
    Manage,
    /// Post events, no more.
    Send,
}

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOwner {
    pub account: AccountId,
    pub scope: Scope,
}

/// A key as the cache knows it: its hash, and its owner unless it was revoked.
pub type KeyRow = ([u8; 32], Option<KeyOwner>);

impl Store {
    /// The keys among `hashes` that exist, revoked ones without an owner.
    pub async fn find_keys(&self, hashes: &[[u8; 32]]) -> Result<Vec<KeyRow>, Error> {
        let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        let client = self.client().await?;
        let sql =
            "SELECT hash, account_id, scope, revoked_at IS NOT NULL FROM api_keys WHERE hash = ANY ($1)";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&hashes]).await?;
        Ok(rows.iter().filter_map(key_row).collect())
    }

    /// The configuration version, and the keys that changed after `version`.
    pub async fn changed_keys(&self, version: i64) -> Result<(i64, Vec<KeyRow>), Error> {
        let client = self.client().await?;
        let sql = "SELECT k.hash, k.account_id, k.scope, k.revoked_at IS NOT NULL, s.config_version
                   FROM engine_state AS s LEFT JOIN api_keys AS k ON k.version > $1";
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&version]).await?;
        let now = rows.first().map_or(version, |row| row.get(4));
        self.address.history().read(now);
        Ok((now, rows.iter().filter_map(key_row).collect()))
    }
}

fn key_row(row: &tokio_postgres::Row) -> Option<KeyRow> {
    let hash: Option<&[u8]> = row.get(0);
    let hash: [u8; 32] = hash?.try_into().ok()?;
    let scope: &str = row.get(2);
    let owner =
        KeyOwner { account: row.get(1), scope: if scope == "manage" { Scope::Manage } else { Scope::Send } };
    let revoked: bool = row.get(3);
    Some((hash, (!revoked).then_some(owner)))
}
