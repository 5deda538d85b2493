//! Transforms: their versions, and their modules' bytes.

use bytes::Bytes;

use super::{Error, Store, webhooks};
use crate::model::{Transform, WebhookId};

/// What came of calls of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub calls: i64,
    pub changed: i64,
    pub dropped: i64,
    pub failed: i64,
    pub cpu_us: i64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.changed += other.changed;
        self.dropped += other.dropped;
        self.failed += other.failed;
        self.cpu_us += other.cpu_us;
    }
}

impl Store {
    /// One version of a webhook's transform, whatever its state.
    pub async fn transform(&self, webhook: WebhookId, version: i32) -> Result<Option<Transform>, Error> {
        let client = self.client().await?;
        let sql = "SELECT version, sha256, config, on_error, state FROM transforms
                   WHERE webhook_id = $1 AND version = $2";
        let row = client.query_opt(&client.prepare_cached(sql).await?, &[&webhook, &version]).await?;
        Ok(row.as_ref().map(|row| webhooks::transform(row, 0)))
    }

    /// A module's bytes as they were uploaded.
    pub async fn module(&self, sha256: &[u8; 32]) -> Result<Option<Bytes>, Error> {
        let client = self.client().await?;
        let sql = "SELECT wasm FROM transform_modules WHERE sha256 = $1";
        let row = client.query_opt(&client.prepare_cached(sql).await?, &[&sha256.as_slice()]).await?;
        Ok(row.map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))))
    }

    pub async fn suspend_transform(
        &self,
        _webhook: WebhookId,
        _version: i32,
        _reason: &str,
    ) -> Result<bool, Error> {
        Ok(false)
    }

    pub async fn add_transform_counts(&self, _counts: &[(WebhookId, i32, Counts)]) -> Result<(), Error> {
        Ok(())
    }
}
