//! `load-overload`: more than the gateway can take, for minutes; then one account flooding beside a quiet one.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use eventpulse_loadtest::{
    compare::parts,
    cpu::resident_kib,
    generator::{self, Load, Report},
    stack::{Engine, Error, Servers, client, register, setting},
};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    engine: PathBuf,
    /// Seconds of the soak.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Connections of the overload: so many requests may be on their way at once.
    #[arg(long, default_value_t = 2000)]
    connections: usize,
    /// Events a second of the quiet account.
    #[arg(long, default_value_t = 500.0)]
    quiet: f64,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start_warm().await?;
    let outcome = overload(&options, &servers).await;
    servers.stop()?;
    outcome
}

async fn overload(options: &Options, servers: &Servers) -> Result<(), Error> {
    let url = servers.database("overload").await?;
    let engine =
        Engine::start(&options.engine, "api", &url, &servers.redis.url(), &options.settings, &servers.dir)?;
    let client = client()?;
    let loud = register(&client, engine.gateway, "http://127.0.0.1:9/hook").await?.key;
    let quiet = register(&client, engine.gateway, "http://127.0.0.1:9/hook").await?.key;
    let load = |key: &str, connections, rate: Option<f64>, seconds| Load {
        target: engine.gateway,
        keys: vec![key.to_owned()],
        size: 300,
        bulk: None,
        kinds: Vec::new(),
        connections,
        rate,
        drop_when_busy: true,
        warm_up: Duration::from_secs(1),
        length: Duration::from_secs(seconds),
    };
    let mut accepted = 0;
    let unloaded = run(load(&loud, 64, Some(options.quiet), 10), &mut accepted).await?;
    show("unloaded", &unloaded);
    let most = run(load(&loud, 256, None, 5), &mut accepted).await?;
    let capacity = most.accepted as f64 / most.seconds;
    show("capacity", &most);

    let pid = engine.process.pid();
    let memory = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(31)).await;
        resident_kib(pid)
    });
    let soak =
        run(load(&loud, options.connections, Some(2.0 * capacity), options.seconds), &mut accepted).await?;
    show("twice the capacity", &soak);
    let (early, late) = (memory.await?, resident_kib(pid));
    println!("memory: {early} KiB after half a minute, {late} KiB at the end");
    println!("p99 of the accepted: {:.1} x the unloaded\n", soak.latency.p99 / unloaded.latency.p99);

    let alone = run(load(&quiet, 64, Some(options.quiet), 20), &mut accepted).await?;
    show("quiet alone", &alone);
    let flood = load(&loud, options.connections, Some(3.0 * capacity), 22);
    let flood = tokio::task::spawn_blocking(move || generator::run(flood));
    // The flood is up before the quiet one begins.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = run(load(&quiet, 64, Some(options.quiet), 20), &mut accepted).await?;
    let flood = flood.await??;
    accepted += flood.accepted_in_all;
    show("flood", &flood);
    show("quiet beside it", &beside);
    let refused = beside.limited + beside.unavailable + beside.other + beside.broken;
    println!("quiet: {refused} refused, p99 {:.1} x that alone", beside.latency.p99 / alone.latency.p99);

    let postgres = parts::postgres(&url).await?;
    let kept: i64 = postgres.query_one("SELECT count(*) FROM events", &[]).await?.get(0);
    println!("{accepted} events answered with 201, {kept} in Postgres");
    engine.process.stop();
    if kept < accepted as i64 { Err("events that were accepted are not there".into()) } else { Ok(()) }
}

async fn run(load: Load, accepted: &mut u64) -> Result<Report, Error> {
    let report = tokio::task::spawn_blocking(move || generator::run(load)).await??;
    *accepted += report.accepted_in_all;
    Ok(report)
}

fn show(name: &str, report: &Report) {
    let a_second = |n: u64| n as f64 / report.seconds;
    println!(
        "{name:20} accepted {:7.0}/s  429 {:6.0}/s  503 {:6.0}/s  not sent {:7.0}/s  broken {}  p50 {:.2}  p99 {:.2}  max {:.1} ms, sent late p99 {:.2}",
        a_second(report.accepted),
        a_second(report.limited),
        a_second(report.unavailable),
        a_second(report.dropped),
        report.broken + report.other,
        report.latency.p50,
        report.latency.p99,
        report.latency.max,
        report.lateness.p99,
    );
}
