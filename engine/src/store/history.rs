//! Whether Postgres is where we left it. A backup that is restored, or a standby that was behind and takes over, has lost commits
//! that we know of: ids would be handed out again, and what is in memory and in Redis speaks of rows that are no more.
//!
//! Such a Postgres is another server or another start of one, so a look at each new connection misses nothing.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use tokio::sync::watch;
use tokio_postgres::{Client, error::SqlState};

use super::{Address, Error};

/// How far ids jump: 16,384 blocks of 1,024. A process may know of less than was handed out, by what the others took in a second.
const BLOCKS_AHEAD: i64 = 16_384;

/// How far everything else that is numbered jumps.
const AHEAD: i64 = 1 << 20;

/// Any number will do that no other lock of ours uses; this one reads "EvHi" in ASCII.
const LOCK: i64 = 0x4576_4869;

const PLACE: &str = "SELECT history, (SELECT last_value FROM event_id_blocks) FROM engine_state";

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
    gone: watch::Sender<bool>,
}

impl Default for History {
    fn default() -> History {
        let inner =
            Inner { name: AtomicI64::new(-1), highest: AtomicI64::new(0), gone: watch::Sender::new(false) };
        History { inner: Arc::new(inner) }
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

    /// Returns once a connection has found that Postgres went back in time.
    pub async fn gone(&self) {
        let mut gone = self.inner.gone.subscribe();
        // The sender is ours.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Looks at a new connection.
    ///
    /// # Errors
    /// [`Error::Rewound`], and from then on for every connection.
    pub(super) async fn check(&self, client: &Client) -> Result<(), Error> {
        // Before the look: blocks are handed out beside it.
        let highest = self.highest();
        let Some((name, last)) = place(client).await? else { return Ok(()) };
        let known = match self.inner.name.compare_exchange(-1, name, Relaxed, Relaxed) {
            Ok(_) => name,
            Err(known) => known,
        };
        if name == known && last >= highest {
            return Ok(());
        }
        self.inner.gone.send_replace(true);
        Err(Error::Rewound)
    }
}

/// The history's name and the last block handed out; none before the tables are there.
async fn place(client: &Client) -> Result<Option<(i64, i64)>, Error> {
    match client.query_opt(PLACE, &[]).await {
        Ok(row) => Ok(row.map(|row| (row.get(0), row.get(1)))),
        Err(error)
            if [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::UNDEFINED_COLUMN)]
                .contains(&error.code()) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::Connect(error)),
    }
}

/// Begins a new history where Postgres has lost blocks of ids up to `highest`: every number that may have been handed out is passed
/// over. Returns whether there was anything to do; another process may have done it.
///
/// # Errors
/// When Postgres cannot be reached or refuses.
pub async fn begin_anew(address: &Address, highest: i64) -> Result<bool, Error> {
    let mut client = address.connect_unchecked().await?;
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let last: i64 = transaction.query_one("SELECT last_value FROM event_id_blocks", &[]).await?.get(0);
    if last >= highest {
        return Ok(false);
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
    transaction.execute("SELECT setval('event_id_blocks', $1)", &[&(highest + BLOCKS_AHEAD)]).await?;
    let sql = "UPDATE engine_state SET history = $1, config_version = config_version + $2";
    transaction.execute(sql, &[&name, &AHEAD]).await?;
    transaction.commit().await?;
    Ok(true)
}
