//! How far behind the work is, asked of indexes alone: cheap however much is owed.

use super::{Error, Store};

/// What is counted of dead letters; beyond it there are more.
pub const LETTERS_MAX: i64 = 100_000;

/// Ages in seconds, 0 where nothing waits.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Of the oldest event in a batch that is not accounted for, or in the schedule.
    pub oldest_undelivered: f64,
    /// Since the time that the first row of the schedule was due.
    pub overdue: f64,
}

impl Store {
    /// Looks at the first row of each index. Ids grow with time, so the first batch and the first event of the schedule are the oldest.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn ages(&self) -> Result<Ages, Error> {
        let client = self.client().await?;
        let sql = "SELECT extract(epoch FROM clock_timestamp() - least(
                       (SELECT created_at FROM batches ORDER BY first_id LIMIT 1),
                       (SELECT created_at FROM events
                        WHERE id = (SELECT event_id FROM scheduled ORDER BY event_id LIMIT 1))))::float8,
                   extract(epoch FROM clock_timestamp()
                       - (SELECT next_at FROM scheduled ORDER BY next_at LIMIT 1))::float8";
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_one(&statement, &[]).await?;
        let age = |column| row.get::<_, Option<f64>>(column).unwrap_or(0.0).max(0.0);
        Ok(Ages { oldest_undelivered: age(0), overdue: age(1) })
    }

    /// Dead letters that were not requeued, counted up to [`LETTERS_MAX`].
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn open_letters(&self) -> Result<i64, Error> {
        let client = self.client().await?;
        // In the order of its index, so that it is this index that is read.
        let sql = "SELECT count(*) FROM (SELECT id FROM dlq_entries WHERE requeued_at IS NULL
                       ORDER BY account_id, id LIMIT $1) AS letters";
        let statement = client.prepare_cached(sql).await?;
        Ok(client.query_one(&statement, &[&LETTERS_MAX]).await?.get(0))
    }
}
