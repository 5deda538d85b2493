//! Reading the stream: new entries, entries of dead consumers, and entries of our own that a broken
//! connection swallowed.

use std::{collections::HashSet, time::Duration};

use redis::{Pipeline, Script, Value, aio::MultiplexedConnection};

use super::{
    Connection, Entry, Error, GROUP, Gate, Keys, Redis, entry,
    epoch::{EntryId, Epoch, Guarded, run_id},
};

/// How long one read blocks in Redis, and how long the reader waits for the answer before it takes the
/// connection for dead.
const BLOCK: Duration = Duration::from_secs(2);
const WATCHDOG: Duration = Duration::from_secs(5);

/// Pending entries looked at in one go.
const PENDING_MAX: usize = 1000;

/// Entries of one look through the stream.
const RANGE_MAX: usize = 1000;

/// The blocking reader of one shard.
pub struct Reader {
    redis: Redis,
    keys: Keys,
    consumer: String,
    gate: Gate,
    connection: Option<MultiplexedConnection>,
}

impl Reader {
    pub fn new(redis: Redis, keys: Keys, consumer: String, gate: Gate) -> Reader {
        Reader { redis, keys, consumer, gate, connection: None }
    }

    /// New entries, at most `max`; none when there were none for two seconds.
    ///
    /// # Errors
    /// After any error the next call opens a new connection. What a lost reply held is pending for us and
    /// comes back by [`Claims::unheld`].
    ///
    /// # Cancel safety
    /// Entries of a dropped call are pending for us and not held; they come back the same way.
    pub async fn read(&mut self, max: usize) -> Result<Vec<Entry>, Error> {
        let epoch = self.gate.epoch().ok_or(Error::Epoch)?;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            slot => {
                let fresh = self.redis.blocking().await?;
                slot.insert(looked_over(fresh, &epoch, &self.gate).await?)
            }
        };
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.consumer).arg("COUNT").arg(max);
        command.arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS").arg(&self.keys.events).arg(">");
        let reply = match tokio::time::timeout(WATCHDOG, command.query_async::<Value>(connection)).await {
            Ok(reply) => reply.map_err(Error::from),
            Err(_) => Err(Error::Silent),
        };
        let outcome = reply.and_then(|reply| entries_of_read(&reply));
        match &outcome {
            Err(error) if error.is_no_group() => self.make_group().await?,
            Err(_) => self.connection = None,
            Ok(_) => {}
        }
        // What was read before a restart that Redis forgot comes as new, and is not.
        outcome.map(|mut entries| {
            for entry in &mut entries {
                entry.check |= EntryId::parse(&entry.id).is_none_or(|id| id <= epoch.check_upto);
            }
            entries
        })
    }

    /// Makes the group at 0, not at `$`: entries added before it must not be skipped.
    pub async fn make_group(&mut self) -> Result<(), Error> {
        let mut connection = self.redis.blocking().await?;
        let made = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(&self.keys.events)
            .arg(GROUP)
            .arg(0)
            .arg("MKSTREAM")
            .query_async::<()>(&mut connection)
            .await;
        match made {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A connection to the server that the epoch is about. Another one may have what was settled and forgotten.
async fn looked_over(
    mut fresh: MultiplexedConnection,
    epoch: &Epoch,
    gate: &Gate,
) -> Result<MultiplexedConnection, Error> {
    let mut info = redis::cmd("INFO");
    info.arg("server");
    let answer = tokio::time::timeout(WATCHDOG, info.query_async::<String>(&mut fresh)).await;
    if run_id(&answer.map_err(|_| Error::Silent)??)? == epoch.run_id {
        return Ok(fresh);
    }
    gate.doubt();
    Err(Error::Epoch)
}

/// `[[stream, [entry, ...]]]`, or nil when the block ran out.
fn entries_of_read(reply: &Value) -> Result<Vec<Entry>, Error> {
    match reply {
        Value::Nil => Ok(Vec::new()),
        Value::Array(streams) => match streams.first() {
            Some(Value::Array(stream)) => match stream.get(1) {
                Some(entries) => entries_of(entries),
                None => Err(Error::Entry),
            },
            _ => Err(Error::Entry),
        },
        _ => Err(Error::Entry),
    }
}

fn entries_of(reply: &Value) -> Result<Vec<Entry>, Error> {
    match reply {
        Value::Nil => Ok(Vec::new()),
        Value::Array(entries) => Ok(entries.iter().filter_map(readable).collect()),
        _ => Err(Error::Entry),
    }
}

/// All that may be taken for an entry, after reading the reply as a reader does.
#[cfg(any(test, fuzzing))]
pub(super) fn parts(reply: &Value) -> Vec<&Value> {
    let _ = (entries_of_read(reply), entries_of(reply));
    let mut parts = vec![reply];
    if let Value::Array(values) = reply {
        parts.extend(values);
    }
    parts
}

/// An entry that a newer version wrote stays pending until a process that can read it claims it.
fn readable(value: &Value) -> Option<Entry> {
    match entry::decode(value) {
        Ok(entry) => Some(entry),
        Err(_) => {
            crate::logs::warn_seldom!("left a stream entry of another format alone");
            None
        }
    }
}

/// Entries taken from consumers that died.
#[derive(Debug, Default)]
pub struct Claimed {
    pub entries: Vec<Entry>,
    /// Those whose holders died more than once: one of their events may be why.
    pub suspects: Vec<Entry>,
}

/// What keeps the group honest: beats, claims, and our own forgotten entries.
#[derive(Clone)]
pub struct Claims {
    connection: Connection,
    keys: Keys,
    consumer: String,
}

impl Claims {
    pub fn new(connection: Connection, keys: Keys, consumer: String) -> Claims {
        Claims { connection, keys, consumer }
    }

    /// Tells the others that this consumer lives. Returns how many do.
    pub async fn beat(&mut self, dead_after: Duration) -> Result<usize, Error> {
        let alive = Script::new(include_str!("scripts/beat.lua"))
            .key(&self.keys.alive)
            .arg(&self.consumer)
            .arg(i64::try_from(dead_after.as_millis()).unwrap_or(i64::MAX))
            .invoke_async(&mut self.connection)
            .await?;
        Ok(alive)
    }

    /// Takes the beat back, so that others claim what is left at once.
    pub async fn leave(&mut self) -> Result<(), Error> {
        redis::cmd("ZREM")
            .arg(&self.keys.alive)
            .arg(&self.consumer)
            .query_async::<()>(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Claims up to `limit` entries from consumers without a beat for `dead_after`.
    pub async fn claim(&mut self, dead_after: Duration, limit: usize, gate: &Gate) -> Result<Claimed, Error> {
        let epoch = gate.epoch().ok_or(Error::Epoch)?;
        let keys = [&*self.keys.events, &*self.keys.alive, &*self.keys.epoch];
        let mut command = Guarded::new(include_str!("scripts/claim.lua")).command(&keys, &epoch);
        command.arg(GROUP).arg(&self.consumer).arg(dead_after.as_millis() as u64).arg(limit);
        let (entries, suspect): (Value, HashSet<String>) =
            gate.judge(command.query_async(&mut self.connection).await)?;
        let (suspects, entries) =
            entries_of(&entries)?.into_iter().partition(|entry| suspect.contains(&entry.id));
        Ok(Claimed { entries, suspects })
    }

    /// The event of a batch that was in hand, alone, when a process died of it or beside it.
    pub async fn suspect(&mut self, first: i64) -> Result<Option<i64>, Error> {
        let mut command = redis::cmd("HGET");
        command.arg(&self.keys.suspects).arg(first);
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Notes which event of a batch is in hand.
    pub async fn note_suspect(&mut self, first: i64, event: i64) -> Result<(), Error> {
        let mut command = redis::cmd("HSET");
        command.arg(&self.keys.suspects).arg(first).arg(event);
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Forgets it.
    pub async fn forget_suspect(&mut self, first: i64) -> Result<(), Error> {
        let mut command = redis::cmd("HDEL");
        command.arg(&self.keys.suspects).arg(first);
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Entries that are pending for us although we do not hold them: replies that were lost on the way.
    pub async fn unheld(&mut self, held: impl Fn(&str) -> bool, limit: usize) -> Result<Vec<Entry>, Error> {
        let pending: Vec<(String, String, u64, u64)> = redis::cmd("XPENDING")
            .arg(&self.keys.events)
            .arg(GROUP)
            .arg("-")
            .arg("+")
            .arg(PENDING_MAX)
            .arg(&self.consumer)
            .query_async(&mut self.connection)
            .await?;
        let ids: Vec<String> =
            pending.into_iter().map(|(id, ..)| id).filter(|id| !held(id)).take(limit).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let reply: Value = redis::cmd("XCLAIM")
            .arg(&self.keys.events)
            .arg(GROUP)
            .arg(&self.consumer)
            .arg(0)
            .arg(ids)
            // Nobody died of it, so that does not count.
            .arg("RETRYCOUNT")
            .arg(1)
            .query_async(&mut self.connection)
            .await?;
        entries_of(&reply)
    }

    /// How many entries there are.
    pub async fn stream_length(&mut self) -> Result<usize, Error> {
        Ok(redis::cmd("XLEN").arg(&self.keys.events).query_async(&mut self.connection).await?)
    }

    /// First ids of the batches in the stream, oldest first, up to `limit` entries; none when there are
    /// more, because then nothing follows from a batch's absence.
    pub async fn batches_in_stream(&mut self, limit: usize) -> Result<Option<HashSet<i64>>, Error> {
        let (mut found, mut from) = (HashSet::new(), "-".to_owned());
        loop {
            // In pages: a reply of all of them would hold Redis for as long as it takes to write, and memory here.
            let reply: Value = redis::cmd("XRANGE")
                .arg(&self.keys.events)
                .arg(&from)
                .arg("+")
                .arg("COUNT")
                .arg(RANGE_MAX)
                .query_async(&mut self.connection)
                .await?;
            let Value::Array(entries) = &reply else { return Err(Error::Entry) };
            let mut last = None;
            for entry in entries {
                // Whatever its format: what a newer process is to read is in the stream, too.
                let (id, first) = entry::outline(entry)?;
                found.insert(first);
                last = Some(id);
            }
            match last {
                Some(last) if entries.len() == RANGE_MAX && found.len() <= limit => from = format!("({last}"),
                _ => return Ok((found.len() <= limit).then_some(found)),
            }
        }
    }

    /// Who holds the entry of this batch: none when it is not in the stream any more, or not found among
    /// the oldest `limit`; an empty name when nobody has read it yet.
    pub async fn holder(&mut self, first: i64, limit: usize) -> Result<Option<String>, Error> {
        let reply: Value = redis::cmd("XRANGE")
            .arg(&self.keys.events)
            .arg("-")
            .arg("+")
            .arg("COUNT")
            .arg(limit)
            .query_async(&mut self.connection)
            .await?;
        let Some(entry) = entries_of(&reply)?.into_iter().find(|e| e.span.first.0 == first) else {
            return Ok(None);
        };
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&self.keys.events).arg(GROUP).arg(&entry.id).arg(&entry.id).arg(1);
        let pending: Result<Vec<(String, String, u64, u64)>, Error> =
            pending.query_async(&mut self.connection).await.map_err(Error::from);
        let pending = match pending {
            // The first dispatcher makes the group: nobody can have read anything yet.
            Err(error) if error.is_no_group() => Vec::new(),
            pending => pending?,
        };
        Ok(Some(pending.into_iter().next().map_or_else(String::new, |(_, consumer, ..)| consumer)))
    }
}

/// Adds to `pipe` that entries are done: acked and deleted together.
pub fn ack(pipe: &mut Pipeline, keys: &Keys, ids: &[String]) {
    if !ids.is_empty() {
        pipe.cmd("XACK").arg(&keys.events).arg(GROUP).arg(ids).ignore();
        pipe.cmd("XDEL").arg(&keys.events).arg(ids).ignore();
    }
}
