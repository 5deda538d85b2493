//! The near window of the schedule: what falls due within the horizon, leased to one dispatcher at a time.

use redis::{Pipeline, Script};

use super::{Connection, Error, Gate, Keys, epoch::Guarded};
use crate::{
    model::Key,
    model::{EventId, WebhookId},
};

const SCHEDULE: &str = include_str!("scripts/schedule.lua");
const LEASE: &str = include_str!("scripts/lease.lua");
const FEED: &str = include_str!("scripts/feed.lua");
const TAKE: &str = include_str!("scripts/take.lua");

/// Members one script call takes: 128 block Redis for about 0.3 ms, thousands for tens of ms.
pub const LEASE_MAX: usize = 128;

/// Members one EVAL adds. Each is two arguments, and Lua's `unpack` is not involved, so this bounds only
/// the time Redis is busy.
const ADD_MAX: usize = 500;

/// What moving a member says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It is new, and if it is there all the same, somebody fed and perhaps leased it meanwhile, and it stays.
    New,
    /// It was leased by us, and its attempt is over.
    Ended,
    /// It is leased by us, and stays so.
    Kept,
}

impl Moved {
    fn flag(self) -> &'static str {
        match self {
            Moved::New => "NX",
            Moved::Ended => "CH",
            Moved::Kept => "KEEP",
        }
    }
}

/// What a lease brought.
#[derive(Debug, Default)]
pub struct Leased {
    pub keys: Vec<Key>,
    /// One that was leased twice and had no outcome: its holders may have died of it.
    pub suspect: Option<Key>,
}

/// The `due` set of one shard.
#[derive(Clone)]
pub struct Due {
    connection: Connection,
    keys: Keys,
    max: usize,
}

fn member((event, webhook): Key) -> String {
    format!("{event}:{webhook}")
}

fn parse(member: &str) -> Option<Key> {
    let (event, webhook) = member.split_once(':')?;
    Some((EventId(event.parse().ok()?), WebhookId(webhook.parse().ok()?)))
}

impl Due {
    pub fn new(connection: Connection, keys: Keys, max: usize) -> Due {
        Due { connection, keys, max }
    }

    /// Adds members that are not there; those that are may be leased and stay as they are. Returns how many
    /// were added.
    pub async fn feed(&mut self, members: &[(Key, i64)]) -> Result<u64, Error> {
        let mut added = 0;
        let schedule = Script::new(SCHEDULE);
        for chunk in members.chunks(ADD_MAX) {
            let mut script = schedule.prepare_invoke();
            script.key(&self.keys.due).key(&self.keys.leased).arg(self.max).arg(Moved::New.flag());
            for (key, delay_ms) in chunk {
                script.arg(member(*key)).arg(*delay_ms);
            }
            added += script.invoke_async::<u64>(&mut self.connection).await?;
        }
        Ok(added)
    }

    /// Adds members with a lease of ours on them, and returns those that were not there: one that was is in somebody's hands, or about
    /// to be. With `beyond` also where `due` is full: that is for probes, of which a webhook has one.
    pub async fn take(
        &mut self,
        keys: &[Key],
        lease_ms: i64,
        beyond: bool,
        gate: &Gate,
    ) -> Result<Vec<Key>, Error> {
        let epoch = gate.epoch().ok_or(Error::Epoch)?;
        let names = [&*self.keys.due, &*self.keys.epoch, &*self.keys.leased];
        let script = Guarded::new(TAKE);
        let mut taken = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(ADD_MAX) {
            let mut command = script.command(&names, &epoch);
            command
                .arg(if beyond { i64::MAX } else { i64::try_from(self.max).unwrap_or(i64::MAX) })
                .arg(lease_ms);
            for key in chunk {
                command.arg(member(*key));
            }
            let members: Vec<String> = gate.judge(command.query_async(&mut self.connection).await)?;
            taken.extend(members.iter().filter_map(|m| parse(m)));
        }
        Ok(taken)
    }

    /// As [`feed`](Due::feed), for what the schedule says is owed, some of which may be in somebody's hands: nothing is added
    /// to a `due` that was lost and not made again.
    pub async fn refill(&mut self, members: &[(Key, i64)], gate: &Gate) -> Result<u64, Error> {
        let epoch = gate.epoch().ok_or(Error::Epoch)?;
        let feed = Guarded::new(FEED);
        let mut added = 0;
        for chunk in members.chunks(ADD_MAX) {
            let mut command = feed.command(&[&self.keys.due, &self.keys.epoch], &epoch);
            command.arg(self.max);
            for (key, delay_ms) in chunk {
                command.arg(member(*key)).arg(*delay_ms);
            }
            added += gate.judge(command.query_async::<u64>(&mut self.connection).await)?;
        }
        Ok(added)
    }

    /// Says again what is leased, with the time that each lease has left: to a `due` that forgot it, or to have it longer.
    pub async fn keep(&mut self, leased: &[(Key, i64)]) -> Result<(), Error> {
        self.put(leased, Moved::Kept).await
    }

    /// Takes up to `limit` members whose time has come, for `lease_ms`; one suspect beside them if `careful`.
    pub async fn lease(
        &mut self,
        limit: usize,
        lease_ms: i64,
        careful: bool,
        gate: &Gate,
    ) -> Result<Leased, Error> {
        let epoch = gate.epoch().ok_or(Error::Epoch)?;
        let keys = [&*self.keys.due, &*self.keys.epoch, &*self.keys.leased];
        let mut command = Guarded::new(LEASE).command(&keys, &epoch);
        command.arg(limit.min(LEASE_MAX)).arg(lease_ms).arg(i32::from(careful));
        let (members, suspects): (Vec<String>, Vec<String>) =
            gate.judge(command.query_async(&mut self.connection).await)?;
        let keys = members.iter().filter_map(|m| parse(m)).collect();
        Ok(Leased { keys, suspect: suspects.first().and_then(|m| parse(m)) })
    }

    /// Gives leased members back at once.
    pub async fn release(&mut self, keys: &[Key]) -> Result<(), Error> {
        let now: Vec<(Key, i64)> = keys.iter().map(|key| (*key, 0)).collect();
        self.postpone(&now).await
    }

    /// Gives leased members back for later.
    pub async fn postpone(&mut self, members: &[(Key, i64)]) -> Result<(), Error> {
        self.put(members, Moved::Ended).await
    }

    async fn put(&mut self, members: &[(Key, i64)], moved: Moved) -> Result<(), Error> {
        if members.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        schedule(&mut pipe, &self.keys, self.max, members, moved);
        Ok(pipe.query_async::<()>(&mut self.connection).await?)
    }

    /// Whether a retry was in hand alone when a process died of it or beside it.
    pub async fn is_noted(&mut self, key: Key) -> Result<bool, Error> {
        let mut command = redis::cmd("HEXISTS");
        command.arg(&self.keys.suspects).arg(member(key));
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Notes that it is in hand alone.
    pub async fn note(&mut self, key: Key) -> Result<(), Error> {
        let mut command = redis::cmd("HSET");
        command.arg(&self.keys.suspects).arg(member(key)).arg(1);
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Notes that it is not any more.
    pub async fn forget_note(&mut self, key: Key) -> Result<(), Error> {
        let mut command = redis::cmd("HDEL");
        command.arg(&self.keys.suspects).arg(member(key));
        Ok(command.query_async(&mut self.connection).await?)
    }

    /// Forgets members nothing is owed for.
    pub async fn remove(&mut self, keys: &[Key]) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        forget(&mut pipe, &self.keys, keys);
        Ok(pipe.query_async::<()>(&mut self.connection).await?)
    }

    /// Whether so many members are as many as there may be.
    pub fn is_full(&self, depth: u64) -> bool {
        depth >= self.max as u64
    }

    /// How many members there are.
    pub async fn depth(&mut self) -> Result<u64, Error> {
        Ok(redis::cmd("ZCARD").arg(&self.keys.due).query_async(&mut self.connection).await?)
    }
}

/// Adds to `pipe` that members' times are now these.
pub fn schedule(pipe: &mut Pipeline, keys: &Keys, max: usize, later: &[(Key, i64)], moved: Moved) {
    for chunk in later.chunks(ADD_MAX) {
        // EVAL with the text: inside MULTI there is no second chance after NOSCRIPT.
        let command =
            pipe.cmd("EVAL").arg(SCHEDULE).arg(2).arg(&keys.due).arg(&keys.leased).arg(max).arg(moved.flag());
        for (key, delay_ms) in chunk {
            command.arg(member(*key)).arg(*delay_ms);
        }
        command.ignore();
    }
}

/// Adds to `pipe` that members are gone.
pub fn forget(pipe: &mut Pipeline, keys: &Keys, gone: &[Key]) {
    if !gone.is_empty() {
        let members: Vec<String> = gone.iter().copied().map(member).collect();
        pipe.cmd("ZREM").arg(&keys.due).arg(&members).ignore();
        pipe.cmd("HDEL").arg(&keys.leased).arg(&members).ignore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_name_event_and_webhook() {
        let key = (EventId(123), WebhookId(45));
        assert_eq!(member(key), "123:45");
        assert_eq!(parse("123:45"), Some(key));
        assert_eq!(parse("123"), None);
        assert_eq!(parse("a:b"), None);
    }
}
