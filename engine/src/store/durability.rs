//! What Postgres says of its own durability.

use super::{Error, Store};

/// Settings as `SHOW` has them, for a session like ours.
#[derive(Debug)]
pub struct Durability {
    pub fsync: String,
    pub synchronous_commit: String,
    pub encoding: String,
}

impl Store {
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn durability(&self) -> Result<Durability, Error> {
        let sql = "SELECT current_setting('fsync'), current_setting('synchronous_commit'),
                          current_setting('server_encoding')";
        let row = self.client().await?.query_one(sql, &[]).await?;
        Ok(Durability { fsync: row.get(0), synchronous_commit: row.get(1), encoding: row.get(2) })
    }
}
