//! What is owed at this moment, for those who run the engine.

use super::{Error, Store};

/// Owed work, in numbers.
#[derive(Debug)]
pub struct Summary {
    /// Batches not yet accounted for, and those of them that were not streamed.
    pub batches: i64,
    pub unstreamed: i64,
    /// Age in seconds of the oldest of them; none when there is none.
    pub oldest_batch: Option<f64>,
    /// Deliveries in the schedule by why they are there, the most frequent first.
    pub scheduled: Vec<(String, i64)>,
    pub dead_letters: i64,
}

impl Store {
    /// Counts all of it. With millions of rows this takes seconds.
    ///
    /// # Errors
    /// When Postgres cannot be asked.
    pub async fn summary(&self) -> Result<Summary, Error> {
        let client = self.client().await?;
        let sql = "SELECT count(*), count(*) FILTER (WHERE state = 0),
                          extract(epoch FROM now() - min(created_at))::float8 FROM batches";
        let batches = client.query_one(sql, &[]).await?;
        let sql = "SELECT reason, count(*) FROM scheduled GROUP BY 1 ORDER BY 2 DESC";
        let scheduled = client.query(sql, &[]).await?;
        let sql = "SELECT count(*) FROM dlq_entries WHERE requeued_at IS NULL";
        let letters = client.query_one(sql, &[]).await?;
        Ok(Summary {
            batches: batches.get(0),
            unstreamed: batches.get(1),
            oldest_batch: batches.get(2),
            scheduled: scheduled.iter().map(|row| (row.get(0), row.get(1))).collect(),
            dead_letters: letters.get(0),
        })
    }
}
