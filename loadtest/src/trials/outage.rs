//! Redis is killed under load, and is back a minute later.

use std::time::{Duration, Instant};

use eventpulse_embedded::Redis;
use serde_json::Value;

use super::{
    Bench, must,
    stage::{LOOK, Stage},
};
use crate::{compare::rounds::generate, cpu::resident_kib, stack::Error};

/// Events a second all the time.
const RATE: f64 = 1000.0;

/// Load before Redis is killed, and after it is back.
const BEFORE: u64 = 15;
const AFTER: u64 = 30;

/// SIGKILL for Redis and no Redis for a minute, under a steady load.
///
/// # Errors
/// When a producer is refused, or an event is lost or repeated.
pub async fn outage(bench: &Bench) -> Result<(), Error> {
    // One of its own, because it is killed.
    let dir = bench.servers.dir.join("outage");
    std::fs::create_dir_all(&dir)?;
    let mut redis = Redis::start(&dir)?;
    let url = redis.url();
    let stage = Stage::start(bench, "outage", "both", &[("REDIS_URL", url.as_str())]).await?;
    let hook = stage.hook(None, "main", &Value::Null).await?;
    let down = bench.seconds.unwrap_or(60);
    let (rate, pid) = (bench.size.map_or(RATE, |rate| rate as f64), stage.engine.process.pid());
    let load = tokio::spawn(generate(stage.load(vec![hook.key], rate, BEFORE + down + AFTER)));
    tokio::time::sleep(Duration::from_secs(BEFORE)).await;
    let before = resident_kib(pid);
    redis.kill()?;
    tokio::time::sleep(Duration::from_secs(down)).await;
    let (during, delivered) = (resident_kib(pid), stage.ledger().await?.all.unique);
    let owed = stage.gateway_figure("ingest_events_total").await? as u64 - delivered;
    redis.restart()?;
    let back = Instant::now();
    // What came in the last fifth of a second is on its way.
    let behind = async || -> Result<f64, Error> {
        Ok(stage.gateway_figure("ingest_events_total").await? - stage.ledger().await?.all.unique as f64)
    };
    while behind().await? > rate / 5.0 {
        must(back.elapsed() < Duration::from_secs(300), || "the backlog does not end".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
    let caught_up = back.elapsed();
    let report = load.await??;
    stage.arrived(report.accepted_in_all).await?;
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
    let peak =
        info.lines().find_map(|line| line.strip_prefix("used_memory_peak_human:")).unwrap_or("unknown");
    let refused = report.limited + report.unavailable + report.other + report.broken;
    println!(
        "outage: Redis down for {down} s at {rate}/s: {refused} refused, answers p50 {:.1} p99 {:.1} max {:.0} ms; {owed} owed when it came back, \
         caught up after {:.1} s; all {} delivered once each; engine {before} KiB before, {during} at its end, {} after; Redis {peak} at most",
        report.latency.p50,
        report.latency.p99,
        report.latency.max,
        caught_up.as_secs_f64(),
        report.accepted_in_all,
        resident_kib(pid),
    );
    stage.stop();
    redis.stop()?;
    must(refused == 0, || format!("{refused} producers were refused"))
}
