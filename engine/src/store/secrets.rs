//! Secrets of webhooks: giving them new ones, and keeping all of them under the key in force.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use super::{Error, Store, seal::Unreadable};
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
        let secret = self.seal.close(id, secret);
        let client = self.client().await?;
        let statement = client.prepare_cached(ROTATE).await?;
        let row = client.query_opt(&statement, &[&account, &id, &secret, &f64::from(overlap)]).await?;
        Ok(row.map(|row| row.get(0)))
    }
}

/// What encrypting all secrets did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encrypted {
    /// The key that all are under now, but for the last of these.
    pub key: String,
    /// Webhooks whose secrets were encrypted by this run.
    pub changed: u64,
    /// Those that could not be read, and the keys that they ask for.
    pub unreadable: u64,
    pub missing: BTreeSet<String>,
}

/// Webhooks of one step: it locks their rows for a moment.
const STEP: i64 = 500;

/// One secret for each key that any webhook asks for and one for none, those that no signature needs any more left out.
const SAMPLES: &str = "
SELECT DISTINCT ON (split_part(secret, ':', 3)) id, secret FROM (
    SELECT id, secret FROM webhooks WHERE secret LIKE 'enc:%' AND state <> 'deleted'
    UNION ALL
    SELECT id, secret_before FROM webhooks
    WHERE secret_before LIKE 'enc:%' AND secret_until > now() AND state <> 'deleted') AS s";

/// The next webhooks beyond `$1` that have a secret which is not under the key `$2`.
const NEXT: &str = "
SELECT id, secret, CASE WHEN secret_until > now() THEN secret_before END FROM webhooks
WHERE id > $1 AND (NOT starts_with(secret, $2) OR NOT starts_with(coalesce(secret_before, $2), $2))
ORDER BY id LIMIT $3";

/// A secret that was rotated meanwhile stays as it is: it is under the first key already, or the next run's.
const REPLACE: &str = "
UPDATE webhooks AS w SET secret = n.secret, secret_before = n.secret_before
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS n (id, known, secret, secret_before)
WHERE w.id = n.id AND w.secret = n.known";

impl Store {
    /// Checks that each key which any secret in use asks for is there and the right one.
    ///
    /// # Errors
    /// [`Error::MissingKeys`] names those that are not.
    pub async fn check_secrets(&self) -> Result<(), Error> {
        let client = self.client().await?;
        let rows = client.query(SAMPLES, &[]).await?;
        let unreadable = |row: &Row| self.seal.open(row.get(0), row.get(1)).err().map(|error| error.key);
        let missing: BTreeSet<String> = rows.iter().filter_map(unreadable).collect();
        if missing.is_empty() { Ok(()) } else { Err(Error::MissingKeys(missing)) }
    }

    /// Brings the secrets of all webhooks under the first key, a bounded number at a time, and forgets those whose time
    /// to sign is over. Does nothing without a key.
    pub async fn encrypt_secrets(&self) -> Result<Encrypted, Error> {
        let Some(key) = self.seal.first().map(str::to_owned) else { return Ok(Encrypted::default()) };
        let client = self.client().await?;
        let mut done = Encrypted { key, ..Encrypted::default() };
        let current = format!("enc:v1:{}:", done.key);
        let mut after = WebhookId(0);
        loop {
            let rows = client.query(NEXT, &[&after, &current, &STEP]).await?;
            let Some(last) = rows.last() else { return Ok(done) };
            after = last.get(0);
            let (mut ids, mut known, mut secrets, mut before) = (vec![], vec![], vec![], vec![]);
            for row in &rows {
                match self.resealed(row) {
                    Ok((secret, secret_before)) => {
                        ids.push(row.get::<_, WebhookId>(0));
                        known.push(row.get::<_, &str>(1));
                        secrets.push(secret);
                        before.push(secret_before);
                    }
                    Err(error) => {
                        done.unreadable += 1;
                        done.missing.insert(error.key);
                    }
                }
            }
            done.changed += client.execute(REPLACE, &[&ids, &known, &secrets, &before]).await?;
        }
    }

    /// Both secrets of a row of [`NEXT`] under the first key.
    fn resealed(&self, row: &Row) -> Result<(String, Option<String>), Unreadable> {
        let id = row.get(0);
        let again = |stored: &str| Ok(self.seal.close(id, &self.seal.open(id, stored)?));
        let before: Option<&str> = row.get(2);
        Ok((again(row.get(1))?, before.map(again).transpose()?))
    }
}
