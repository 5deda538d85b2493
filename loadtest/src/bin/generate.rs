//! The generator as a program.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use eventpulse_loadtest::generator::{self, Load};

/// Sends events to a gateway and counts what they are answered.
#[derive(Parser)]
struct Options {
    /// Address and port of the gateway, as in 127.0.0.1:3000.
    #[arg(long)]
    target: SocketAddr,
    /// An API key; several are spread over the connections.
    #[arg(long = "key", required = true)]
    keys: Vec<String>,
    /// Bytes of an event.
    #[arg(long, default_value_t = 300)]
    size: usize,
    /// Events of one request, to /send-events.
    #[arg(long)]
    bulk: Option<usize>,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests a second; as many as are answered when left out.
    #[arg(long)]
    rate: Option<f64>,
    /// With a rate: drop what no connection is free for, in place of sending it late.
    #[arg(long)]
    drop_when_busy: bool,
    /// Seconds that are not counted.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Write the report here, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let report = generator::run(Load {
        target: options.target,
        keys: options.keys,
        size: options.size,
        bulk: options.bulk,
        kinds: Vec::new(),
        connections: options.connections,
        rate: options.rate,
        drop_when_busy: options.drop_when_busy,
        warm_up: Duration::from_secs_f64(options.warm_up),
        length: Duration::from_secs_f64(options.seconds),
    })?;
    let events = report.accepted * options.bulk.unwrap_or(1) as u64;
    println!(
        "accepted {} ({:.0} events/s), 429 {}, 503 {}, other {}, broken {}, dropped {}",
        report.accepted,
        events as f64 / report.seconds,
        report.limited,
        report.unavailable,
        report.other,
        report.broken,
        report.dropped
    );
    for (name, latency) in [("accepted", report.latency), ("refused", report.refusal)] {
        let generator::Latency { p50, p90, p99, p999, max } = latency;
        println!("{name:9} p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms");
    }
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
