//! Migrations, and the identity that a migrated database has.

use std::time::Duration;

use tokio_postgres::{Client, error::SqlState};

use super::{Address, Error, Store};

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Any number will do that no other program locks; this one reads "EvPu" in ASCII.
const LOCK: i64 = 0x4576_5075;

/// Brings the database to this version's schema, one process at a time. Returns how many migrations ran.
///
/// # Errors
/// When Postgres refuses, or a migration that ran before differs from the one in this binary.
pub async fn migrate(address: &Address) -> Result<usize, Error> {
    migrate_to(address, newest()).await
}

/// The last migration that this program knows.
pub fn newest() -> i64 {
    embedded::migrations::runner().get_migrations().iter().map(|m| i64::from(m.version())).max().unwrap_or(0)
}

/// As [`migrate`], but for those after `version`: for tests of what an older program leaves.
///
/// # Errors
/// As for [`migrate`].
pub async fn migrate_to(address: &Address, version: i64) -> Result<usize, Error> {
    let mut client = address.connect().await?;
    // A session lock, so it is held across the transactions below and goes with the connection.
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
    if let Some(schema) = address.schema() {
        client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await?;
    }
    let target = refinery::Target::Version(version.try_into().unwrap_or_default());
    let report = embedded::migrations::runner().set_target(target).run_async(&mut client).await?;
    first_row(&client).await?;
    Ok(report.applied_migrations().len())
}

/// Gives a new database its identity: the id in every Redis key, and the secret that marks our API keys.
async fn first_row(client: &Client) -> Result<(), Error> {
    let (mut id, mut secret) = ([0u8; 8], [0u8; 32]);
    getrandom::fill(&mut id).expect("the system has randomness");
    getrandom::fill(&mut secret).expect("the system has randomness");
    let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
    client
        .execute(
            "INSERT INTO engine_state (id, key_secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[&id, &secret.as_slice()],
        )
        .await?;
    Ok(())
}

/// What a process has to know of the deployment before it starts.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Part of every Redis key, so that two deployments on one Redis never meet.
    pub engine: String,
    /// Keys the check value at the end of each API key.
    pub key_secret: Vec<u8>,
    /// Which history of the database this is; see [`History`](super::History).
    pub history: i64,
}

/// How far a database is migrated.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    found: i64,
    wanted: i64,
}

impl Schema {
    /// Whether it lacks what this program needs. A newer one has all of that: migrations only add what programs before
    /// them can do without, and take away what nobody uses any more.
    pub fn is_old(self) -> bool {
        self.found < self.wanted
    }
}

impl Store {
    /// How far the database is migrated, and how far it should be.
    pub async fn schema(&self) -> Result<Schema, Error> {
        let client = self.client().await?;
        let sql = "SELECT max(version)::bigint FROM refinery_schema_history";
        let found: Option<i64> = client.query_one(sql, &[]).await?.get(0);
        Ok(Schema { found: found.unwrap_or(0), wanted: newest() })
    }

    /// # Errors
    /// [`Error::OldSchema`] when this program is newer than the database.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let schema = self.schema().await?;
        let Schema { found, wanted } = schema;
        if schema.is_old() { Err(Error::OldSchema { found, wanted }) } else { Ok(()) }
    }

    /// # Errors
    /// [`Error::NotMigrated`] when the tables are not there.
    pub async fn identity(&self) -> Result<Identity, Error> {
        let client = self.client().await?;
        let found = client.query_opt("SELECT id, key_secret, history FROM engine_state", &[]).await;
        match found {
            Ok(Some(row)) => Ok(Identity { engine: row.get(0), key_secret: row.get(1), history: row.get(2) }),
            Ok(None) => Err(Error::NotMigrated),
            Err(error)
                if [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::UNDEFINED_COLUMN)]
                    .contains(&error.code()) =>
            {
                Err(Error::NotMigrated)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the partitions one ahead of the ids handed out. Another process doing the same is left to it.
    pub async fn make_partitions(&self) -> Result<i32, Error> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        // Attaching waits for running inserts; ingest must not queue behind that wait.
        transaction.batch_execute("SET LOCAL lock_timeout = '200ms'").await?;
        let made = transaction
            .query_opt(
                "SELECT make_partitions((last_value + 1) * 1024) FROM event_id_blocks
                 WHERE pg_try_advisory_xact_lock($1)",
                &[&(LOCK + 1)],
            )
            .await?;
        transaction.commit().await?;
        Ok(made.map_or(0, |row| row.get(0)))
    }
}

/// Waits until Postgres answers, for a start beside a Postgres that is still starting.
///
/// # Errors
/// The last failure, once `patience` is over; a wrong password or database at once.
pub async fn wait_for(store: &Store, patience: Duration) -> Result<(), Error> {
    let until = tokio::time::Instant::now() + patience;
    let mut told = false;
    loop {
        match store.ping().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_final() || tokio::time::Instant::now() >= until => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = crate::chain(&error), "waiting for Postgres");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
