//! `load-pipeline`: ingest and delivery together beside what they are made of, all from one run. See
//! `compare` for why every term is measured in every round.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Parser;
use eventpulse_loadtest::{
    compare::{
        Round, parts,
        pool::pool,
        rounds::{Bench, generate, sampled},
        spread,
        verdict::{COPY_SIZES, copy_cost},
    },
    cpu::{Pids, Sample, resident_kib},
    generator::{Load, Report},
    receiver::Summary,
    stack::{Account, Engine, Error, Process, Servers, client, metric, register, setting, sibling},
};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    engine: PathBuf,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of load with both roles.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Events a second; none for as many as are answered.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value_t = 300)]
    size: usize,
    /// Events a second of the run that measures latency.
    #[arg(long, default_value_t = 5000.0)]
    steady: f64,
    /// Only these of: both, steady, drain.
    #[arg(long, value_delimiter = ',', default_value = "both,steady,drain")]
    only: Vec<String>,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

/// Seconds of each part, which are steady soon.
const PART: Duration = Duration::from_secs(3);

/// Seconds of the part that waits for nobody.
const SIGN: Duration = Duration::from_millis(500);

/// Ratios of one round, by name.
type Ratios = Vec<(&'static str, f64)>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start_warm().await?;
    let outcome = rounds(&options, &servers).await;
    servers.stop()?;
    outcome
}

async fn rounds(options: &Options, servers: &Servers) -> Result<(), Error> {
    let mut all: Vec<Ratios> = Vec::new();
    for n in 0..options.rounds {
        println!("round {}", n + 1);
        all.push(round(options, servers, n).await?);
    }
    println!("\n{:60} {:>8} {:>17}", "taken within a round", "median", "(least-most)");
    for (at, (name, _)) in all.first().into_iter().flatten().enumerate() {
        let (median, least, most) = spread(all.iter().filter_map(|r| r.get(at)).map(|(_, v)| *v).collect());
        println!("{name:60} {median:8.2} {:>17}", format!("({least:.2}-{most:.2})"));
    }
    Ok(())
}

async fn round(options: &Options, servers: &Servers, n: usize) -> Result<Ratios, Error> {
    let wanted = |term: &str| options.only.iter().any(|only| only == term);
    let mut ratios = Ratios::new();
    let (receiver, url) = Process::that_says(&sibling("load-receiver")?, &[])?;
    let target: SocketAddr = url.trim_start_matches("http://").parse()?;
    let (floor, used) =
        sampled(Pids::default(), async || pool(target, "/hook/pool", 64, options.size, PART).await).await?;
    let (call, calls) = (used.own as f64 / floor.done as f64, floor.done as f64 / floor.seconds);
    println!("  64 bare connections: {calls:.0} calls/s, {call:.2} us a call");
    receiver.stop();
    if wanted("both") || wanted("steady") {
        let run = Run::start(options, servers, "both").await?;
        if wanted("both") {
            let cost = run.both().await?;
            let [each, sum] = run.parts(n, call, &cost).await?;
            ratios.push((
                "CPU of engine, Postgres, Redis / parts, an entry for each event",
                cost.total() / each,
            ));
            ratios.push(("the same / parts, an entry for each batch", cost.total() / sum));
            ratios.push(("events/s with both roles / bare calls/s", cost.rate / calls));
        }
        if wanted("steady") {
            let (p50, p99) = run.steady().await?;
            ratios.push(("ms from due to receiver at a steady rate, p50", p50));
            ratios.push(("ms from due to receiver at a steady rate, p99", p99));
        }
        run.engine.process.stop();
    }
    if wanted("drain") {
        ratios
            .push(("deliveries/s from a full stream / bare calls/s", drain(options, servers).await? / calls));
    }
    Ok(ratios)
}

/// Everything of a run, with one account and one webhook.
struct Run<'a> {
    options: &'a Options,
    servers: &'a Servers,
    engine: Engine,
    receiver: Process,
    receiver_url: String,
    account: Account,
    client: reqwest::Client,
}

/// Microseconds of processor time an event.
struct Cost {
    rate: f64,
    engine: f64,
    postgres: f64,
    redis: f64,
    batch: f64,
    records: f64,
}

impl Cost {
    fn total(&self) -> f64 {
        self.engine + self.postgres + self.redis
    }
}

impl<'a> Run<'a> {
    async fn start(options: &'a Options, servers: &'a Servers, role: &str) -> Result<Run<'a>, Error> {
        let client = client()?;
        let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
        let url = servers.database("pipeline").await?;
        let redis = servers.redis.url();
        let engine = Engine::start(&options.engine, role, &url, &redis, &options.settings, &servers.dir)?;
        let account = register(&client, engine.gateway, &format!("{receiver_url}/hook/main")).await?;
        let secret = account.secret.clone();
        client.put(format!("{receiver_url}/secrets/main")).body(secret).send().await?.error_for_status()?;
        Ok(Run { options, servers, engine, receiver, receiver_url, account, client })
    }

    fn load(&self, connections: usize, rate: Option<f64>, seconds: u64) -> Load {
        Load {
            target: self.engine.gateway,
            keys: vec![self.account.key.clone()],
            size: self.options.size,
            bulk: None,
            kinds: Vec::new(),
            connections,
            rate,
            drop_when_busy: false,
            warm_up: Duration::from_secs(1),
            length: Duration::from_secs(seconds),
        }
    }

    async fn ledger(&self) -> Result<Summary, Error> {
        Ok(self.client.get(format!("{}/ledger", self.receiver_url)).send().await?.json().await?)
    }

    /// Waits until everything that was accepted has arrived, and looks once more for what came twice.
    async fn arrived(&self, report: &Report) -> Result<Summary, Error> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.ledger().await?.all.unique < report.accepted_in_all && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ledger = self.ledger().await?;
        let all = &ledger.all;
        if all.unique != report.accepted_in_all || all.duplicates + all.bad_signatures + all.unsigned > 0 {
            return Err(
                format!("{} events were accepted; the receiver has {all:?}", report.accepted_in_all).into()
            );
        }
        Ok(ledger)
    }

    /// The mean of a histogram since the engine began.
    async fn mean(&self, name: &str) -> Result<f64, Error> {
        let of =
            async |part: &str| metric(&self.client, self.engine.gateway, &format!("{name}_{part}")).await;
        Ok(of("sum").await? / of("count").await?.max(1.0))
    }

    async fn both(&self) -> Result<Cost, Error> {
        let pids = self.engine.pids(self.servers);
        let load = self.load(self.options.connections, self.options.rate, self.options.seconds);
        let before = eventpulse_loadtest::cpu::of(self.receiver.pid());
        let ((report, behind, late), used) = sampled(pids, async || {
            let report = generate(load).await?;
            let behind = report.accepted_in_all.saturating_sub(self.ledger().await?.all.unique);
            let start = Instant::now();
            self.arrived(&report).await?;
            Ok((report, behind, start.elapsed()))
        })
        .await?;
        let events = report.accepted_in_all as f64;
        let each = |us: u64| us as f64 / events;
        let cost = Cost {
            rate: report.accepted as f64 / report.seconds,
            engine: each(used.engine),
            postgres: each(used.postgres),
            redis: each(used.redis),
            batch: self.mean("eventpulse_ingest_batch_events").await?,
            records: self.mean("eventpulse_settle_batch_records").await?,
        };
        let receiver = each(eventpulse_loadtest::cpu::of(self.receiver.pid()) - before);
        println!(
            "  both roles, {} connections: {:.0} events/s, answered in {:.2}/{:.2} ms (p50/p99); us an event: engine {:.2} \
             postgres {:.2} redis {:.2} = {:.2}, generator {:.2} receiver {receiver:.2}; batch {:.0}, records {:.0}; \
             {behind} to deliver at the end of the load, done {:.2} s later; {} KiB",
            self.options.connections,
            cost.rate,
            report.latency.p50,
            report.latency.p99,
            cost.engine,
            cost.postgres,
            cost.redis,
            cost.total(),
            each(used.own),
            cost.batch,
            cost.records,
            late.as_secs_f64(),
            resident_kib(self.engine.process.pid()),
        );
        Ok(cost)
    }

    /// What the parts alone cost an event, in batches of the size that the engine had: with an entry of the stream for each event,
    /// its payload in it, as one would first build it, and with one for each batch, as the engine does.
    async fn parts(&self, n: usize, call: f64, cost: &Cost) -> Result<[f64; 2], Error> {
        let postgres = parts::postgres(&self.engine.database_url).await?;
        let keys = [self.account.key.clone()];
        let bench = Bench {
            servers: self.servers,
            engine: &self.engine,
            keys: &keys,
            postgres: &postgres,
            size: self.options.size,
            length: PART,
        };
        let bare = format!("bare {}", self.options.connections);
        let mut terms = vec![bare.clone()];
        terms.extend(COPY_SIZES.map(|size| format!("copy {size}")));
        let round: Round = bench.round(n, &terms).await?;
        let pids = self.engine.pids(self.servers);
        let of =
            |used: Sample, done: u64| (used.own + used.postgres + used.redis) as f64 / done.max(1) as f64;
        let url = self.servers.redis.url();
        let (work, used) = sampled(pids, async || parts::stream(&url, PART).await).await?;
        let stream = of(used, work.done) / cost.batch;
        let entries = cost.batch.round().max(1.0) as usize;
        let (work, used) =
            sampled(pids, async || parts::stream_each(&url, self.options.size, entries, PART).await).await?;
        let each = of(used, work.done);
        let batch = cost.records.round().max(1.0) as usize;
        let (work, used) = sampled(pids, async || parts::attempts(&postgres, batch, PART).await).await?;
        let attempts = of(used, work.done);
        let (work, used) = sampled(pids, async || Ok(parts::sign(self.options.size, SIGN))).await?;
        let sign = used.own as f64 / work.done.max(1) as f64;
        let hyper = round.get(&bare).map_or(f64::NAN, |figure| figure.engine);
        let copy = copy_cost(&round, cost.batch).unwrap_or(f64::NAN);
        let rest = hyper + copy + sign + call + attempts;
        println!(
            "  parts: request {hyper:.2}, COPY {copy:.2}, sign {sign:.2}, call {call:.2}, attempts {attempts:.2}, stream {each:.2} with an entry \
             for each event, {stream:.2} for each batch; in all {:.2} and {:.2} us",
            rest + each,
            rest + stream,
        );
        Ok([rest + each, rest + stream])
    }

    /// From when an event was due to be sent to its arrival.
    async fn steady(&self) -> Result<(f64, f64), Error> {
        self.client.delete(format!("{}/ledger", self.receiver_url)).send().await?.error_for_status()?;
        let report = generate(self.load(64, Some(self.options.steady), self.options.seconds)).await?;
        let ledger = self.arrived(&report).await?;
        let late = ledger.latency.get("main").copied().unwrap_or_default();
        println!(
            "  steady {:.0}/s: answered in {:.2}/{:.2} ms, due to receiver {:.2}/{:.2} ms (p50/p99), max {:.1}",
            self.options.steady, report.latency.p50, report.latency.p99, late.p50, late.p99, late.max
        );
        Ok((late.p50, late.p99))
    }
}

/// Fills the stream with no dispatcher there, then starts one: deliveries a second while nothing else runs.
async fn drain(options: &Options, servers: &Servers) -> Result<f64, Error> {
    let run = Run::start(options, servers, "api").await?;
    let report = generate(run.load(256, None, 4)).await?;
    let redis = servers.redis.url();
    let url = &run.engine.database_url;
    let dispatcher =
        Engine::start(&options.engine, "dispatcher", url, &redis, &options.settings, &servers.dir)?;
    let all = report.accepted_in_all as f64;
    let pids = dispatcher.pids(servers);
    // Neither the start nor the last few.
    let reach = async |part: f64| {
        while (run.ledger().await?.all.unique as f64) < all * part {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Error>((Instant::now(), run.ledger().await?.all.unique, Sample::take(pids)))
    };
    let (start, from, before) = reach(0.1).await?;
    let (end, to, after) = reach(0.9).await?;
    run.arrived(&report).await?;
    let (done, used) = ((to - from) as f64, after - before);
    let rate = done / (end - start).as_secs_f64();
    println!(
        "  from a full stream: {rate:.0} deliveries/s; us each: engine {:.2} postgres {:.2} redis {:.2}",
        used.engine as f64 / done,
        used.postgres as f64 / done,
        used.redis as f64 / done
    );
    dispatcher.process.stop();
    run.engine.process.stop();
    run.receiver.stop();
    Ok(rate)
}
