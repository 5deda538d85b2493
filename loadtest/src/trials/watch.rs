//! What others feel of a trial: figures taken every tenth of a second while it runs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use redis::aio::MultiplexedConnection;

use crate::{cpu::resident_kib, stack::Error};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);

/// Beyond it a PING counts as that long, in microseconds.
const PING_MAX: u64 = 60_000_000;

/// What Redis may use in every state, in bytes.
pub const REDIS_MAX: u64 = 256 << 20;

/// The most that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Microseconds from PING to PONG on a connection of its own.
    pub pings: Histogram<u64>,
    /// Members of `due`.
    pub due: u64,
    /// Bytes that Redis has for each of them, when there were most.
    pub member_bytes: f64,
    /// Resident memory of the engine.
    pub resident_kib: u64,
    /// `used_memory` of Redis, in bytes.
    pub redis_bytes: u64,
}

/// Looks until it is asked what it saw.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Watch {
    /// `due` is the set's name in Redis, `pid` the engine.
    pub fn start(redis: MultiplexedConnection, due: String, pid: u32) -> Watch {
        let pings = Histogram::new_with_bounds(1, PING_MAX, 3).expect("sensible bounds");
        let seen =
            Arc::new(Mutex::new(Seen { pings, due: 0, member_bytes: 0.0, resident_kib: 0, redis_bytes: 0 }));
        let task = tokio::spawn(look(redis, due, pid, seen.clone()));
        Watch { seen, task }
    }

    /// # Errors
    /// When Redis did not answer meanwhile.
    pub async fn end(self) -> Result<Seen, Error> {
        self.task.abort();
        if let Ok(Err(error)) = self.task.await {
            return Err(error);
        }
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn look(
    mut redis: MultiplexedConnection,
    due: String,
    pid: u32,
    seen: Arc<Mutex<Seen>>,
) -> Result<(), Error> {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let start = Instant::now();
        redis::cmd("PING").query_async::<()>(&mut redis).await?;
        let ping = u64::try_from(start.elapsed().as_micros()).unwrap_or(PING_MAX);
        let members: u64 = redis::cmd("ZCARD").arg(&due).query_async(&mut redis).await?;
        let most = seen.lock().unwrap_or_else(PoisonError::into_inner).due;
        let mut bytes: Option<u64> = None;
        if members > most {
            // Redis looks at five members for it.
            bytes = redis::cmd("MEMORY").arg("USAGE").arg(&due).query_async(&mut redis).await?;
        }
        let used = redis_bytes(&mut redis).await?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.redis_bytes = seen.redis_bytes.max(used);
        seen.pings.saturating_record(ping);
        seen.resident_kib = seen.resident_kib.max(resident_kib(pid));
        if let Some(bytes) = bytes {
            seen.member_bytes = bytes as f64 / members as f64;
        }
        seen.due = seen.due.max(members);
    }
}

/// What Redis says it uses, in bytes.
///
/// # Errors
/// When it does not say.
pub async fn redis_bytes(redis: &mut MultiplexedConnection) -> Result<u64, Error> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(redis).await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(used.ok_or("Redis does not say what it uses")?.trim().parse()?)
}
