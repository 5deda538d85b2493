//! How much is in Redis, for the metrics.

use std::collections::HashMap;

use redis::Value;

use super::{Connection, Error, GROUP, Keys, number_of};

/// Asks Redis.
pub struct Depths {
    connection: Connection,
    keys: Keys,
}

/// What it said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Entries in the stream.
    pub length: u64,
    /// Entries that somebody read and nobody acked.
    pub pending: u64,
    /// Entries that nobody read: the others, as what is acked is deleted with it. Redis's own count is void once entries were deleted.
    pub lag: u64,
    /// Bytes that Redis uses and may use; 0 for no bound.
    pub memory_used: u64,
    pub memory_max: u64,
}

impl Depths {
    pub fn new(connection: Connection, keys: Keys) -> Depths {
        Depths { connection, keys }
    }

    /// # Errors
    /// When Redis does not answer.
    pub async fn ask(&mut self) -> Result<Found, Error> {
        let length: u64 = redis::cmd("XLEN").arg(&self.keys.events).query_async(&mut self.connection).await?;
        let pending = self.pending().await?;
        let memory: String = redis::cmd("INFO").arg("memory").query_async(&mut self.connection).await?;
        let bytes = |name| number_of(&memory, name).unwrap_or(0);
        Ok(Found {
            length,
            pending,
            // They were asked for one after the other.
            lag: length.saturating_sub(pending),
            memory_used: bytes("used_memory:"),
            memory_max: bytes("maxmemory:"),
        })
    }

    /// Pending entries of our group.
    async fn pending(&mut self) -> Result<u64, Error> {
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(&self.keys.events);
        let groups: Vec<HashMap<String, Value>> = match command.query_async(&mut self.connection).await {
            Ok(groups) => groups,
            // There is no stream yet, or not any more.
            Err(error) if error.code() == Some("ERR") => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let ours = groups.iter().find(|group| name_of(group).as_deref() == Some(GROUP));
        Ok(ours.and_then(|group| count(group.get("pending")?)).unwrap_or(0))
    }
}

fn name_of(group: &HashMap<String, Value>) -> Option<String> {
    redis::from_redis_value(group.get("name")?.clone()).ok()
}

fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}
