//! `load-trials`: hard cases in their real size. Fails when something is lost, or a bound does not hold.

use std::path::PathBuf;

use clap::Parser;
use eventpulse_loadtest::{
    stack::{Error, Servers, setting},
    trials::{self, ALL, Bench},
};

#[derive(Parser)]
struct Options {
    /// The engine's program.
    #[arg(long)]
    engine: PathBuf,
    /// Only these of: failing, recovery, fanout, minute, hung, registered, idle, peers, node, filter, neighbours, wiped, outage, undelivered.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Events (failing), webhooks (fanout, registered), rows (minute, hung), connections (idle) or settled events (wiped), in place of the
    /// real size; events a second (outage).
    #[arg(long)]
    size: Option<u64>,
    /// Seconds of the outage (recovery, outage), or of the load (all others but failing and minute), in place of the usual.
    #[arg(long)]
    seconds: Option<u64>,
    /// A module to run (filter), in place of the trial's own.
    #[arg(long)]
    module: Option<PathBuf>,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let Options { engine, only, size, seconds, module, settings } = Options::parse();
    let unknown = only.iter().find(|name| !ALL.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(format!("there is no trial {name}").into());
    }
    let bench = Bench { engine, settings, servers: Servers::start_warm().await?, size, seconds, module };
    let mut failed = Vec::new();
    for name in ALL.iter().filter(|name| only.is_empty() || only.iter().any(|only| only == *name)) {
        // One that fails does not keep the others from being run.
        if let Err(error) = trials::run(&bench, name).await {
            eprintln!("{name} FAILED: {error}");
            failed.push(*name);
        }
    }
    bench.servers.stop()?;
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}
