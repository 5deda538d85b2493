//! How much bad endpoints slow the healthy ones: the same load twice, without and with endpoints that hang until the
//! time-out or answer 500.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use eventpulse_loadtest::{
    cpu::resident_kib,
    generator::{self, Load},
    receiver::{Latency, Summary},
    stack::{Engine, Error, Process, Servers, client, metric, register, setting, sibling},
};

#[derive(Parser)]
struct Options {
    /// The engine's program.
    #[arg(long)]
    engine: PathBuf,
    #[arg(long, default_value_t = 100)]
    webhooks: usize,
    /// Of them, those that hang.
    #[arg(long, default_value_t = 10)]
    hang: usize,
    /// Of them, those that answer 500.
    #[arg(long, default_value_t = 10)]
    fail: usize,
    /// Events a second, spread evenly.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start()?;
    let quiet = phase(&options, &servers, "none_bad", 0, 0).await?;
    let bad = phase(&options, &servers, "some_bad", options.hang, options.fail).await?;
    println!("p99 of the healthy: {:.2} x that with none bad", bad.p99 / quiet.p99.max(0.001));
    servers.stop()
}

async fn phase(
    options: &Options,
    servers: &Servers,
    name: &str,
    hang: usize,
    fail: usize,
) -> Result<Latency, Error> {
    let url = servers.database(name).await?;
    let redis = servers.redis.url();
    let engine = Engine::start(&options.engine, "both", &url, &redis, &options.settings, &servers.dir)?;
    let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
    let client = client()?;
    let mut keys = Vec::with_capacity(options.webhooks);
    for n in 0..options.webhooks {
        let path = match n {
            n if n < hang => "hang?hang=true",
            n if n < hang + fail => "fail?status=500",
            _ => "good",
        };
        keys.push(register(&client, engine.gateway, &format!("{receiver_url}/hook/{path}")).await?.key);
    }
    let load = Load {
        target: engine.gateway,
        connections: options.webhooks,
        keys,
        size: 300,
        bulk: None,
        rate: Some(options.rate),
        drop_when_busy: false,
        warm_up: Duration::from_secs(1),
        length: Duration::from_secs(options.seconds),
    };
    let pid = engine.process.pid();
    let memory = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(20)).await;
        resident_kib(pid)
    });
    let report = tokio::task::spawn_blocking(move || generator::run(load)).await??;
    // What is on its way to the healthy ones arrives.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ledger: Summary = client.get(format!("{receiver_url}/ledger")).send().await?.json().await?;
    let good = ledger.latency.get("good").copied().unwrap_or_default();
    let count = ledger.hooks.get("good").map_or(0, |counts| counts.unique);
    println!(
        "{name}: {} accepted; healthy: {count} delivered, p50 {} p99 {} max {} ms; memory {} KiB after 20 s, {} at the end",
        report.accepted_in_all,
        good.p50,
        good.p99,
        good.max,
        memory.await?,
        resident_kib(pid),
    );
    for name in [
        "lane_slow",
        "lane_breakers_open",
        "lane_pulled_total",
        "dispatch_held",
        "dispatch_held_slow",
        "retry_due",
    ] {
        let dispatcher = engine.dispatcher.unwrap_or(engine.gateway);
        println!("  {name} {}", metric(&client, dispatcher, &format!("eventpulse_{name}")).await?);
    }
    for calls in ["hang", "fail"] {
        println!("  calls to {calls}: {}", ledger.hooks.get(calls).map_or(0, |counts| counts.calls));
    }
    engine.process.stop();
    receiver.stop();
    Ok(good)
}
