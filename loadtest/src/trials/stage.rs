//! What one trial runs on: an engine with an empty database, and a receiver.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Bench, must};
use crate::{
    compare::parts,
    cpu::{self, Pids, Sample},
    generator::Load,
    receiver::{Counts, Summary},
    stack::{Engine, Error, Process, client, metric, register_as, sibling},
};

/// Without anything new for so long, nothing more is expected. Well above the longest time between two probes.
const STALL: Duration = Duration::from_secs(75);

/// Between two looks at a figure that is waited for.
pub const LOOK: Duration = Duration::from_millis(100);

/// An engine with an empty database, its receiver, and connections to all of it.
pub struct Stage<'a> {
    pub bench: &'a Bench,
    pub engine: Engine,
    receiver: Process,
    /// Without a slash at its end.
    pub receiver_url: String,
    pub client: reqwest::Client,
    pub postgres: tokio_postgres::Client,
    pub redis: redis::aio::MultiplexedConnection,
}

/// A webhook as it was registered.
#[derive(Clone, Debug)]
pub struct Hook {
    pub id: i64,
    /// The account's.
    pub key: String,
}

impl<'a> Stage<'a> {
    /// Starts an engine in `role` with settings of the trial; those of the command line come on top.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(
        bench: &'a Bench,
        name: &str,
        role: &str,
        own: &[(&str, &str)],
    ) -> Result<Stage<'a>, Error> {
        let servers = &bench.servers;
        let mut redis = redis::Client::open(servers.redis.url())?.get_multiplexed_async_connection().await?;
        // Nothing of the trial before counts as this one's memory.
        redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
        let url = servers.database(name).await?;
        let engine = Engine::start(
            &bench.engine,
            role,
            &url,
            &servers.redis.url(),
            &settings(bench, own),
            &servers.dir,
        )?;
        let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
        let postgres = parts::postgres(&url).await?;
        Ok(Stage { bench, engine, receiver, receiver_url, client: client()?, postgres, redis })
    }

    /// Registers a webhook of the receiver by its name there, with further fields of the request, and tells the receiver
    /// its secret. Without a key it makes an account.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn hook(&self, key: Option<&str>, name: &str, fields: &Value) -> Result<Hook, Error> {
        let mut body = json!({ "name": name, "url": format!("{}/hook/{name}", self.receiver_url) });
        for (field, value) in fields.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        let answer = register_as(&self.client, self.engine.gateway, key, &body).await?;
        let secret = answer["webhook"]["secret"].as_str().ok_or("an answer without a secret")?.to_owned();
        self.put(&format!("secrets/{name}"), secret).await?;
        let key = answer["apiKey"].as_str().or(key).ok_or("an answer without a key")?.to_owned();
        Ok(Hook { id: answer["webhook"]["id"].as_i64().ok_or("an answer without an id")?, key })
    }

    /// How a hook of the receiver behaves from now on; its count of requests at a time begins anew.
    ///
    /// # Errors
    /// When the receiver does not answer.
    pub async fn behave(&self, name: &str, manner: &'static str) -> Result<(), Error> {
        self.put(&format!("manner/{name}"), manner.to_owned()).await
    }

    async fn put(&self, path: &str, body: String) -> Result<(), Error> {
        let url = format!("{}/{path}", self.receiver_url);
        self.client.put(url).body(body).send().await?.error_for_status()?;
        Ok(())
    }

    /// What came to the receiver so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ledger(&self) -> Result<Summary, Error> {
        Ok(self.client.get(format!("{}/ledger", self.receiver_url)).send().await?.json().await?)
    }

    /// The same of one hook.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn counts(&self, name: &str) -> Result<Counts, Error> {
        Ok(self.ledger().await?.hooks.remove(name).unwrap_or_default())
    }

    /// Waits until `n` deliveries have arrived, each once and signed.
    ///
    /// # Errors
    /// When nothing more comes, and when more came than should.
    pub async fn arrived(&self, n: u64) -> Result<Summary, Error> {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let all: Counts =
                self.client.get(format!("{}/counts", self.receiver_url)).send().await?.json().await?;
            let wrong = all.duplicates + all.bad_signatures + all.unsigned > 0 || all.unique > n;
            must(!wrong, || {
                format!("{n} deliveries are owed, each once and signed; the receiver has {all:?}")
            })?;
            if all.unique == n {
                return self.ledger().await;
            }
            if all.unique > seen {
                (seen, since) = (all.unique, Instant::now());
            }
            must(since.elapsed() < STALL, || {
                format!("{n} deliveries are owed, and after {:?} {all:?}", STALL)
            })?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until a statement without parameters, which counts, gives at least `n`; gives how long that took.
    ///
    /// # Errors
    /// When the count stands still.
    pub async fn counted(&self, sql: &str, n: u64) -> Result<Duration, Error> {
        let start = Instant::now();
        let (mut seen, mut since) = (0, start);
        loop {
            let count = self.count(sql).await?;
            if count >= n {
                return Ok(start.elapsed());
            }
            if count > seen {
                (seen, since) = (count, Instant::now());
            }
            must(since.elapsed() < STALL, || format!("{count} where {n} were expected: {sql}"))?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One number from Postgres.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn count(&self, sql: &str) -> Result<u64, Error> {
        Ok(self.postgres.query_one(sql, &[]).await?.get::<_, i64>(0).unsigned_abs())
    }

    /// A dispatcher's figure by its name without the prefix.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn figure(&self, name: &str) -> Result<f64, Error> {
        let at = self.engine.dispatcher.unwrap_or(self.engine.gateway);
        metric(&self.client, at, &format!("eventpulse_{name}")).await
    }

    /// The gateway's.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn gateway_figure(&self, name: &str) -> Result<f64, Error> {
        metric(&self.client, self.engine.gateway, &format!("eventpulse_{name}")).await
    }

    /// How many dispatchers each of these knows of, itself included.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn peers(&self, dispatchers: &[Engine]) -> Result<Vec<f64>, Error> {
        let mut known = Vec::new();
        for dispatcher in dispatchers {
            known.push(metric(&self.client, dispatcher.gateway, "eventpulse_dispatch_peers").await?);
        }
        Ok(known)
    }

    /// The near window of the schedule, by its name in Redis.
    ///
    /// # Errors
    /// When Postgres does not know the deployment.
    pub async fn due(&self) -> Result<String, Error> {
        let id: String = self.postgres.query_one("SELECT id FROM engine_state", &[]).await?.get(0);
        Ok(format!("eventpulse:{id}:{{0}}:due"))
    }

    /// Single events of 300 bytes at a steady rate.
    pub fn load(&self, keys: Vec<String>, rate: f64, seconds: u64) -> Load {
        Load {
            target: self.engine.gateway,
            // So many that the rate is kept, and each account has one.
            connections: keys.len().max(32),
            keys,
            size: 300,
            bulk: None,
            kinds: Vec::new(),
            rate: Some(rate),
            drop_when_busy: false,
            warm_up: Duration::ZERO,
            length: Duration::from_secs(seconds),
        }
    }

    pub fn pids(&self) -> Pids {
        self.engine.pids(&self.bench.servers)
    }

    /// Processor time of the receiver so far, in microseconds.
    pub fn receiver_time(&self) -> u64 {
        cpu::of(self.receiver.pid())
    }

    pub fn stop(self) {
        self.engine.process.stop();
        self.receiver.stop();
    }
}

/// A trial's settings, and over them those of the command line.
pub fn settings(bench: &Bench, own: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut all: Vec<_> = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.extend(bench.settings.iter().cloned());
    all
}

/// Processor time of each of `n`, in microseconds, by who used it.
pub fn each(used: Sample, receiver: u64, n: u64) -> String {
    let of = |us: u64| us as f64 / n.max(1) as f64;
    format!(
        "us each: engine {:.1} postgres {:.1} redis {:.1} receiver {:.1} this {:.1}",
        of(used.engine),
        of(used.postgres),
        of(used.redis),
        of(receiver),
        of(used.own)
    )
}
