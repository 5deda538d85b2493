//! Modules that nobody compiles any more, and versions and modules that nobody needs.

use super::{Error, Store, transforms::hash};
use crate::model::WebhookId;

/// How long a removed version stays, and a module after its last upload. By then every delivery that was under way with the
/// version has ended or stands in the schedule, and every upload has its row.
const GRACE: &str = "interval '10 minutes'";

/// Webhooks and modules of one step.
const STEP: i64 = 1000;

/// A version to be compiled by whoever claimed it.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub webhook: WebhookId,
    pub version: i32,
    pub sha256: [u8; 32],
}

const CLAIM: &str = "
UPDATE transforms SET compiling_at = now() WHERE (webhook_id, version) IN (
    SELECT webhook_id, version FROM transforms
    WHERE state = 'compiling' AND compiling_at < now() - $1 * interval '1 millisecond' AND removed_at IS NULL
    ORDER BY compiling_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING webhook_id, version, sha256";

/// Those of webhooks that were deleted: a deletion itself cannot see an upload that was committed while it waited for its turn.
const LEFT: &str = "
WITH w AS MATERIALIZED (
    SELECT id FROM webhooks WHERE state = 'deleted' AND transform_last > 0 LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
), t AS (
    UPDATE transforms SET removed_at = now() WHERE webhook_id IN (SELECT id FROM w) AND removed_at IS NULL
)
UPDATE webhooks SET transform_version = NULL, transform_last = 0 WHERE id IN (SELECT id FROM w)";

impl Store {
    /// Takes over a compilation that nobody has renewed for so long.
    pub async fn claim_compiling(&self, after_ms: i64) -> Result<Option<Claim>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(CLAIM).await?;
        let row = client.query_opt(&statement, &[&(after_ms as f64)]).await?;
        Ok(row.map(|row| Claim { webhook: row.get(0), version: row.get(1), sha256: hash(row.get(2)) }))
    }

    /// Says that a version is being compiled. Returns false when nobody waits for it any more.
    pub async fn renew_compiling(&self, webhook: WebhookId, version: i32) -> Result<bool, Error> {
        let client = self.client().await?;
        let sql = "UPDATE transforms SET compiling_at = now()
                   WHERE webhook_id = $1 AND version = $2 AND state = 'compiling' AND removed_at IS NULL";
        let statement = client.prepare_cached(sql).await?;
        Ok(client.execute(&statement, &[&webhook, &version]).await? > 0)
    }

    /// Marks what deleted webhooks left as removed.
    pub async fn remove_left_transforms(&self) -> Result<(), Error> {
        let client = self.client().await?;
        client.execute(&client.prepare_cached(LEFT).await?, &[&STEP]).await?;
        Ok(())
    }

    /// Deletes versions that were removed a while ago and with which nothing is owed. Returns how many.
    pub async fn delete_removed_transforms(&self) -> Result<u64, Error> {
        let client = self.client().await?;
        let sql = format!(
            "DELETE FROM transforms WHERE (webhook_id, version) IN (
                 SELECT webhook_id, version FROM transforms AS t WHERE removed_at < now() - {GRACE}
                     AND NOT EXISTS (SELECT FROM scheduled AS s WHERE s.webhook_id = t.webhook_id
                         AND s.transform_version = t.version AND s.transform_version > 0)
                 ORDER BY removed_at LIMIT $1)"
        );
        Ok(client.execute(&client.prepare_cached(&sql).await?, &[&STEP]).await?)
    }

    /// Deletes modules that no version has. Reads all of them, so not to be asked often.
    pub async fn delete_unused_modules(&self) -> Result<u64, Error> {
        let client = self.client().await?;
        // One that gets a version at this moment is refused by its foreign key, and looked at again the next time.
        let sql = format!(
            "DELETE FROM transform_modules AS m WHERE uploaded_at < now() - {GRACE}
                 AND NOT EXISTS (SELECT FROM transforms AS t WHERE t.sha256 = m.sha256)"
        );
        Ok(client.execute(&client.prepare_cached(&sql).await?, &[]).await?)
    }
}
