//! Whether Postgres is where we left it. A backup that is restored, or a standby that was behind and takes over, has lost commits
//! that we know of: ids would be handed out again, and what is in memory and in Redis speaks of rows that are no more.
//!
//! Such a Postgres is another server or another start of one, so a look at each new connection misses nothing.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use tokio::sync::watch;
use tokio_postgres::{Client, GenericClient, error::SqlState};

use super::{Address, Error};

/// How far ids jump: 16,384 blocks of 1,024. A process may know of less than was handed out, by what the others took in a second.
const BLOCKS_AHEAD: i64 = 16_384;

/// How far everything else that is numbered jumps.
const AHEAD: i64 = 1 << 20;

/// Any number will do that no other lock of ours uses; this one reads "EvHi" in ASCII.
const LOCK: i64 = 0x4576_4869;

const PLACE: &str =
    "SELECT history, (SELECT last_value FROM event_id_blocks), (SELECT beat FROM instances WHERE id = $1),
                     config_version FROM engine_state";

/// What one process knows of the past, shared by all of its connections.
#[derive(Clone)]
pub struct History {
    inner: Arc<Inner>,
}

struct Inner {
    /// Of the first connection; -1 before it.
    name: AtomicI64,
    /// The highest block of ids that was surely handed out.
    highest: AtomicI64,
    /// This process among the instances; 0 before it has joined them, which no instance is.
    instance: AtomicI64,
    /// The last of its beats that is surely committed. Blocks are large, and Postgres notes ahead which ones it hands out: the
    /// loss of a few moments shows here.
    beat: AtomicI64,
    /// The highest configuration version that was read, by each group commit among others. Between two beats a lost account or
    /// key shows here alone, and it is what must not be taken for another's.
    version: AtomicI64,
    gone: watch::Sender<bool>,
}

impl Default for History {
    fn default() -> History {
        let [highest, instance, beat, version] = [const { AtomicI64::new(0) }; 4];
        let (name, gone) = (AtomicI64::new(-1), watch::Sender::new(false));
        History { inner: Arc::new(Inner { name, highest, instance, beat, version, gone }) }
    }
}

impl History {
    /// A block was handed out, and that is committed.
    pub(super) fn note(&self, block: i64) {
        self.inner.highest.fetch_max(block, Relaxed);
    }

    pub fn highest(&self) -> i64 {
        self.inner.highest.load(Relaxed)
    }

    /// The number that the next beat of `instance` has: higher than any before it, also after others removed its row.
    pub(super) fn next_beat(&self, instance: i64) -> i64 {
        self.inner.instance.store(instance, Relaxed);
        self.inner.beat.load(Relaxed) + 1
    }

    /// That beat is committed.
    pub(super) fn beaten(&self, beat: i64) {
        self.inner.beat.fetch_max(beat, Relaxed);
    }

    /// A configuration version was read.
    pub(super) fn read(&self, version: i64) {
        self.inner.version.fetch_max(version, Relaxed);
    }

    /// Returns once a connection has found that Postgres went back in time.
    pub async fn gone(&self) {
        let mut gone = self.inner.gone.subscribe();
        // The sender is ours.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// What this process knows for certain.
    fn known(&self) -> Place {
        let Inner { name, highest, beat, version, .. } = &*self.inner;
        Place {
            name: name.load(Relaxed),
            last: highest.load(Relaxed),
            beat: Some(beat.load(Relaxed)),
            version: version.load(Relaxed),
        }
    }

    /// Looks at a new connection.
    ///
    /// # Errors
    /// [`Error::Rewound`], and from then on for every connection.
    pub(super) async fn check(&self, client: &Client) -> Result<(), Error> {
        // Before the look, beside which the numbers rise.
        let known = self.known();
        let Some(found) = place(client, &self.inner.instance).await? else { return Ok(()) };
        if found.lacks(&known) {
            self.inner.gone.send_replace(true);
            return Err(Error::Rewound);
        }
        self.is_named(found.name)
    }

    /// Takes the name that Postgres has for its history now. A process that lost nothing it knows of may have looked before another
    /// began the new one.
    ///
    /// # Errors
    /// [`Error::Rewound`], where it is another than at first.
    pub(super) fn is_named(&self, found: i64) -> Result<(), Error> {
        match self.inner.name.compare_exchange(-1, found, Relaxed, Relaxed) {
            Err(name) if name != found => {
                self.inner.gone.send_replace(true);
                Err(Error::Rewound)
            }
            _ => Ok(()),
        }
    }
}

/// How far Postgres is, or must be.
struct Place {
    /// The history's.
    name: i64,
    /// The last block of ids that was handed out.
    last: i64,
    /// The last beat of the process that looks. None where it has no row: others took it for dead.
    beat: Option<i64>,
    /// The configuration's.
    version: i64,
}

impl Place {
    /// Whether something is missing here that is known to have been committed.
    fn lacks(&self, known: &Place) -> bool {
        self.last < known.last
            || self.version < known.version
            || self.beat.zip(known.beat).is_some_and(|(found, known)| found < known)
    }

    /// Whether another process has seen to it that all numbers go on after what is known.
    fn is_past(&self, known: &Place) -> bool {
        self.last >= known.last && (self.name != known.name || !self.lacks(known))
    }
}

/// None before the tables are there.
async fn place(client: &impl GenericClient, instance: &AtomicI64) -> Result<Option<Place>, Error> {
    match client.query_opt(PLACE, &[&instance.load(Relaxed)]).await {
        Ok(row) => Ok(row.map(|row| Place {
            name: row.get(0),
            last: row.get(1),
            beat: row.get(2),
            version: row.get(3),
        })),
        Err(error)
            if [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::UNDEFINED_COLUMN)]
                .contains(&error.code()) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::Connect(error)),
    }
}

/// Begins a new history where Postgres has lost commits that are known at this address: every number that may have been handed out
/// is passed over. Returns whether there was anything to do; another process may have done it.
///
/// # Errors
/// When Postgres cannot be reached or refuses.
pub async fn begin_anew(address: &Address) -> Result<bool, Error> {
    let mut client = address.connect_unchecked().await?;
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let known = address.history().known();
    match place(&transaction, &address.history().inner.instance).await? {
        Some(found) if !found.is_past(&known) => {}
        _ => return Ok(false),
    }
    let mut name = [0u8; 8];
    getrandom::fill(&mut name).expect("the system has randomness");
    // Of the sign nothing is known, and -1 says that there is none.
    let name = i64::from_ne_bytes(name) & i64::MAX;
    transaction
        .execute(
            "SELECT setval(format('%I.%I', schemaname, sequencename), coalesce(last_value, 0) + $1)
             FROM pg_sequences WHERE schemaname = current_schema() AND sequencename <> 'event_id_blocks'",
            &[&AHEAD],
        )
        .await?;
    let sql = "SELECT setval('event_id_blocks', greatest(last_value, $1) + $2) FROM event_id_blocks";
    transaction.execute(sql, &[&known.last, &BLOCKS_AHEAD]).await?;
    let sql = "UPDATE engine_state SET history = $1, config_version = config_version + $2";
    transaction.execute(sql, &[&name, &AHEAD]).await?;
    transaction.commit().await?;
    Ok(true)
}
