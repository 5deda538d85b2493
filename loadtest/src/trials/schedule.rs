//! A schedule with a million rows: due in the same minute, or behind one endpoint that hangs.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    Bench, must,
    rows::{self, Rows},
    stage::{Stage, each},
    watch::{REDIS_MAX, Watch, redis_bytes},
};
use crate::{
    compare::rounds::{generate, sampled},
    cpu::Sample,
    generator::Load,
    receiver::Latency,
    stack::Error,
};

/// `retry.due_max`, as it is without a word about it.
const DUE_MAX: u64 = 100_000;

/// Rows that a machine such as a laptop writes in a second; what is due must not be before all is written.
const WRITTEN_A_SECOND: u64 = 20_000;

/// A million retries of 200 webhooks fall due in the same minute.
///
/// # Errors
/// When one does not arrive once, or `due` holds more than it may.
pub async fn minute(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "minute", "both", &[]).await?;
    let n = bench.size.unwrap_or(1_000_000);
    for hook in 0..200 {
        stage.hook(None, &format!("bulk{hook}"), &Value::Null).await?;
    }
    let pids = stage.pids();
    let own = redis::Client::open(bench.servers.redis.url())?.get_multiplexed_async_connection().await?;
    let watch = Watch::start(own, stage.due().await?, pids.engine);
    let after = Duration::from_secs(n / WRITTEN_A_SECOND + 5);
    let work = Rows {
        n,
        webhooks: "bulk",
        reason: "retry: the endpoint refused (HTTP 500)",
        after,
        span: Duration::from_secs(60),
    };
    let began = Instant::now();
    let written = rows::insert(&stage.postgres, work).await?;
    must(written < after, || format!("writing {n} rows took {written:?}, longer than expected"))?;
    let before = stage.receiver_time();
    tokio::time::sleep((began + after).saturating_duration_since(Instant::now())).await;
    let start = Instant::now();
    let (ledger, used) = sampled(pids, async || stage.arrived(n).await).await?;
    let (took, seen) = (start.elapsed().as_secs_f64(), watch.end().await?);
    let late = ledger.latency.values().fold(0f64, |most, latency| most.max(latency.max)) / 1000.0;
    let ms = |quantile| seen.pings.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "minute: {n} rows due within 60 s (written in {:.0} s), delivered once each in {took:.0} s, {:.0}/s, the latest {late:.0} s late",
        written.as_secs_f64(),
        n as f64 / took,
    );
    println!(
        "  due: {} members at most, {:.0} bytes each; PING p50 {:.2} p99 {:.2} max {:.1} ms; engine {} KiB at most",
        seen.due,
        seen.member_bytes,
        ms(0.5),
        ms(0.99),
        seen.pings.max() as f64 / 1000.0,
        seen.resident_kib,
    );
    println!(
        "  {}; Redis {} KiB at most",
        each(used, stage.receiver_time() - before, n),
        seen.redis_bytes >> 10
    );
    stage.stop();
    must(seen.due <= DUE_MAX, || format!("`due` had {} members", seen.due))?;
    must(seen.redis_bytes < REDIS_MAX, || format!("Redis used {} bytes", seen.redis_bytes))
}

/// One phase beside or without an endpoint that hangs.
struct Phase {
    commands: f64,
    used: Sample,
    seconds: f64,
    delivered: u64,
    late: Latency,
}

/// Half a million deliveries wait for an endpoint that hangs, beside 20 healthy webhooks.
///
/// # Errors
/// When a healthy delivery is lost or repeated, or a parked one is gone.
pub async fn hung(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "hung", "both", &[]).await?;
    let mut keys = Vec::new();
    for hook in 0..20 {
        keys.push(stage.hook(None, &format!("good{hook}"), &Value::Null).await?.key);
    }
    let n = bench.size.unwrap_or(500_000);
    let load = stage.load(keys, 1000.0, bench.seconds.unwrap_or(30));
    let without = phase(&stage, load.clone()).await?;
    stage.hook(None, "hung", &Value::Null).await?;
    stage.behave("hung", "hang=true").await?;
    let parked = Rows { n, webhooks: "hung", reason: "breaker", after: Duration::ZERO, span: Duration::ZERO };
    let written = rows::insert(&stage.postgres, parked).await?;
    let start = Instant::now();
    // Until its breaker is open, which takes a time-out.
    while stage.figure("lane_breakers_open").await? < 1.0 {
        must(start.elapsed() < Duration::from_secs(60), || "the breaker does not open".to_owned())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let opened = start.elapsed();
    let with = phase(&stage, load).await?;
    let redis = redis_bytes(&mut stage.redis.clone()).await?;
    let waiting = stage.count("SELECT count(*) FROM scheduled").await?;
    let letters = stage.count("SELECT count(*) FROM dlq_entries").await?;
    println!(
        "hung: {n} parked (written in {:.0} s), breaker open after {:.1} s; {waiting} still wait; Redis {} KiB",
        written.as_secs_f64(),
        opened.as_secs_f64(),
        redis >> 10
    );
    for (name, phase) in [("without", &without), ("with it", &with)] {
        println!(
            "  {name}: healthy {:.0}/s, p50 {:.1} p99 {:.1} ms late at most; Redis {:.0} commands/s; cores engine {:.3} postgres {:.3} redis {:.3}",
            phase.delivered as f64 / phase.seconds,
            phase.late.p50,
            phase.late.p99,
            phase.commands,
            phase.used.engine as f64 / 1e6 / phase.seconds,
            phase.used.postgres as f64 / 1e6 / phase.seconds,
            phase.used.redis as f64 / 1e6 / phase.seconds,
        );
    }
    let ratio = |with: f64, without: f64| with / without.max(0.001);
    println!(
        "  with / without: healthy rate {:.3}, Redis commands {:.2}, CPU engine {:.2} postgres {:.2} redis {:.2}",
        ratio(with.delivered as f64 / with.seconds, without.delivered as f64 / without.seconds),
        ratio(with.commands, without.commands),
        ratio(with.used.engine as f64, without.used.engine as f64),
        ratio(with.used.postgres as f64, without.used.postgres as f64),
        ratio(with.used.redis as f64, without.used.redis as f64),
    );
    stage.stop();
    must(waiting == n && letters == 0, || format!("of {n} parked {waiting} wait, {letters} are dead letters"))
}

async fn phase(stage: &Stage<'_>, load: Load) -> Result<Phase, Error> {
    stage.client.delete(format!("{}/ledger", stage.receiver_url)).send().await?.error_for_status()?;
    let mut redis = stage.redis.clone();
    let mut commands = async || -> Result<f64, Error> {
        let info: String = redis::cmd("INFO").arg("stats").query_async(&mut redis).await?;
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        Ok(line.ok_or("Redis does not count its commands")?.trim().parse()?)
    };
    let (start, before) = (Instant::now(), commands().await?);
    let (ledger, used) = sampled(stage.pids(), async || {
        let report = generate(load).await?;
        stage.arrived(report.accepted_in_all).await
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let most = |of: fn(&Latency) -> f64| ledger.latency.values().map(of).fold(0.0, f64::max);
    Ok(Phase {
        commands: (commands().await? - before) / seconds,
        used,
        seconds,
        delivered: ledger.all.unique,
        late: Latency { p50: most(|late| late.p50), p99: most(|late| late.p99), max: most(|late| late.max) },
    })
}
