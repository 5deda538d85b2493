//! Whether what Redis holds is what we put there.
//!
//! A key of each shard, the epoch, says `ready` together with the run id of the server that was looked over. A Redis that was
//! wiped has no such key, and one that was started again, or a replica that took over, has another run id: either way
//! the shard is rebuilt from Postgres before anybody takes work from it again (`recover/rebuild.rs`).
//!
//! [`Gate`] is what one process knows of it. Scripts that give work out compare the key themselves, so that between a wipe
//! and the moment somebody notices nothing is given out twice.

use std::sync::Arc;

use redis::{Cmd, Script};
use tokio::sync::{Notify, watch};

use super::{Connection, Error, Keys};

const FINISH: &str = include_str!("scripts/finish.lua");

/// Scripts that give work out. They are called by their hash alone: a server that was started again, or a replica that took
/// over, does not know them, which is how their callers notice.
const GUARDED: [&str; 4] = [
    include_str!("scripts/lease.lua"),
    include_str!("scripts/claim.lua"),
    include_str!("scripts/feed.lua"),
    include_str!("scripts/take.lua"),
];

/// One of them.
pub(super) struct Guarded(Script);

impl Guarded {
    pub(super) fn new(text: &str) -> Guarded {
        Guarded(Script::new(text))
    }

    /// A call whose first argument is the epoch; the others follow.
    pub(super) fn command(&self, keys: &[&str], epoch: &Epoch) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.0.get_hash()).arg(keys.len()).arg(keys).arg(&epoch.value);
        command
    }
}

/// The id of a stream entry: milliseconds and number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(u64, u64);

impl EntryId {
    pub(super) fn parse(id: &str) -> Option<EntryId> {
        let (ms, number) = id.split_once('-')?;
        Some(EntryId(ms.parse().ok()?, number.parse().ok()?))
    }
}

/// A shard that is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The value of the key.
    pub(super) value: String,
    /// The server that was looked over.
    pub(super) run_id: String,
    /// The history of Postgres that it was made from.
    history: i64,
    /// Entries up to this one were there before: some of what Redis forgot may be settled.
    pub(super) check_upto: EntryId,
}

impl Epoch {
    /// Reads `ready:<token>:<run id>:<history>:<entry id>`; nothing else is in order.
    fn parse(value: &str) -> Option<Epoch> {
        let mut parts = value.split(':');
        let ("ready", _token) = (parts.next()?, parts.next()?) else { return None };
        let (run_id, history, upto) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let (value, run_id, check_upto) = (value.to_owned(), run_id.to_owned(), EntryId::parse(upto)?);
        Some(Epoch { value, run_id, history, check_upto })
    }
}

/// What one process knows: the epoch while the shard is in order.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: watch::Sender<Option<Arc<Epoch>>>,
    doubted: Notify,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { inner: Arc::new(Inner { epoch: watch::Sender::new(None), doubted: Notify::new() }) }
    }
}

impl Gate {
    /// The epoch, as soon as the shard is in order.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(&self) -> Arc<Epoch> {
        let mut epoch = self.inner.epoch.subscribe();
        loop {
            if let Some(epoch) = &*epoch.borrow_and_update() {
                return epoch.clone();
            }
            if epoch.changed().await.is_err() {
                // Not while we hold the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The epoch, if the shard is in order as far as is known.
    pub fn epoch(&self) -> Option<Arc<Epoch>> {
        self.inner.epoch.borrow().clone()
    }

    /// Returns when the shard is not in order, or another epoch is in force than `epoch`.
    pub async fn past(&self, epoch: &Arc<Epoch>) {
        let mut current = self.inner.epoch.subscribe();
        while current.borrow_and_update().as_ref() == Some(epoch) {
            if current.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Something does not fit: nothing is taken until it has been looked into.
    pub fn doubt(&self) {
        self.set(None);
        self.inner.doubted.notify_one();
    }

    /// Returns at the next doubt, or at once if there was one meanwhile.
    pub async fn doubted(&self) {
        self.inner.doubted.notified().await;
    }

    pub fn set(&self, epoch: Option<Arc<Epoch>>) {
        self.inner.epoch.send_if_modified(|now| {
            let changed = *now != epoch;
            *now = epoch;
            changed
        });
    }

    /// Looks at what a guarded script answered.
    pub(super) fn judge<T>(&self, outcome: Result<T, redis::RedisError>) -> Result<T, Error> {
        outcome.map_err(|error| {
            if matches!(error.code(), Some("NOSCRIPT" | "EPOCH")) {
                self.doubt();
                Error::Epoch
            } else {
                error.into()
            }
        })
    }
}

/// Reads and writes the epoch of one shard.
#[derive(Clone)]
pub struct Epochs {
    connection: Connection,
    keys: Keys,
    history: i64,
}

/// What a look at a shard found.
pub enum Found {
    InOrder(Arc<Epoch>),
    /// Wiped, restarted, or being rebuilt; with the run id of the server.
    OutOfOrder(String),
}

impl Epochs {
    /// `history` names the history of Postgres that we know.
    pub fn new(connection: Connection, keys: Keys, history: i64) -> Epochs {
        Epochs { connection, keys, history }
    }

    /// The highest block of ids that was told; none in an empty Redis.
    pub async fn highest(&mut self) -> Result<Option<i64>, Error> {
        Ok(redis::cmd("GET").arg(&self.keys.highest).query_async(&mut self.connection).await?)
    }

    /// Tells it, for a start after which nobody else remembers.
    pub async fn tell_highest(&mut self, block: i64) -> Result<(), Error> {
        Ok(redis::cmd("SET").arg(&self.keys.highest).arg(block).query_async(&mut self.connection).await?)
    }

    pub async fn look(&mut self) -> Result<Found, Error> {
        let mut pipe = redis::pipe();
        pipe.get(&self.keys.epoch).cmd("INFO").arg("server");
        let (value, info): (Option<String>, String) = pipe.query_async(&mut self.connection).await?;
        let run_id = run_id(&info)?;
        let epoch = value.as_deref().and_then(Epoch::parse);
        Ok(match epoch.filter(|epoch| epoch.run_id == run_id && epoch.history == self.history) {
            Some(epoch) => Found::InOrder(Arc::new(epoch)),
            None => Found::OutOfOrder(run_id),
        })
    }

    /// Whether this is still the epoch, on the same server.
    pub async fn holds(&mut self, epoch: &Epoch) -> Result<bool, Error> {
        Ok(matches!(self.look().await?, Found::InOrder(now) if now.value == epoch.value))
    }

    /// Has the shard rebuilt.
    pub async fn forget(&mut self) -> Result<(), Error> {
        Ok(redis::cmd("DEL").arg(&self.keys.epoch).query_async(&mut self.connection).await?)
    }

    /// Says that the shard is being rebuilt. `token` is told from all others.
    pub async fn begin(&mut self, token: &str) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.set(&self.keys.epoch, format!("rebuilding:{token}")).ignore();
        Ok(pipe.query_async(&mut self.connection).await?)
    }

    /// Says that it is in order, unless somebody or something changed the key meanwhile; then false.
    pub async fn finish(&mut self, token: &str, run_id: &str) -> Result<bool, Error> {
        let done: i64 = Script::new(FINISH)
            .key(&self.keys.epoch)
            .key(&self.keys.events)
            .arg(format!("rebuilding:{token}"))
            .arg(format!("ready:{token}:{run_id}:{}:", self.history))
            .invoke_async(&mut self.connection)
            .await?;
        Ok(done == 1)
    }

    /// Makes the guarded scripts known. Only for a server that was looked at.
    pub async fn load_scripts(&mut self) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        for script in GUARDED {
            pipe.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
        }
        Ok(pipe.query_async(&mut self.connection).await?)
    }
}

/// The run id in the answer to INFO: made anew with each start of a server.
pub(super) fn run_id(info: &str) -> Result<String, Error> {
    let line = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    line.map(|id| id.trim().to_owned()).ok_or(Error::NoRunId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_finished_epoch_is_in_order() {
        let epoch = Epoch::parse("ready:7.1:abc:5:17-3").expect("an epoch");
        assert_eq!((epoch.run_id.as_str(), epoch.history, epoch.check_upto), ("abc", 5, EntryId(17, 3)));
        for value in
            ["", "rebuilding:7.1", "ready:7.1:abc:5", "ready:7.1:abc:5:x", "ready:7.1:abc:5:1-1:more"]
        {
            assert!(Epoch::parse(value).is_none(), "{value}");
        }
    }

    #[test]
    fn entry_ids_are_ordered_as_numbers() {
        let id = |id| EntryId::parse(id).expect("an id");
        assert!(id("9-9") < id("10-0") && id("10-2") < id("10-10"));
        assert!(EntryId::parse("10").is_none());
    }

    #[tokio::test]
    async fn a_gate_opens_closes_and_tells() {
        let gate = Gate::default();
        assert!(gate.epoch().is_none());
        let epoch = Arc::new(Epoch::parse("ready:1:a:0:0-0").expect("an epoch"));
        gate.set(Some(epoch.clone()));
        assert_eq!(gate.open().await, epoch);
        gate.doubt();
        gate.past(&epoch).await;
        gate.doubted().await;
        assert!(gate.epoch().is_none());
    }
}
