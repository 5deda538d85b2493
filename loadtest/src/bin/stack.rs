//! Starts everything a load test needs, prints where it is as one line of JSON, and holds it until stdin ends or a
//! signal comes.

use std::path::PathBuf;

use clap::Parser;
use eventpulse_loadtest::stack::{Engine, Error, Process, Servers, client, register, setting, sibling};
use serde_json::json;
use tokio::io::AsyncReadExt;

#[derive(Parser)]
struct Options {
    /// The engine's program.
    #[arg(long)]
    engine: PathBuf,
    /// `both` or `api`.
    #[arg(long, default_value = "both")]
    role: String,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start()?;
    let database_url = servers.database("load").await?;
    let redis_url = servers.redis.url();
    let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
    let engine = Engine::start(
        &options.engine,
        &options.role,
        &database_url,
        &redis_url,
        &options.settings,
        &servers.dir,
    )?;
    let client = client()?;
    let account = register(&client, engine.gateway, &format!("{receiver_url}/hook/main")).await?;
    let told = client.put(format!("{receiver_url}/secrets/main")).body(account.secret).send().await?;
    told.error_for_status()?;
    let line = json!({
        "gateway": format!("http://{}", engine.gateway),
        "dispatcher": engine.dispatcher.map(|address| format!("http://{address}")),
        "receiver": receiver_url,
        "apiKey": account.key,
        "databaseUrl": database_url,
        "redisUrl": redis_url,
        "pids": {
            "engine": engine.process.pid(),
            "postgres": servers.postgres.pid(),
            "redis": servers.redis.pid(),
            "receiver": receiver.pid(),
        },
    });
    println!("{line}");
    until_told().await?;
    engine.process.stop();
    receiver.stop();
    servers.stop()
}

async fn until_told() -> std::io::Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut stdin = tokio::io::stdin();
    let mut byte = [0];
    let ended = async { while matches!(stdin.read(&mut byte).await, Ok(1..)) {} };
    tokio::select! {
        () = ended => Ok(()),
        _ = terminated.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}
