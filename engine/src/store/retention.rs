//! Old events go a partition at a time, with their attempts and dead letters. What is still owed keeps its partition.

use super::{Error, Store};

/// Ids of one partition: as `make_partitions` in the first migration has it.
const WIDTH: i64 = 1 << 26;

/// Dead letters removed by one statement.
const LETTERS: i64 = 1000;

/// Whether partition $1, of which {events} is the table, holds nothing younger than $2 milliseconds, and cannot get anything
/// new: ids are given out in order, and one that was given out is used within seconds. An empty one waits until the next one
/// has been filled too.
const IS_OLD: &str = "
SELECT CASE WHEN newest IS NULL THEN $1::bigint + 1 < at ELSE $1::bigint < at AND newest < now() - $2::float8 * interval '1 millisecond' END
FROM (SELECT last_value * 1024 / 67108864 AS at FROM event_id_blocks) AS ids,
    (SELECT max(created_at) AS newest FROM (SELECT created_at FROM {events} ORDER BY id DESC LIMIT 1024) AS last) AS events";

/// Whether anything of ids from $1 up to and without $2 is owed, or has a dead letter left.
const IS_NEEDED: &str = "
SELECT EXISTS (SELECT FROM batches WHERE first_id < $2 AND last_id >= $1)
    OR EXISTS (SELECT FROM scheduled WHERE event_id >= $1 AND event_id < $2),
    EXISTS (SELECT FROM dlq_entries WHERE event_id >= $1 AND event_id < $2)";

/// By the index that begins with the event.
const REMOVE_LETTERS: &str = "
DELETE FROM dlq_entries WHERE (event_id, webhook_id, round) IN (
    SELECT event_id, webhook_id, round FROM dlq_entries WHERE event_id >= $1 AND event_id < $2
    ORDER BY event_id, webhook_id, round LIMIT $3)";

impl Store {
    /// The numbers of the partitions of events, the oldest first.
    pub async fn partitions(&self) -> Result<Vec<i64>, Error> {
        let client = self.client().await?;
        let sql = "SELECT substring(c.relname FROM 9)::bigint FROM pg_inherits AS i
                   JOIN pg_class AS c ON c.oid = i.inhrelid
                   WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_p[0-9]{1,18}$' ORDER BY 1";
        Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Whether a partition is old and nothing in it owed.
    pub async fn is_spent(&self, partition: i64, age_ms: i64) -> Result<bool, Error> {
        let client = self.client().await?;
        let row = client.query_one(&is_old(partition), &[&partition, &(age_ms as f64)]).await?;
        if !row.get::<_, bool>(0) {
            return Ok(false);
        }
        let needed = client.query_one(IS_NEEDED, &[&first(partition), &first(partition + 1)]).await?;
        Ok(!needed.get::<_, bool>(0))
    }

    /// Removes some of the dead letters of a partition's events. Returns whether there may be more.
    pub async fn remove_letters_of(&self, partition: i64) -> Result<bool, Error> {
        let client = self.client().await?;
        let bounds = (first(partition), first(partition + 1));
        let removed = client.execute(REMOVE_LETTERS, &[&bounds.0, &bounds.1, &LETTERS]).await?;
        Ok(removed == LETTERS as u64)
    }

    /// Drops a partition without dead letters, and the one of its attempts, if it is spent. False when something came between.
    ///
    /// # Errors
    /// Also when the lock, for which ingest has to wait, is not to be had within a moment.
    pub async fn drop_partition(&self, partition: i64, age_ms: i64) -> Result<bool, Error> {
        let mut client = self.client().await?;
        let work = client.transaction().await?;
        work.batch_execute(
            "SET LOCAL lock_timeout = '200ms';
             LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE;
             LOCK TABLE ONLY delivery_attempts IN ACCESS EXCLUSIVE MODE",
        )
        .await?;
        // Again, as nobody can add anything now.
        let old = work.query_one(&is_old(partition), &[&partition, &(age_ms as f64)]).await?;
        let needed = work.query_one(IS_NEEDED, &[&first(partition), &first(partition + 1)]).await?;
        if !old.get::<_, bool>(0) || needed.get::<_, bool>(0) || needed.get::<_, bool>(1) {
            return Ok(false);
        }
        let sql = format!(
            "DROP TABLE IF EXISTS events_p{partition}; DROP TABLE IF EXISTS delivery_attempts_p{partition}"
        );
        work.batch_execute(&sql).await?;
        work.commit().await?;
        Ok(true)
    }
}

fn first(partition: i64) -> i64 {
    partition.saturating_mul(WIDTH)
}

fn is_old(partition: i64) -> String {
    IS_OLD.replace("{events}", &format!("events_p{partition}"))
}
