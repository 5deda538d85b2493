//! `load-compare`: the engine's ingest beside its parts. `scripts/bench-compare` builds and calls it.

use std::{path::PathBuf, process::Command, time::Duration};

use clap::Parser;
use eventpulse_loadtest::{
    compare::{
        Figure, Round, parts,
        rounds::{Bench, terms},
        spread,
        verdict::verdicts,
    },
    generator::{self, Load},
    receiver::Summary,
    stack::{Engine, Error, Process, Servers, client, register, setting, sibling},
};
use serde_json::json;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    engine: PathBuf,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Counted seconds of each term, after one that is not.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Bytes of an event.
    #[arg(long, default_value_t = 300)]
    size: usize,
    /// Accounts to spread the events over.
    #[arg(long, default_value_t = 1)]
    accounts: usize,
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// Only terms whose name begins so.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start_warm().await?;
    let outcome = measure(&options, &servers).await;
    servers.stop()?;
    outcome
}

async fn measure(options: &Options, servers: &Servers) -> Result<(), Error> {
    let url = servers.database("compare").await?;
    let engine =
        Engine::start(&options.engine, "api", &url, &servers.redis.url(), &options.settings, &servers.dir)?;
    let client = client()?;
    let mut keys = Vec::with_capacity(options.accounts);
    for _ in 0..options.accounts.max(1) {
        keys.push(register(&client, engine.gateway, "http://127.0.0.1:9/hook").await?.key);
    }
    let postgres = parts::postgres(&url).await?;
    let bench = Bench {
        servers,
        engine: &engine,
        keys: &keys,
        postgres: &postgres,
        size: options.size,
        length: Duration::from_secs(options.seconds),
    };
    let wanted =
        |term: &String| options.only.is_empty() || options.only.iter().any(|only| term.starts_with(only));
    let terms: Vec<String> = terms(&options.connections).into_iter().filter(wanted).collect();
    let mut rounds: Vec<Round> = Vec::new();
    for n in 0..options.rounds {
        rounds.push(bench.round(n, &terms).await?);
    }
    engine.process.stop();
    let exact = exact(options, servers).await?;
    print(&terms, &rounds, &exact);
    if let Some(path) = &options.json {
        let facts = facts(&postgres, options).await?;
        let report =
            json!({ "machine": facts, "rounds": rounds, "ratios": verdicts(&rounds), "delivered": exact });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// A run with both roles: what was accepted, and what the receiver got of it.
async fn exact(options: &Options, servers: &Servers) -> Result<serde_json::Value, Error> {
    let client = client()?;
    let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
    let url = servers.database("exact").await?;
    let engine =
        Engine::start(&options.engine, "both", &url, &servers.redis.url(), &options.settings, &servers.dir)?;
    let account = register(&client, engine.gateway, &format!("{receiver_url}/hook/main")).await?;
    client
        .put(format!("{receiver_url}/secrets/main"))
        .body(account.secret)
        .send()
        .await?
        .error_for_status()?;
    let load = Load {
        target: engine.gateway,
        keys: vec![account.key],
        size: options.size,
        bulk: None,
        kinds: Vec::new(),
        connections: 64,
        rate: None,
        drop_when_busy: false,
        warm_up: Duration::ZERO,
        length: Duration::from_secs(options.seconds),
    };
    let report = tokio::task::spawn_blocking(move || generator::run(load)).await??;
    let mut ledger = Summary::default();
    for _ in 0..600 {
        ledger = client.get(format!("{receiver_url}/ledger")).send().await?.json().await?;
        if ledger.all.unique >= report.accepted_in_all {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Long enough for a repeat to show itself.
    tokio::time::sleep(Duration::from_secs(1)).await;
    ledger = client.get(format!("{receiver_url}/ledger")).send().await?.json().await.unwrap_or(ledger);
    engine.process.stop();
    receiver.stop();
    Ok(json!({
        "accepted": report.accepted_in_all,
        "unique": ledger.all.unique,
        "duplicates": ledger.all.duplicates,
        "badSignatures": ledger.all.bad_signatures,
        "unsigned": ledger.all.unsigned,
    }))
}

fn print(terms: &[String], rounds: &[Round], exact: &serde_json::Value) {
    println!(
        "medians of {} rounds; rate with its least and most; us of processor time an event\n",
        rounds.len()
    );
    println!(
        "{:14} {:>9} {:>19} {:>7} {:>8} {:>6} {:>7} {:>8} {:>8} {:>7} {:>7}",
        "term",
        "rate/s",
        "(least-most)",
        "engine",
        "postgres",
        "redis",
        "client",
        "p50 ms",
        "p99 ms",
        "batch",
        "foreign"
    );
    for term in terms {
        let of = |field: fn(&Figure) -> f64| {
            spread(rounds.iter().filter_map(|r| r.get(term)).map(field).collect())
        };
        let (rate, least, most) = of(|f| f.rate);
        println!(
            "{term:14} {rate:9.0} {:>19} {:7.2} {:8.2} {:6.2} {:7.2} {:8.3} {:8.3} {:7.1} {:7.2}",
            format!("({least:.0}-{most:.0})"),
            of(|f| f.engine).0,
            of(|f| f.postgres).0,
            of(|f| f.redis).0,
            of(|f| f.client).0,
            of(|f| f.p50).0,
            of(|f| f.p99).0,
            of(|f| f.batch).0,
            of(|f| f.foreign).0,
        );
    }
    println!(
        "\n{:52} {:>7} {:>15} {:>7} {:>6}",
        "ratio, taken within a round", "median", "(least-most)", "must", "aim"
    );
    for v in verdicts(rounds) {
        let sign = if v.at_least { ">=" } else { "<=" };
        let range = format!("({:.2}-{:.2})", v.least, v.most);
        let verdict = if v.holds() { "" } else { "  MISSED" };
        println!("{:52} {:7.2} {range:>15} {sign}{:5.2} {:6.2}{verdict}", v.name, v.median, v.must, v.aim);
    }
    println!("\nboth roles, 64 connections: {exact}");
}

async fn facts(postgres: &tokio_postgres::Client, options: &Options) -> Result<serde_json::Value, Error> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default()
        .trim_start_matches([' ', '\t', ':']);
    let show = async |name: &str| {
        Ok::<String, Error>(postgres.query_one(&format!("SHOW {name}"), &[]).await?.get(0))
    };
    Ok(json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": run("uname", &["-sr"]),
        "postgres": show("server_version").await?,
        "fsync": show("fsync").await?,
        "redis": run("redis-server", &["--version"]),
        "rustc": run("rustc", &["--version"]),
        "commit": run("git", &["rev-parse", "HEAD"]),
        "date": run("date", &["-u", "+%FT%TZ"]),
        "rounds": options.rounds, "seconds": options.seconds, "size": options.size, "accounts": options.accounts,
        "settings": options.settings,
    }))
}
