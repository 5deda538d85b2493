//! All SQL. Postgres is the truth: what stands in `batches` and `scheduled` is owed, and nothing else is.
//!
//! [`Store`] is a pool for everything that is not on the hot path. The group commit, the two carriers and the
//! recorder each have a connection of their own ([`Link`]), one statement or transaction in flight at a time.

pub mod accounts;
pub mod api_keys;
pub mod backlog;
pub mod batches;
pub mod beats;
mod connect;
mod copy;
mod delivered;
pub mod depths;
pub mod dlq;
mod durability;
pub mod events;
pub mod explain;
pub mod failing;
pub mod history;
pub mod link;
pub mod manage;
pub mod migrate;
pub mod modules;
pub mod parcels;
mod pools;
pub mod progress;
pub mod replay;
pub mod resend;
mod retention;
pub mod scheduled;
mod seal;
pub mod secrets;
pub mod settle;
mod shelf;
pub mod summary;
pub mod tls;
pub mod transforms;
mod types;
pub mod versions;
pub mod webhooks;
pub mod worst;

use std::{collections::BTreeSet, time::Duration};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::error::SqlState;

pub use self::{
    connect::Address,
    history::History,
    link::Link,
    pools::{InUse, Pools},
    seal::Seal,
    types::Text,
};

/// A failure of Postgres, or of reaching it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("DATABASE_URL is not usable")]
    Url(#[source] tokio_postgres::Error),
    #[error("sslrootcert {file} cannot be read")]
    Roots {
        file: String,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("sslrootcert holds a certificate that cannot be trusted")]
    Tls(#[source] rustls::Error),
    #[error("Postgres could not be reached")]
    Connect(#[source] tokio_postgres::Error),
    #[error("no connection to Postgres became free")]
    Pool(#[from] deadpool_postgres::PoolError),
    #[error("a statement failed")]
    Statement(#[from] tokio_postgres::Error),
    #[error("a statement took too long")]
    Slow,
    #[error("Postgres went back in time: commits that this process knows of are lost")]
    Rewound,
    #[error("migration failed")]
    Migration(#[from] refinery::Error),
    #[error("the database is not migrated: run `eventpulse migrate` or `serve --migrate`")]
    NotMigrated,
    #[error(
        "webhooks have secrets under keys that EVENTPULSE_SECRETS_KEY does not hold, or holds another key for: {}; add them behind the first",
        .0.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    MissingKeys(BTreeSet<String>),
    #[error(
        "the database is at migration {found} and this program needs {wanted}: run `eventpulse migrate` or `serve --migrate`"
    )]
    OldSchema { found: i64, wanted: i64 },
}

/// What to do about a failed statement, by SQLSTATE class (PostgreSQL manual, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row is at fault (classes 22, 23 and 54): the batch is split down to it.
    Row,
    /// The server or the way to it is at fault, and nothing was committed: try the whole again.
    Again,
    /// The connection broke: whether it was committed has to be looked up.
    Unknown,
}

impl Error {
    /// Whether a row is there already that may be there once only.
    fn is_conflict(&self) -> bool {
        matches!(self, Error::Statement(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
    }

    /// Whether trying again cannot help: the password or the database is wrong (SQLSTATE classes 28 and 3D).
    fn is_final(&self) -> bool {
        let error = match self {
            Error::Pool(deadpool_postgres::PoolError::Backend(error))
            | Error::Connect(error)
            | Error::Statement(error) => error,
            _ => return false,
        };
        error.code().is_some_and(|code| ["28", "3D"].contains(&&code.code()[..2]))
    }

    pub fn fault(&self) -> Fault {
        let Error::Statement(error) = self else {
            return match self {
                Error::Slow => Fault::Unknown,
                _ => Fault::Again,
            };
        };
        match error.code().map(SqlState::code) {
            None => Fault::Unknown,
            Some(code) if ["22", "23", "54"].contains(&&code[..2]) => Fault::Row,
            // A crash or an administrator's shutdown may come between the commit and its report.
            Some(code) if ["08", "57"].contains(&&code[..2]) => Fault::Unknown,
            Some(_) => Fault::Again,
        }
    }
}

/// A small pool for API queries, look-ups and the background loops of one runtime.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    address: Address,
    seal: Seal,
}

impl Store {
    /// Does not connect yet: connections are made as they are asked for.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str, connections_max: usize) -> Result<Store, Error> {
        Ok(Store::at(Address::parse(url)?, connections_max))
    }

    /// The same for an address that others use too, and whose history is theirs.
    pub fn at(address: Address, connections_max: usize) -> Store {
        let manager = Manager::from_config(
            address.config().clone(),
            address.tls(),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let wait = Some(Duration::from_secs(5));
        let history = address.history().clone();
        let look = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let history = history.clone();
            Box::pin(async move {
                history.check(client).await.map_err(|error| HookError::message(error.to_string()))
            })
        });
        let pool = Pool::builder(manager)
            .max_size(connections_max)
            .post_create(look)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait, create: wait, recycle: wait })
            .build()
            .expect("a pool with a runtime and time-outs builds");
        address.pools().add(&pool);
        Store { pool, address, seal: Seal::default() }
    }

    /// The same with keys for secrets. Without, those that are encrypted cannot be read.
    pub fn with_seal(self, seal: Seal) -> Store {
        Store { seal, ..self }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    async fn client(&self) -> Result<Object, Error> {
        Ok(self.pool.get().await?)
    }

    /// Asks Postgres for a sign of life.
    pub async fn ping(&self) -> Result<(), Error> {
        self.client().await?.simple_query("").await?;
        Ok(())
    }
}
