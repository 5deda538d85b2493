//! Instances and their beats: whether a process is alive is judged by these, never by the age of its work.

use super::{Error, Store};

impl Store {
    /// A new instance's id. Each start of a process is a new instance.
    pub async fn join(&self, roles: &str) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = "INSERT INTO instances (id, roles) VALUES (nextval('instance_ids'), $1) RETURNING id";
        Ok(client.query_one(sql, &[&roles]).await?.get(0))
    }

    /// Beats, and returns the configuration version and every instance with its beat. An instance that others
    /// declared dead and removed comes back with the next beat.
    pub async fn beat(&self, me: i64, roles: &str) -> Result<(i64, Vec<(i64, i64)>), Error> {
        let client = self.client().await?;
        let beat = "INSERT INTO instances (id, roles) VALUES ($1, $2)
                    ON CONFLICT (id) DO UPDATE SET beat = instances.beat + 1";
        let statement = client.prepare_cached(beat).await?;
        client.execute(&statement, &[&me, &roles]).await?;
        let all = "SELECT config_version, i.id, i.beat FROM engine_state CROSS JOIN instances AS i";
        let statement = client.prepare_cached(all).await?;
        let rows = client.query(&statement, &[]).await?;
        let version = rows.first().map_or(0, |row| row.get(0));
        Ok((version, rows.iter().map(|r| (r.get(1), r.get(2))).collect()))
    }

    /// Removes an instance that leaves or has been found dead, if it owns no unsent batch any more.
    pub async fn leave(&self, instance: i64) -> Result<(), Error> {
        let client = self.client().await?;
        let sql = "DELETE FROM instances WHERE id = $1
                   AND NOT EXISTS (SELECT FROM batches WHERE owner = $1 AND state = 0)";
        client.execute(sql, &[&instance]).await?;
        Ok(())
    }
}
