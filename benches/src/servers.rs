//! What the stage and pipeline benches run against: a Postgres and a Redis of their own, and a runtime as the
//! engine's roles have it.

use eventpulse::store::{Address, Store, migrate};
use eventpulse_testkit::database;
use tokio::runtime::{Builder, Runtime};

/// A runtime of one thread, as each role of the engine has.
///
/// # Panics
/// When the system refuses one.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A fresh, migrated database, on a Postgres that ends with this process and keeps `fsync` on.
///
/// # Panics
/// When Postgres cannot be started; the message says what is missing.
pub async fn migrated(hint: &str) -> String {
    let url = database(hint).await;
    migrate::migrate(&Address::parse(&url).expect("a URL")).await.expect("migrated");
    url
}

/// A small pool on such a database.
///
/// # Panics
/// As [`migrated`].
pub async fn store(hint: &str) -> Store {
    Store::new(&migrated(hint).await, 4).expect("a URL")
}
