//! Instances and their beats: whether a process is alive is judged by these, never by the age of its work.

use super::{Error, Link, Store};

impl Link {
    /// Beats, and returns every instance with its beat. An instance that others declared dead and removed comes back
    /// with its next beat.
    pub async fn beat(&mut self, me: i64, roles: &str) -> Result<Vec<(i64, i64)>, Error> {
        let next = self.history().next_beat(me);
        let beat = "INSERT INTO instances (id, roles, beat) VALUES ($1, $2, $3)
                    ON CONFLICT (id) DO UPDATE SET beat = excluded.beat";
        self.query(beat, &[&me, &roles, &next]).await?;
        self.history().beaten(next);
        let sql = "SELECT i.id, i.beat, s.history, (SELECT last_value FROM event_id_blocks)
                   FROM instances AS i, engine_state AS s";
        let rows = self.query(sql, &[]).await?;
        if let Some(row) = rows.first() {
            self.history().is_named(row.get(2))?;
            self.see(row.get(3));
        }
        Ok(rows.iter().map(|r| (r.get(0), r.get(1))).collect())
    }
}

impl Store {
    /// A new instance's id. Each start of a process is a new instance.
    pub async fn join(&self, roles: &str) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = "INSERT INTO instances (id, roles) VALUES (nextval('instance_ids'), $1) RETURNING id";
        Ok(client.query_one(sql, &[&roles]).await?.get(0))
    }

    /// How many instances there are beside this one that dispatch, dead ones that nobody has removed yet among them.
    pub async fn other_instances(&self, me: i64) -> Result<i64, Error> {
        let client = self.client().await?;
        let sql = "SELECT count(*) FROM instances WHERE id <> $1 AND roles <> 'api'";
        Ok(client.query_one(sql, &[&me]).await?.get(0))
    }

    /// Removes an instance that leaves, if it owns no unsent batch any more.
    pub async fn leave(&self, instance: i64) -> Result<(), Error> {
        self.remove_instance(instance, None).await
    }

    /// The same for one that was found dead, unless it has beaten since.
    pub async fn bury(&self, dead: i64, beat: i64) -> Result<(), Error> {
        self.remove_instance(dead, Some(beat)).await
    }

    async fn remove_instance(&self, instance: i64, beat: Option<i64>) -> Result<(), Error> {
        let client = self.client().await?;
        let sql = "DELETE FROM instances WHERE id = $1 AND beat = coalesce($2, beat)
                   AND NOT EXISTS (SELECT FROM batches WHERE owner = $1 AND state = 0)";
        client.execute(sql, &[&instance, &beat]).await?;
        Ok(())
    }
}
