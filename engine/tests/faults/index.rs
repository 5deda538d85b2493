//! What a run asks of Redis, past the proxy.

use redis::aio::MultiplexedConnection;

/// Work that stands in Redis.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) entries: u64,
    pub(crate) pending: u64,
    pub(crate) due: u64,
}

/// # Panics
/// When Redis is not there: it is not asked while it is down.
pub(crate) async fn connect(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis answers")
}

pub(crate) async fn command(url: &str, words: &[&str]) {
    let mut connection = connect(url).await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async::<()>(&mut connection).await.expect("Redis takes it");
}

/// Bytes that Redis uses.
pub(crate) async fn memory(url: &str) -> Option<u64> {
    let client = redis::Client::open(url).ok()?;
    let mut connection = client.get_multiplexed_async_connection().await.ok()?;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.ok()?;
    info.lines().find_map(|line| line.strip_prefix("used_memory:"))?.trim().parse().ok()
}

pub(crate) async fn standing(url: &str) -> Standing {
    let mut connection = connect(url).await;
    let mut found = Standing::default();
    for key in keys(&mut connection, "*:events").await {
        found.entries += number(&mut connection, &["XLEN", &key]).await;
        // None without the group, as after a wipe that nobody has noticed.
        let pending: Result<(u64, redis::Value, redis::Value, redis::Value), _> =
            redis::cmd("XPENDING").arg(&key).arg("dispatchers").query_async(&mut connection).await;
        found.pending += pending.map_or(0, |pending| pending.0);
    }
    for key in keys(&mut connection, "*:due").await {
        found.due += number(&mut connection, &["ZCARD", &key]).await;
    }
    found
}

async fn keys(connection: &mut MultiplexedConnection, pattern: &str) -> Vec<String> {
    redis::cmd("KEYS").arg(format!("eventpulse:{pattern}")).query_async(connection).await.expect("KEYS")
}

async fn number(connection: &mut MultiplexedConnection, words: &[&str]) -> u64 {
    redis::cmd(words[0]).arg(&words[1..]).query_async(connection).await.expect("a number")
}
