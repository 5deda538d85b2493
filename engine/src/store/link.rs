//! One dedicated connection with its prepared statements, made again when it breaks.

use std::{collections::HashMap, time::Duration};

use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::{Address, Error, History};

/// A connection of its own for a loop that has one statement in flight.
pub struct Link {
    address: Address,
    /// A statement past it counts as lost: the connection is dropped and its outcome is unknown.
    patience: Duration,
    live: Option<Live>,
    /// The last block of ids as of the last look.
    seen: i64,
}

struct Live {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Link {
    pub fn new(address: Address, patience: Duration) -> Link {
        Link { address, patience, live: None, seen: 0 }
    }

    /// Runs `sql`, prepared once a connection, and returns its rows. Connects when there is no connection.
    ///
    /// # Errors
    /// After [`Fault::Unknown`](super::Fault::Unknown) the connection is gone and the next call makes a new one.
    ///
    /// # Cancel safety
    /// Not safe: a dropped call leaves the outcome of the statement unknown.
    pub async fn query(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let outcome = match tokio::time::timeout(self.patience, self.attempt(sql, params)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Slow),
        };
        self.judge(&outcome);
        outcome
    }

    /// Takes the last block that somebody has been given. It counts at the next look, a second later: what is not committed yet
    /// may be given again after a crash.
    pub(super) fn see(&mut self, last: i64) {
        let before = std::mem::replace(&mut self.seen, last);
        self.history().note(before);
    }

    pub(super) fn history(&self) -> &History {
        self.address.history()
    }

    /// How long anything may take.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Drops the connection if what came of its use says that it is of no more use.
    pub(super) fn judge<T>(&mut self, outcome: &Result<T, Error>) {
        let broken = match outcome {
            Ok(_) => false,
            Err(Error::Statement(error)) => error.code().is_none() || error.is_closed(),
            Err(_) => true,
        };
        // 25006: the server became a standby, and this connection would stay on it for ever. 26000 and 0A000: the
        // prepared statement is gone or its plan may not change, and would fail as often as it is used.
        let useless = matches!(outcome, Err(Error::Statement(e))
            if e.code().is_some_and(|c| ["25006", "26000", "0A000"].contains(&c.code())));
        if broken || useless {
            self.live = None;
        }
    }

    /// Ends a transaction that failed, or else the connection.
    pub(super) async fn roll_back(&mut self) {
        if let Some(live) = &self.live {
            let ended = tokio::time::timeout(self.patience, live.client.batch_execute("ROLLBACK")).await;
            if !matches!(ended, Ok(Ok(()))) {
                self.live = None;
            }
        }
    }

    /// A connection on which all of `sqls` are prepared, for a transaction of several statements.
    pub(super) async fn session<const N: usize>(
        &mut self,
        sqls: [&'static str; N],
    ) -> Result<(&Client, [Statement; N]), Error> {
        let live = self.live().await?;
        for sql in sqls {
            live.prepare(sql).await?;
        }
        Ok((&live.client, sqls.map(|sql| live.statements[sql].clone())))
    }

    /// Connects and prepares `sql`, so that the first use does not wait for it.
    pub async fn warm(&mut self, sql: &'static str) -> Result<(), Error> {
        self.prepared(sql).await.map(drop)
    }

    async fn live(&mut self) -> Result<&mut Live, Error> {
        let live = match self.live.take() {
            Some(live) if !live.client.is_closed() => live,
            _ => Live { client: self.connect().await?, statements: HashMap::new() },
        };
        Ok(self.live.insert(live))
    }

    /// With plans that are made once. The planner's own choice was to plan the group commit anew each time, because it
    /// takes arrays and the estimate follows their length, though the plan does not: a third of Postgres' time for a commit of one event.
    /// And never with a sequential scan where an index will do: a plan made while `batches` is empty is used when it has
    /// a million rows.
    async fn connect(&self) -> Result<Client, Error> {
        let client = self.address.connect().await?;
        client
            .batch_execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
            .await
            .map_err(Error::Connect)?;
        Ok(client)
    }

    async fn prepared(&mut self, sql: &'static str) -> Result<(&Client, &Statement), Error> {
        let live = self.live().await?;
        live.prepare(sql).await?;
        Ok((&live.client, &live.statements[sql]))
    }

    async fn attempt(
        &mut self,
        sql: &'static str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let (client, statement) = self.prepared(sql).await?;
        Ok(client.query(statement, params).await?)
    }
}

impl Live {
    async fn prepare(&mut self, sql: &'static str) -> Result<(), Error> {
        if !self.statements.contains_key(sql) {
            // Nothing ran yet, so a failure here leaves nothing unknown.
            let statement = self.client.prepare(sql).await.map_err(Error::Connect)?;
            self.statements.insert(sql, statement);
        }
        Ok(())
    }
}
