//! `eventpulse transform`: a module's way from nothing to a webhook. What it says of a module is said by the host that
//! deliveries are made with; all but `push` works offline.

mod bench;
mod check;
mod event;
mod new;
mod project;
mod push;
mod run;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use clap::Subcommand;

use crate::{
    config::Config,
    metrics::Metrics,
    transform::{self, CompileError, Host, Module},
};

#[derive(Subcommand)]
pub enum Command {
    /// Write a project for a new transform, with everything that it needs.
    New(new::Options),
    /// Say whether a module would be taken, and why not.
    Check(check::Options),
    /// Call a module once with an event, and show what it does.
    Run(run::Options),
    /// Call a module many times, and show what that costs.
    Bench(bench::Options),
    /// Upload a module to a webhook, and wait until it is ready.
    Push(push::Options),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} cannot be {verb}")]
    File {
        path: String,
        verb: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Host(#[from] transform::Error),
    #[error("{name} is not taken ({code}): {message}")]
    Rejected { name: String, code: &'static str, message: String },
    #[error("{0}")]
    Compile(String),
    #[error("{0}")]
    Name(String),
    #[error("{path} is no event: {why}")]
    Event { path: String, why: String },
    #[error("the transform failed ({code}): {message}")]
    Failed { code: &'static str, message: String },
    #[error("the gateway could not be asked")]
    Call(#[from] reqwest::Error),
    #[error("the gateway answered {status}: {text}")]
    Refused { status: u16, text: String },
    #[error("{0}")]
    Unfinished(String),
}

/// # Errors
/// Whatever keeps a command from its purpose, a module that is not taken or fails included.
pub async fn run(config: &Config, command: Command) -> Result<(), Error> {
    match command {
        Command::New(options) => new::run(&options),
        Command::Check(options) => check::run(config, &options).await,
        Command::Run(options) => run::run(config, &options).await,
        Command::Bench(options) => bench::run(config, &options).await,
        Command::Push(options) => push::run(&options).await,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: show(path), verb: "read", source })
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// A host, and a module of a file that it takes.
async fn hosted(config: &Config, path: &Path) -> Result<(Host, Arc<Module>), Error> {
    let wasm = Bytes::from(read(path)?);
    let host = Host::new(&config.transform, Arc::new(Metrics::new()))?;
    let module = host.compile(wasm).await.map_err(|error| refused(path, error))?;
    Ok((host, module))
}

fn refused(path: &Path, error: CompileError) -> Error {
    match error {
        CompileError::Rejected(rejected) => {
            Error::Rejected { name: show(path), code: rejected.code, message: rejected.message }
        }
        CompileError::Failed(_) => Error::Compile(error.to_string()),
    }
}

/// A module, an event and settings, as `run` and `bench` take them.
#[derive(clap::Args)]
struct Subject {
    /// The module's file: a component, or a core module as cargo writes it.
    module: PathBuf,
    /// A JSON file with the event: `{"type":…,"payload":…}`, or an answer of `GET /events/:id`.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// One of the webhook's settings; may be given several times.
    // Not `--config`, which names a file everywhere.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

impl Subject {
    /// # Errors
    /// When a setting is given twice: one of the two would not count.
    fn config(&self) -> Result<Arc<Vec<(String, String)>>, Error> {
        for (at, (name, _)) in self.set.iter().enumerate() {
            if self.set[..at].iter().any(|(before, _)| before == name) {
                return Err(Error::Name(format!("`--set {name}=...` is given twice")));
            }
        }
        Ok(Arc::new(self.set.clone()))
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
