//! The Postgres and Redis of a test binary, in a temporary directory that later runs clear away.
//!
//! The directory stays when the binary ends, for a look at what a failed test left; the next test binary
//! removes those of processes that are gone.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use eventpulse_embedded::{Postgres, Redis, alive};

const DIR_PREFIX: &str = "eventpulse-test-";

/// The servers that all tests of one binary share. Tests that stop a server take a private one.
pub struct Stack {
    pub postgres: Mutex<Postgres>,
    pub redis: Mutex<Redis>,
}

impl Stack {
    /// Gives the URL of `database` on the shared Postgres.
    pub fn postgres_url(&self, database: &str) -> String {
        locked(&self.postgres).url(database)
    }

    /// Gives the URL of the shared Redis.
    pub fn redis_url(&self) -> String {
        locked(&self.redis).url()
    }
}

/// Gives the shared servers, starting them the first time, which takes a few seconds and blocks.
///
/// # Panics
/// When they cannot be started; the message says what to install, or shows the server's log.
pub fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| {
        let dir = root();
        // Side by side, as most of the time goes into the first initialisation of Postgres.
        let (postgres, redis) = thread::scope(|scope| {
            let redis = scope.spawn(|| Redis::start(dir));
            (Postgres::start(dir), redis.join().expect("no panic"))
        });
        Stack {
            postgres: Mutex::new(postgres.unwrap_or_else(|e| panic!("{e}"))),
            redis: Mutex::new(redis.unwrap_or_else(|e| panic!("{e}"))),
        }
    })
}

/// Creates a fresh, empty database on the shared Postgres and gives its URL.
///
/// # Panics
/// When the server cannot be started or reached.
pub async fn database(name_hint: &str) -> String {
    let name = unique(name_hint);
    let url = tokio::task::spawn_blocking(|| stack().postgres_url("eventpulse"))
        .await
        .expect("the shared servers start");
    let (client, connection) =
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("the shared Postgres answers");
    let talk = tokio::spawn(connection);
    // Safe to paste: `unique` leaves only letters, digits and underscores.
    client.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.expect("a new database");
    drop(client);
    let _ = talk.await;
    stack().postgres_url(&name)
}

/// Gives a prefix for Redis keys that no other test of this binary has.
pub fn prefix(name_hint: &str) -> String {
    unique(name_hint)
}

/// Gives the path of a new folder that later runs clear away.
///
/// # Panics
/// When it cannot be made.
pub fn folder(name_hint: &str) -> PathBuf {
    let path = root().join(unique(name_hint));
    fs::create_dir_all(&path).expect("a folder in the temporary one");
    path
}

/// Starts a Postgres for one test alone, to be stopped or killed.
///
/// # Panics
/// When it cannot be started.
pub async fn private_postgres() -> Postgres {
    private(Postgres::start).await
}

/// Starts a Redis for one test alone, to be stopped or killed.
///
/// # Panics
/// When it cannot be started.
pub async fn private_redis() -> Redis {
    private(Redis::start).await
}

async fn private<T, F>(start: F) -> T
where
    T: Send + 'static,
    F: FnOnce(&Path) -> Result<T, eventpulse_embedded::Error> + Send + 'static,
{
    let dir = move || start(&root().join(unique("private")));
    tokio::task::spawn_blocking(dir).await.expect("starting does not panic").unwrap_or_else(|e| panic!("{e}"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that failed while it held the lock has said so itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unique(hint: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    // Postgres cuts names at 63 bytes, and the number must survive that.
    let hint: String = hint
        .chars()
        .take(40)
        .map(|c| match c {
            'a'..='z' | '0'..='9' => c,
            'A'..='Z' => c.to_ascii_lowercase(),
            _ => '_',
        })
        .collect();
    format!("{hint}_{n}")
}

/// Gives this binary's directory, after clearing away those of dead processes.
fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let temp = env::temp_dir();
        clear(&temp);
        let dir = temp.join(format!("{DIR_PREFIX}{}", process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        // Postgres may run under another account, which has to pass through.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("its mode");
        dir
    })
}

fn clear(temp: &Path) {
    for entry in fs::read_dir(temp).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(DIR_PREFIX));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        // Our own id on an old directory is one that was used before.
        let dead = !alive(pid) || pid == process::id();
        if dead && !serving(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Says whether a server that is still on its way out works in `dir`, itself or one private directory down.
fn serving(dir: &Path) -> bool {
    let holds = |dir: &Path| {
        ["postgres/data/postmaster.pid", "redis/redis.pid"]
            .iter()
            .filter_map(|file| fs::read_to_string(dir.join(file)).ok())
            .filter_map(|text| text.lines().next()?.trim().parse().ok())
            .any(alive)
    };
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    holds(dir) || below.into_iter().any(|entry| holds(&entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn each_database_is_new_and_the_servers_are_shared() {
        let (a, b) = tokio::join!(database("Same-Name"), database("Same-Name"));
        assert_ne!(a, b);
        assert!(a.contains("/same_name_"), "{a}");
        for url in [a, b] {
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connect");
            tokio::spawn(connection);
            client
                .batch_execute("CREATE TABLE only_here (n int)")
                .await
                .expect("nothing of the other database is here");
        }
        assert!(stack().redis_url().starts_with("redis://127.0.0.1:"));
        assert_ne!(prefix("x"), prefix("x"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_private_server_is_nobody_elses() {
        let mut redis = private_redis().await;
        assert_ne!(redis.url(), stack().redis_url());
        redis.kill().expect("kill");
        redis.restart().expect("restart");
        redis.stop().expect("stop");
    }

    #[test]
    fn directories_of_dead_processes_are_cleared() {
        let temp = env::temp_dir().join(format!("eventpulse-clear-{}", process::id()));
        let mut ended = process::Command::new("true").spawn().expect("true");
        ended.wait().expect("ends");
        let dead = temp.join(format!("{DIR_PREFIX}{}", ended.id()));
        let live = temp.join(format!("{DIR_PREFIX}1"));
        let other = temp.join("other");
        for dir in [&dead, &live, &other] {
            fs::create_dir_all(dir.join("redis")).expect("create");
        }
        fs::write(dead.join("redis/redis.pid"), process::id().to_string()).expect("write");
        clear(&temp);
        assert!(dead.exists(), "its server still runs");
        fs::remove_file(dead.join("redis/redis.pid")).expect("remove");
        clear(&temp);
        assert!(!dead.exists() && live.exists() && other.exists());
        fs::remove_dir_all(temp).expect("remove");
    }
}
