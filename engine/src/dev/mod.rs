//! `eventpulse dev`: everything in one command, on a private Postgres and Redis.

mod account;
mod receiver;
mod trip;

use std::{path::PathBuf, time::Instant};

use clap::Args;
use eventpulse_embedded as embedded;

use crate::{
    config::{Config, Roles, value::Secret},
    engine::{self, Engine},
    store::{self, Address, migrate},
};

#[derive(Args)]
pub struct Options {
    /// Where the private Postgres and Redis and the demo account are kept.
    #[arg(long, default_value = ".eventpulse", value_name = "DIR")]
    data_dir: PathBuf,
    /// Leave out the demo round trip and its receiver.
    #[arg(long)]
    no_demo: bool,
    /// Start over: remove the private servers' data and the demo account first.
    #[arg(long)]
    reset: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Embedded(#[from] embedded::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{path} cannot be used")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the demo receiver could not listen")]
    Receiver(#[source] std::io::Error),
    #[error("the demo's call to the gateway failed")]
    Call(#[from] reqwest::Error),
    #[error("the demo's round trip failed: {0}")]
    Trip(String),
}

/// Runs until `stopped` resolves, then stops all it started.
pub async fn run(
    mut config: Config,
    options: Options,
    stopped: impl Future<Output = ()>,
) -> Result<(), Error> {
    tune(&mut config);
    let dir = prepare(&options)?;
    println!("EventPulse {}", env!("CARGO_PKG_VERSION"));
    let start = Instant::now();
    let postgres = match config.database_url.is_empty() {
        true => Some(embedded::Postgres::start(&dir)?),
        false => None,
    };
    if let Some(postgres) = &postgres {
        config.database_url = Secret::new(postgres.url("eventpulse"));
        say(
            "postgres",
            &format!("private, port {}, data in {}", postgres.port(), dir.join("postgres").display()),
            start,
        );
    }
    let start = Instant::now();
    let redis = match config.redis_url.is_empty() {
        true => Some(embedded::Redis::start(&dir)?),
        false => None,
    };
    if let Some(redis) = &redis {
        config.redis_url = Secret::new(redis.url());
        say("redis", &format!("private, port {}", redis.port()), start);
    }
    let start = Instant::now();
    migrate::migrate(&Address::parse(config.database_url.reveal())?).await?;
    let mut engine = Engine::start(config, Roles::Both).await?;
    let address = |a: Option<std::net::SocketAddr>| a.map(|a| format!("http://{a}")).unwrap_or_default();
    let gateway = address(engine.gateway);
    say("gateway", &gateway, start);
    say("dispatcher", &format!("{}/metrics", address(engine.dispatcher)), start);
    if options.no_demo {
        println!(
            "\nReady. Register a webhook with POST {gateway}/register-webhook. Ctrl-C stops everything."
        );
        wait(&mut engine, stopped).await?;
    } else {
        let demo = trip::Demo::start(&gateway, &dir).await;
        match demo {
            Ok(demo) => {
                demo.print();
                wait(&mut engine, stopped).await?;
            }
            Err(error) => {
                engine.shutdown().await?;
                return Err(error);
            }
        }
    }
    println!("\nStopping.");
    engine.shutdown().await?;
    if let Some(redis) = redis {
        redis.stop()?;
    }
    if let Some(postgres) = postgres {
        postgres.stop()?;
    }
    Ok(())
}

async fn wait(engine: &mut Engine, stopped: impl Future<Output = ()>) -> Result<(), Error> {
    tokio::select! {
        () = stopped => Ok(()),
        error = engine.ended() => Err(error.into()),
    }
}

/// Development wants targets on this machine, and retries that one can watch. What was set by hand stays.
fn tune(config: &mut Config) {
    config.targets.allow_private = true;
    if config.retry.schedule == Config::default().retry.schedule {
        config.retry.schedule = "1s,5s,15s".parse().expect("a schedule written here reads");
    }
}

fn prepare(options: &Options) -> Result<PathBuf, Error> {
    let file = |source| Error::File { path: options.data_dir.display().to_string(), source };
    if options.reset {
        embedded::remove(&options.data_dir)?;
        account::forget(&options.data_dir)?;
    }
    std::fs::create_dir_all(&options.data_dir).map_err(file)?;
    std::path::absolute(&options.data_dir).map_err(file)
}

fn say(part: &str, what: &str, since: Instant) {
    println!("  {part:<11} {what}  ({:.1} s)", since.elapsed().as_secs_f32());
}
