//! What the engine holds for webhooks that are registered, and for connections that idle.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Bench, must, stage::Stage};
use crate::{compare::rounds::generate, cpu::resident_kib, stack::Error, wire};

/// Time in which the engine notices a new configuration, and in which what was only needed for a while is given back.
const SETTLE: Duration = Duration::from_secs(3);

/// A hundred thousand webhooks of as many accounts, of which a thousand have something to do.
///
/// # Errors
/// When a delivery is lost or repeated.
pub async fn registered(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "registered", "both", &[]).await?;
    let pid = stage.engine.process.pid();
    let n = bench.size.unwrap_or(100_000);
    let empty = resident_kib(pid);
    // As registration does it, with one version for all.
    stage
        .postgres
        .execute(
            "WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
             a AS (INSERT INTO accounts (version) SELECT config_version FROM v, generate_series(1, $1::bigint) RETURNING id, version),
             k AS (INSERT INTO api_keys (account_id, hash, prefix, version) SELECT id, sha256(id::text::bytea), 'ep_live_none', version FROM a)
             INSERT INTO webhooks (account_id, name, url, secret, since_version, version)
             SELECT id, 'idle', 'http://127.0.0.1:9/hook/' || id, 'whsec_' || encode(sha256(id::text::bytea), 'base64'), version, version FROM a",
            &[&(n as i64)],
        )
        .await?;
    tokio::time::sleep(SETTLE).await;
    let known = resident_kib(pid);
    let start = Instant::now();
    let mut keys = Vec::new();
    for hook in 0..1000.min(n) {
        keys.push(stage.hook(None, &format!("active{hook}"), &Value::Null).await?.key);
    }
    let (made, took) = (keys.len(), start.elapsed().as_secs_f64());
    let added = resident_kib(pid);
    let report = generate(stage.load(keys, 500.0, bench.seconds.unwrap_or(10))).await?;
    let ledger = stage.arrived(report.accepted_in_all).await?;
    tokio::time::sleep(SETTLE).await;
    println!(
        "registered: engine {empty} KiB with none, {known} with {n} webhooks, {added} with {made} more (registered at {:.0}/s), {} after {} events to those",
        made as f64 / took,
        resident_kib(pid),
        ledger.all.unique,
    );
    stage.stop();
    Ok(())
}

/// Connections that each sent one event and stay open.
///
/// # Errors
/// When one is refused or closed, or an event is lost.
pub async fn idle(bench: &Bench) -> Result<(), Error> {
    let n = bench.size.unwrap_or(10_000);
    // The engine inherits it.
    let wanted = n + 1000;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
            .map_err(|error| format!("{n} connections need as many file descriptors: {error}"))?;
    }
    let connections_max = (n + 100).to_string();
    let stage =
        Stage::start(bench, "idle", "both", &[("EVENTPULSE_HTTP__CONNECTIONS_MAX", &connections_max)])
            .await?;
    let pid = stage.engine.process.pid();
    let key = stage.hook(None, "idle", &Value::Null).await?.key;
    let (request, before, start) =
        (wire::request(&key, wire::KIND, 300, None), resident_kib(pid), Instant::now());
    let mut open = Vec::new();
    let mut buffer = Vec::new();
    for _ in 0..n {
        let mut stream = TcpStream::connect(stage.engine.gateway).await?;
        stream.write_all(&request).await?;
        buffer.clear();
        let answer = loop {
            must(stream.read_buf(&mut buffer).await? > 0, || "a connection was closed".to_owned())?;
            if let Some(answer) = wire::answer(&buffer) {
                break answer;
            }
        };
        must(answer.status == 201, || format!("an event was answered with {}", answer.status))?;
        open.push(stream);
    }
    let took = start.elapsed().as_secs_f64();
    stage.arrived(n).await?;
    tokio::time::sleep(SETTLE).await;
    let after = resident_kib(pid);
    let connected = stage.gateway_figure("http_connections").await?;
    // Those that were closed have something to read: the end.
    let closed = open.iter().filter(|stream| stream.try_read(&mut [0u8; 1]).is_ok()).count();
    println!(
        "idle: {n} connections with one event each in {took:.1} s; engine {before} KiB before, {after} with them idle: {:.1} KiB each; {connected} open by its own count",
        after.saturating_sub(before) as f64 / n as f64,
    );
    drop(open);
    tokio::time::sleep(SETTLE).await;
    println!("  {} KiB after they were closed", resident_kib(pid));
    stage.stop();
    must(closed == 0, || format!("{closed} connections were closed"))
}
