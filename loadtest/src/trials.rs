//! Trials: hard cases in their real size, each with what must hold in it. Times and costs are printed, never judged.

pub mod breaker;
pub mod fanout;
pub mod memory;
pub mod node;
pub mod outage;
pub mod peers;
pub mod rows;
pub mod schedule;
pub mod stage;
pub mod transforms;
pub mod undelivered;
pub mod watch;
pub mod wiped;

use std::path::PathBuf;

use crate::stack::{Error, Servers};

/// What all trials share.
pub struct Bench {
    /// The engine's program.
    pub engine: PathBuf,
    /// Settings of the engine by their names in its environment, beside those of a trial.
    pub settings: Vec<(String, String)>,
    pub servers: Servers,
    /// In place of the trial's own number of events, rows, webhooks or connections.
    pub size: Option<u64>,
    /// In place of the trial's own length.
    pub seconds: Option<u64>,
    /// A module's file, in place of the trial's own.
    pub module: Option<PathBuf>,
}

/// The trials by name, in the order in which they run.
pub const ALL: [&str; 14] = [
    "failing",
    "recovery",
    "fanout",
    "minute",
    "hung",
    "registered",
    "idle",
    "peers",
    "node",
    "filter",
    "neighbours",
    "wiped",
    "outage",
    "undelivered",
];

/// Runs one trial.
///
/// # Errors
/// When it cannot run, and when what must hold in it does not.
pub async fn run(bench: &Bench, name: &str) -> Result<(), Error> {
    match name {
        "failing" => breaker::failing(bench).await,
        "recovery" => breaker::recovery(bench).await,
        "fanout" => fanout::fanout(bench).await,
        "minute" => schedule::minute(bench).await,
        "hung" => schedule::hung(bench).await,
        "registered" => memory::registered(bench).await,
        "idle" => memory::idle(bench).await,
        "peers" => peers::peers(bench).await,
        "node" => node::node(bench).await,
        "filter" => transforms::filter(bench).await,
        "neighbours" => transforms::neighbours(bench).await,
        "wiped" => wiped::wiped(bench).await,
        "outage" => outage::outage(bench).await,
        "undelivered" => undelivered::undelivered(bench).await,
        _ => Err(format!("there is no trial {name}; there are: {}", ALL.join(", ")).into()),
    }
}

/// For what must hold.
///
/// # Errors
/// With `why`, when it does not.
pub fn must(holds: bool, why: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(why().into()) }
}
