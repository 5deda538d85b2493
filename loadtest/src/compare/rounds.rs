//! Measuring one term: everybody's processor time before and after, and what was done between.

use std::{net::SocketAddr, time::Duration};

use tokio_postgres::Client;

use super::{Figure, Round, parts, verdict::COPY_SIZES};
use crate::{
    cpu::{Pids, Sample},
    generator::{self, Load, Report},
    stack::{Engine, Error, Process, Servers, client, metric, sibling},
};

/// What all terms share.
pub struct Bench<'a> {
    pub servers: &'a Servers,
    pub engine: &'a Engine,
    pub keys: &'a [String],
    pub postgres: &'a Client,
    pub size: usize,
    pub length: Duration,
}

/// What is measured, by name: see [`Bench::term`].
pub fn terms(connections: &[usize]) -> Vec<String> {
    let mut terms = Vec::new();
    for n in connections {
        terms.push(format!("bare {n}"));
        terms.push(format!("ingest {n}"));
    }
    terms.extend(COPY_SIZES.map(|size| format!("copy {size}")));
    terms.extend(["ingest 1", "insert", "xadd", "fixed 5000", "bulk"].map(str::to_owned));
    terms
}

impl Bench<'_> {
    /// All terms once, beginning at another one each time.
    ///
    /// # Errors
    /// When one cannot be measured, or an accepted event is not in Postgres.
    pub async fn round(&self, n: usize, terms: &[String]) -> Result<Round, Error> {
        let mut round = Round::new();
        for at in 0..terms.len() {
            let term = &terms[(at + n * 5) % terms.len()];
            eprint!("\rround {} {term:12}", n + 1);
            // No term pays for what another left behind.
            self.postgres.batch_execute("TRUNCATE events, batches").await?;
            self.postgres.batch_execute("CHECKPOINT").await?;
            let figure = self.term(term).await?;
            round.insert(term.clone(), figure);
        }
        eprint!("\r{:30}\r", "");
        Ok(round)
    }

    /// `bare N` and `ingest N` with N connections, `copy N` with N rows a commit, `insert`, `xadd`, `fixed RATE` with 64
    /// connections, `bulk` with 500 events a request.
    async fn term(&self, term: &str) -> Result<Figure, Error> {
        let (name, number) = term.split_once(' ').unwrap_or((term, "0"));
        let number: usize = number.parse()?;
        match name {
            "bare" => self.bare(number).await,
            "ingest" => self.ingest(Load { connections: number, ..self.load() }).await,
            "fixed" => self.ingest(Load { rate: Some(number as f64), ..self.load() }).await,
            "bulk" => self.ingest(Load { bulk: Some(500), connections: 4, ..self.load() }).await,
            _ => self.part(name, number).await,
        }
    }

    fn load(&self) -> Load {
        Load {
            target: self.engine.gateway,
            keys: self.keys.to_vec(),
            size: self.size,
            bulk: None,
            kinds: Vec::new(),
            connections: 64,
            rate: None,
            drop_when_busy: false,
            warm_up: Duration::from_secs(1),
            length: self.length,
        }
    }

    async fn bare(&self, connections: usize) -> Result<Figure, Error> {
        let (server, url) = Process::that_says(&sibling("load-bare")?, &[])?;
        let target: SocketAddr = url.trim_start_matches("http://").parse()?;
        let pids = Pids { engine: server.pid(), ..self.engine.pids(self.servers) };
        let load = Load { target, connections, ..self.load() };
        let (report, used) = sampled(pids, async || generate(load).await).await?;
        Ok(figure(&report, used, 1))
    }

    async fn ingest(&self, load: Load) -> Result<Figure, Error> {
        let client = client()?;
        let each = load.bulk.unwrap_or(1) as u64;
        let batches = async || {
            let gateway = self.engine.gateway;
            let events = metric(&client, gateway, "eventpulse_ingest_batch_events_sum").await?;
            Ok::<_, Error>((events, metric(&client, gateway, "eventpulse_ingest_batch_events_count").await?))
        };
        let before = batches().await?;
        let (report, used) = sampled(self.engine.pids(self.servers), async || generate(load).await).await?;
        let after = batches().await?;
        let row = self.postgres.query_one("SELECT count(*) FROM events", &[]).await?;
        let (kept, accepted) = (row.get::<_, i64>(0), (report.accepted_in_all * each) as i64);
        if kept != accepted {
            return Err(format!("{accepted} events were accepted, and {kept} are in Postgres").into());
        }
        let mut figure = figure(&report, used, each);
        figure.batch = (after.0 - before.0) / (after.1 - before.1).max(1.0);
        Ok(figure)
    }

    async fn part(&self, name: &str, number: usize) -> Result<Figure, Error> {
        let (size, length) = (self.size, self.length);
        let redis_url = self.servers.redis.url();
        let (work, used) = sampled(self.engine.pids(self.servers), async || match name {
            "copy" => parts::copy(self.postgres, number, size, length).await,
            "insert" => parts::insert(self.postgres, size, length).await,
            "xadd" => parts::xadd(&redis_url, length).await,
            _ => Err(format!("there is no term {name}").into()),
        })
        .await?;
        let each = |us: u64| us as f64 / work.done.max(1) as f64;
        Ok(Figure {
            rate: work.done as f64 / work.seconds,
            postgres: each(used.postgres),
            redis: each(used.redis),
            client: each(used.own),
            p50: work.each_ms,
            foreign: used.foreign() as f64 / 1e6 / work.seconds,
            ..Figure::default()
        })
    }
}

/// Runs a load beside this runtime.
///
/// # Errors
/// When no connection can be made.
pub async fn generate(load: Load) -> Result<Report, Error> {
    Ok(tokio::task::spawn_blocking(move || generator::run(load)).await??)
}

/// What everybody used while `work` was done.
///
/// # Errors
/// Those of `work`.
pub async fn sampled<T>(
    pids: Pids,
    work: impl AsyncFnOnce() -> Result<T, Error>,
) -> Result<(T, Sample), Error> {
    let before = Sample::take(pids);
    let done = work().await?;
    Ok((done, Sample::take(pids) - before))
}

/// Time is used from the first request to the last, so it is divided by all that were accepted.
fn figure(report: &Report, used: Sample, each: u64) -> Figure {
    let events = (report.accepted_in_all * each).max(1) as f64;
    Figure {
        rate: (report.accepted * each) as f64 / report.seconds,
        engine: used.engine as f64 / events,
        postgres: used.postgres as f64 / events,
        redis: used.redis as f64 / events,
        client: used.own as f64 / events,
        p50: report.latency.p50,
        p99: report.latency.p99,
        batch: 0.0,
        foreign: used.foreign() as f64 / 1e6 / (report.seconds + 1.0),
    }
}
