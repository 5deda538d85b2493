//! Secrets of webhooks.

use super::{Error, Store};
use crate::model::{AccountId, Timestamp, WebhookId};

const ROTATE: &str = "
WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
w AS (UPDATE webhooks SET version = config_version,
        updated_at = date_trunc('milliseconds', clock_timestamp()), secret = $3,
        secret_before = CASE WHEN $4::float8 > 0 THEN secret END,
        secret_until = date_trunc('milliseconds', clock_timestamp()) + $4 * interval '1 second'
    FROM v WHERE id = $2 AND account_id = $1 AND state <> 'deleted' RETURNING secret_until),
a AS (UPDATE accounts SET version = config_version FROM v WHERE id = $1 AND EXISTS (SELECT FROM w))
SELECT secret_until FROM w";

impl Store {
    /// Gives a webhook a new secret; the one it had goes on signing beside it for `overlap` seconds, and an older one no more.
    /// Returns until when; none when the webhook is not this account's.
    pub async fn rotate_secret(
        &self,
        account: AccountId,
        id: WebhookId,
        secret: &str,
        overlap: u32,
    ) -> Result<Option<Timestamp>, Error> {
        let client = self.client().await?;
        let statement = client.prepare_cached(ROTATE).await?;
        let row = client.query_opt(&statement, &[&account, &id, &secret, &f64::from(overlap)]).await?;
        Ok(row.map(|row| row.get(0)))
    }
}
