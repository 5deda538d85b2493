//! `load-ab`: two engines against each other. `scripts/bench-ab` builds them and calls it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use eventpulse_loadtest::{
    ab::{Ratio, Verdict},
    cpu::Sample,
    generator::{self, Load},
    stack::{Engine, Error, Servers, client, register},
};
use serde::Serialize;
use serde_json::json;

/// Enough rounds for an interval, and few enough that a large difference is soon told.
const ROUNDS_MIN: usize = 4;

#[derive(Parser)]
struct Options {
    /// The engine of the first commit.
    a: PathBuf,
    /// And of the second.
    b: PathBuf,
    /// Rounds of A against A, and at most as many of A against B.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Bytes of an event.
    #[arg(long, default_value_t = 300)]
    size: usize,
    /// Stop when half of the interval is below this part of the ratio.
    #[arg(long, default_value_t = 0.02)]
    precision: f64,
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One engine in one run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    /// us of processor time an event, of the engine and of engine, Postgres and Redis.
    engine: f64,
    all: f64,
    /// The generator's own: the same work whatever the engine, so it says how fast the host was.
    host: f64,
    rate: f64,
    p50: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start_warm().await?;
    let outcome = compare(&options, &servers).await;
    servers.stop()?;
    outcome
}

async fn compare(options: &Options, servers: &Servers) -> Result<(), Error> {
    println!("A against itself:");
    let same = rounds(options, servers, &options.a, &options.a).await?;
    println!("A against B:");
    let pairs = rounds(options, servers, &options.a, &options.b).await?;
    println!("\n{:34} {:>7} {:>17} {:>19}  verdict", "B / A", "ratio", "(95 %)", "A / A (95 %)");
    let mut report = Vec::new();
    for (name, cost) in COSTS {
        let (Some(noise), Some(ratio)) = (ratio(&same, cost), ratio(&pairs, cost)) else {
            return Err("at least two rounds are needed".into());
        };
        let verdict = ratio.verdict(noise);
        let words = match verdict {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::WithinNoise => "within noise",
        };
        let interval = |r: Ratio| format!("({:.3}-{:.3})", r.low, r.high);
        println!("{name:34} {:7.3} {:>17} {:>19}  {words}", ratio.mean, interval(ratio), interval(noise));
        report.push(json!({ "cost": name, "ratio": ratio, "same": noise, "verdict": verdict }));
    }
    if let Some(path) = &options.json {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let facts = json!({ "cores": cores, "kernel": kernel.trim(), "connections": options.connections, "size": options.size, "seconds": options.seconds });
        let json = json!({ "machine": facts, "verdicts": report, "same": same, "pairs": pairs });
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)?;
    }
    Ok(())
}

/// Something of a run of which more is worse.
type Cost = fn(&Run) -> f64;

/// All are costs. Divided by the generator's own time of the same run, because the host's speed drifts.
const COSTS: [(&str, Cost); 4] = [
    ("CPU an event, engine", |run| run.engine / run.host),
    ("CPU an event, with Postgres, Redis", |run| run.all / run.host),
    ("time an event (1 / rate)", |run| 1.0 / run.rate / run.host),
    ("p50", |run| run.p50 / run.host),
];

fn ratio(pairs: &[(Run, Run)], cost: Cost) -> Option<Ratio> {
    let ratios: Vec<f64> = pairs.iter().map(|(a, b)| cost(b) / cost(a)).collect();
    Ratio::of(&ratios)
}

/// A pair a round, in the order ABBA, so that a drift counts for neither.
async fn rounds(options: &Options, servers: &Servers, a: &Path, b: &Path) -> Result<Vec<(Run, Run)>, Error> {
    let mut pairs = Vec::new();
    while pairs.len() < options.rounds.max(2) {
        let pair = if pairs.len() % 2 == 0 {
            let first = run(options, servers, a).await?;
            (first, run(options, servers, b).await?)
        } else {
            let second = run(options, servers, b).await?;
            (run(options, servers, a).await?, second)
        };
        println!(
            "  {:2}: engine {:.2} and {:.2} us, {:.0} and {:.0} events/s",
            pairs.len() + 1,
            pair.0.engine,
            pair.1.engine,
            pair.0.rate,
            pair.1.rate
        );
        pairs.push(pair);
        let precise = COSTS[..2]
            .iter()
            .all(|(_, cost)| ratio(&pairs, *cost).is_some_and(|r| r.half_width() < options.precision));
        if pairs.len() >= ROUNDS_MIN && precise {
            break;
        }
    }
    Ok(pairs)
}

async fn run(options: &Options, servers: &Servers, program: &Path) -> Result<Run, Error> {
    // A database for each run: no engine pays for another's rows, or meets a newer one's tables.
    let database = servers.database("ab").await?;
    let engine = Engine::start(program, "api", &database, &servers.redis.url(), &[], &servers.dir)?;
    let key = register(&client()?, engine.gateway, "http://127.0.0.1:9/hook").await?.key;
    let load = Load {
        target: engine.gateway,
        keys: vec![key],
        size: options.size,
        bulk: None,
        kinds: Vec::new(),
        connections: options.connections,
        rate: None,
        drop_when_busy: false,
        warm_up: Duration::from_secs(1),
        length: Duration::from_secs(options.seconds),
    };
    let pids = engine.pids(servers);
    let before = Sample::take(pids);
    let report = tokio::task::spawn_blocking(move || generator::run(load)).await??;
    let used = Sample::take(pids) - before;
    engine.process.stop();
    let each = |us: u64| us as f64 / report.accepted_in_all.max(1) as f64;
    Ok(Run {
        engine: each(used.engine),
        all: each(used.engine + used.postgres + used.redis),
        host: each(used.own),
        rate: report.accepted as f64 / report.seconds,
        p50: report.latency.p50,
    })
}
