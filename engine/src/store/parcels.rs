//! Requests that are committed whole: several events, or events under an idempotency key, many requests in one
//! transaction.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::{Error, Fault, Link, Store, copy, events::BLOCK, types::Utf8};
use crate::model::{AccountId, Timestamp, Trace};

/// Read by the transaction itself, like those of the group commit: no node's clock and no cache decides which
/// webhooks an event is owed to.
const STATE: &str = "
SELECT config_version, date_trunc('milliseconds', clock_timestamp()), CASE WHEN $1 THEN nextval('event_id_blocks') END
FROM engine_state";

/// Returns the keys that this transaction has now. One that another transaction is about to have is waited for. A
/// row older than 24 hours counts as absent.
const CLAIM: &str = "
INSERT INTO idempotency_keys AS old (account_id, key_hash, body_hash, firsts, n, event_created_at)
SELECT k.account, k.key, k.body, ($4::bigint[])[k.start:k.stop], k.n, $8::timestamptz
FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $5::int[], $6::int[], $7::int[]) AS k (account, key, body, start, stop, n)
ON CONFLICT (account_id, key_hash) DO UPDATE SET body_hash = excluded.body_hash, firsts = excluded.firsts,
    n = excluded.n, event_created_at = excluded.event_created_at, created_at = clock_timestamp()
WHERE old.created_at < clock_timestamp() - interval '24 hours'
RETURNING account_id, key_hash";

const BATCHES: &str = "
INSERT INTO batches (first_id, last_id, n, owner, config_version, created_at)
SELECT b.first, b.first + b.n - 1, b.n, $3::bigint, $4::bigint, $5::timestamptz
FROM unnest($1::bigint[], $2::int[]) AS b (first, n)";

macro_rules! rows {
    ($column:literal, $value:literal, $array:literal, $name:literal) => {
        concat!(
            "
WITH inserted AS (
    INSERT INTO events (id, account_id, type, payload, created_at",
            $column,
            ")
    SELECT e.id, e.account, e.type, e.payload, $5::timestamptz",
            $value,
            "
    FROM unnest($6::bigint[], $7::bigint[], $8::text[], $9::text[]",
            $array,
            ") AS e (id, account, type, payload",
            $name,
            ")
)
INSERT INTO batches (first_id, last_id, n, owner, config_version, created_at)
SELECT b.first, b.first + b.n - 1, b.n, $3::bigint, $4::bigint, $5::timestamptz
FROM unnest($1::bigint[], $2::int[]) AS b (first, n)"
        )
    };
}

/// As [`BATCHES`], with the events; and where some event has a trace.
const ROWS: &str = rows!("", "", "", "");
const ROWS_TRACED: &str = rows!(", trace", ", e.trace", ", $10::bytea[]", ", trace");

const COPY: &str = "COPY events (id, account_id, type, payload, created_at) FROM STDIN BINARY";
const COPY_TRACED: &str = "COPY events (id, account_id, type, payload, created_at, trace) FROM STDIN BINARY";

const FIRST_ANSWERS: &str = "
SELECT k.account_id, k.key_hash, k.body_hash, k.firsts, k.n, k.event_created_at
FROM unnest($1::bigint[], $2::bytea[]) AS a (account, key)
JOIN idempotency_keys AS k ON k.account_id = a.account AND k.key_hash = a.key";

/// An idempotency key as it is stored, with what tells its request from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub hash: [u8; 16],
    pub body: [u8; 32],
}

/// One request as the transaction sees it.
pub trait Cargo: Sync {
    fn account(&self) -> AccountId;
    fn key(&self) -> Option<&Key>;
    /// How many events it has: at least one.
    fn count(&self) -> usize;
    /// The first id of each run.
    fn firsts(&self) -> &[i64];
    fn kind(&self, event: usize) -> &str;
    fn payload(&self, event: usize) -> &[u8];
    /// None for all when it is none for the first.
    fn trace(&self, event: usize) -> Option<Trace>;
}

/// The id of an event by its place in the request: all runs of consecutive ids but the last have as many as a block
/// holds, so that their first ids say everything.
pub fn id(firsts: &[i64], event: usize) -> i64 {
    firsts[event / BLOCK as usize] + (event % BLOCK as usize) as i64
}

/// Payload bytes of one batch; it always has one event. A dispatcher reads a few batches at a time, each whole.
const BATCH_BYTES: usize = 4 << 20;

/// The batches of a request, by first id and number of events: each lies in one run of ids.
pub fn batches<C: Cargo>(cargo: &C) -> Vec<(i64, i32)> {
    let (mut batches, mut bytes): (Vec<(i64, i32)>, _) = (Vec::new(), 0);
    for event in 0..cargo.count() {
        let size = cargo.payload(event).len();
        bytes += size;
        match batches.last_mut() {
            Some((_, n)) if event % BLOCK as usize != 0 && bytes <= BATCH_BYTES => *n += 1,
            _ => {
                batches.push((id(cargo.firsts(), event), 1));
                bytes = size;
            }
        }
    }
    batches
}

/// How the events of a transaction go into their table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the arrays of one statement: fewer round trips, for few events.
    Statement,
    /// By COPY, piece by piece, so that a large request is never held twice.
    Copy,
}

/// What became of a transaction.
#[derive(Clone, Debug)]
pub struct Carried {
    pub version: i64,
    pub at: Timestamp,
    /// A block of ids for the next transaction, when one was asked for.
    pub block: Option<i64>,
    /// For each request whether it is committed by this transaction. It is not when its key is another's already.
    pub won: Vec<bool>,
}

/// A transaction that failed.
#[derive(Debug)]
pub struct Lost {
    pub error: Error,
    /// Whether it is committed is not known: what it would have come to.
    pub doubt: Option<Carried>,
}

impl Lost {
    pub fn fault(&self) -> Fault {
        match self.error.fault() {
            // Without a COMMIT on its way nothing is committed, however the connection ended.
            Fault::Unknown if self.doubt.is_none() => Fault::Again,
            fault => fault,
        }
    }
}

/// What an idempotency key was answered first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAnswer {
    pub body: [u8; 32],
    pub firsts: Vec<i64>,
    pub n: usize,
    pub at: Timestamp,
}

impl Link {
    /// Makes ready for the first transaction of parcels.
    pub async fn warm_carry(&mut self, way: Way) -> Result<(), Error> {
        self.session([STATE, CLAIM, way.last(false), COPY]).await?;
        self.warm(FIRST_ANSWERS).await
    }

    /// Commits requests of `owner` in one transaction, each whole. No key may be there twice.
    ///
    /// # Cancel safety
    /// Not safe: a dropped call leaves the outcome unknown.
    pub async fn carry<C: Cargo>(
        &mut self,
        cargo: &[C],
        owner: i64,
        way: Way,
        want_block: bool,
    ) -> Result<Carried, Lost> {
        let mut doubt = None;
        let patience = self.patience();
        let attempt = self.attempt_carry(cargo, owner, way, want_block, &mut doubt);
        let outcome = tokio::time::timeout(patience, attempt).await.unwrap_or(Err(Error::Slow));
        if outcome.is_err() {
            self.judge(&outcome);
            // A transaction that failed and is not ended would fail all that follows.
            self.roll_back().await;
        }
        outcome.map_err(|error| Lost { error, doubt })
    }

    async fn attempt_carry<C: Cargo>(
        &mut self,
        cargo: &[C],
        owner: i64,
        way: Way,
        want_block: bool,
        doubt: &mut Option<Carried>,
    ) -> Result<Carried, Error> {
        let traced = cargo.iter().any(|c| c.trace(0).is_some());
        let copy = if traced { COPY_TRACED } else { COPY };
        let (client, [state, claim, last, copy]) =
            self.session([STATE, CLAIM, way.last(traced), copy]).await?;
        let params: &[&(dyn ToSql + Sync)] = &[&want_block];
        let (begun, state) =
            tokio::join!(biased; client.batch_execute("BEGIN"), client.query(&state, params));
        begun?;
        let state = state?;
        let state = state.first().ok_or(Error::NotMigrated)?;
        let mut carried = Carried {
            version: state.get(0),
            at: state.get(1),
            block: state.get(2),
            won: vec![true; cargo.len()],
        };
        if cargo.iter().any(|c| c.key().is_some()) {
            claim_keys(client, &claim, cargo, &mut carried).await?;
        }
        let chosen: Vec<&C> =
            cargo.iter().zip(&carried.won).filter(|(_, won)| **won).map(|(c, _)| c).collect();
        if chosen.is_empty() {
            client.batch_execute("COMMIT").await?;
            return Ok(carried);
        }
        if way == Way::Copy {
            copy_events(client, &copy, &chosen, carried.at, traced).await?;
        }
        let (firsts, counts): (Vec<i64>, Vec<i32>) = chosen.iter().flat_map(|c| batches(*c)).unzip();
        let columns = Columns::of(if way == Way::Statement { &chosen } else { &[] });
        let mut params: Vec<&(dyn ToSql + Sync)> =
            vec![&firsts, &counts, &owner, &carried.version, &carried.at];
        if way == Way::Statement {
            params.extend(&columns.params()[..if traced { 5 } else { 4 }]);
        }
        *doubt = Some(carried.clone());
        let (inserted, committed) = tokio::join!(
            biased;
            client.query(&last, &params),
            client.batch_execute("COMMIT"),
        );
        if let Err(error) = inserted {
            let error = Error::from(error);
            if error.fault() != Fault::Unknown {
                // What follows a failed statement is a rollback, whatever it asks for.
                *doubt = None;
            }
            return Err(error);
        }
        committed?;
        self.history().read(carried.version);
        Ok(carried)
    }

    /// The version and time of a batch whose commit had no answer, if it is there, and whether it is still ours.
    pub async fn look_up_run(
        &mut self,
        first: i64,
        owner: i64,
    ) -> Result<Option<(i64, Timestamp, bool)>, Error> {
        let sql = "SELECT config_version, created_at, owner = $2 FROM batches WHERE first_id = $1";
        let rows = self.query(sql, &[&first, &owner]).await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1), row.get(2))))
    }

    /// What these keys were answered first, by account and hash.
    pub async fn first_answers(
        &mut self,
        keys: &[(AccountId, Key)],
    ) -> Result<HashMap<(AccountId, [u8; 16]), FirstAnswer>, Error> {
        let accounts: Vec<AccountId> = keys.iter().map(|(account, _)| *account).collect();
        let hashes: Vec<&[u8]> = keys.iter().map(|(_, key)| &key.hash[..]).collect();
        let rows = self.query(FIRST_ANSWERS, &[&accounts, &hashes]).await?;
        let answer = |row: &Row| FirstAnswer {
            body: row.get::<_, &[u8]>(2).try_into().unwrap_or_default(),
            firsts: row.get(3),
            n: usize::try_from(row.get::<_, i32>(4)).unwrap_or_default(),
            at: row.get(5),
        };
        let hash = |row: &Row| row.get::<_, &[u8]>(1).try_into().unwrap_or_default();
        Ok(rows.iter().map(|row| ((row.get(0), hash(row)), answer(row))).collect())
    }

    /// Blocks of ids, in ascending order.
    pub async fn blocks(&mut self, n: usize) -> Result<Vec<i64>, Error> {
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        let sql = "SELECT nextval('event_id_blocks') FROM generate_series(1, $1)";
        let blocks: Vec<i64> = self.query(sql, &[&n]).await?.iter().map(|row| row.get(0)).collect();
        blocks.iter().for_each(|block| self.history().note(*block));
        Ok(blocks)
    }
}

impl Way {
    fn last(self, traced: bool) -> &'static str {
        match self {
            Way::Statement if traced => ROWS_TRACED,
            Way::Statement => ROWS,
            Way::Copy => BATCHES,
        }
    }
}

/// Sets `won` to false where a key is another request's.
async fn claim_keys<C: Cargo>(
    client: &Client,
    claim: &Statement,
    cargo: &[C],
    carried: &mut Carried,
) -> Result<(), Error> {
    let mut keyed: Vec<(usize, AccountId, &Key)> =
        (0..).zip(cargo).filter_map(|(i, c)| Some((i, c.account(), c.key()?))).collect();
    // Two transactions that wait for each other's keys would be a deadlock, so all take theirs in one order.
    keyed.sort_unstable_by_key(|(_, account, key)| (*account, key.hash));
    let (mut firsts, mut starts, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for (i, ..) in &keyed {
        starts.push(firsts.len() as i32 + 1);
        firsts.extend_from_slice(cargo[*i].firsts());
        stops.push(firsts.len() as i32);
    }
    let accounts: Vec<AccountId> = keyed.iter().map(|(_, account, _)| *account).collect();
    let hashes: Vec<&[u8]> = keyed.iter().map(|(_, _, key)| &key.hash[..]).collect();
    let bodies: Vec<&[u8]> = keyed.iter().map(|(_, _, key)| &key.body[..]).collect();
    let counts: Vec<i32> = keyed.iter().map(|(i, ..)| cargo[*i].count() as i32).collect();
    let params: &[&(dyn ToSql + Sync)] =
        &[&accounts, &hashes, &bodies, &firsts, &starts, &stops, &counts, &carried.at];
    let rows = client.query(claim, params).await?;
    let ours: HashSet<(AccountId, &[u8])> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (i, account, key) in keyed {
        carried.won[i] = ours.contains(&(account, &key.hash[..]));
    }
    Ok(())
}

async fn copy_events<C: Cargo>(
    client: &Client,
    copy: &Statement,
    chosen: &[&C],
    at: Timestamp,
    traced: bool,
) -> Result<(), Error> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(copy).await?);
    let mut rows = copy::Rows::new(traced);
    for cargo in chosen {
        let account = cargo.account().0;
        for event in 0..cargo.count() {
            let row = copy::Event {
                id: id(cargo.firsts(), event),
                account,
                kind: cargo.kind(event),
                payload: cargo.payload(event),
                trace: cargo.trace(event),
            };
            if let Some(piece) = rows.add(row, at) {
                // Waits while the connection has enough to send, so little is copied at one moment.
                sink.feed(piece).await?;
            }
        }
    }
    sink.feed(rows.end()).await?;
    sink.finish().await?;
    Ok(())
}

/// Events as the arrays of one statement.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<i64>,
    accounts: Vec<AccountId>,
    kinds: Vec<&'a str>,
    payloads: Vec<Utf8<'a>>,
    traces: Vec<Option<Trace>>,
}

impl<'a> Columns<'a> {
    fn of<C: Cargo>(chosen: &[&'a C]) -> Columns<'a> {
        let mut columns = Columns::default();
        for cargo in chosen {
            for event in 0..cargo.count() {
                columns.ids.push(id(cargo.firsts(), event));
                columns.accounts.push(cargo.account());
                columns.kinds.push(cargo.kind(event));
                columns.payloads.push(Utf8(cargo.payload(event)));
                columns.traces.push(cargo.trace(event));
            }
        }
        columns
    }

    fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.ids, &self.accounts, &self.kinds, &self.payloads, &self.traces]
    }
}

impl Store {
    /// Removes up to `limit` keys that are as good as absent. Those that a request is about to use again are left to it.
    pub async fn remove_old_keys(&self, limit: i64) -> Result<u64, Error> {
        let client = self.client().await?;
        let sql = "DELETE FROM idempotency_keys AS k USING (
                       SELECT account_id, key_hash FROM idempotency_keys
                       WHERE created_at < now() - interval '24 hours'
                       ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS old
                   WHERE k.account_id = old.account_id AND k.key_hash = old.key_hash";
        let statement = client.prepare_cached(sql).await?;
        Ok(client.execute(&statement, &[&limit]).await?)
    }
}

#[cfg(test)]
mod tests;
