//! One account with many webhooks.

use std::time::Instant;

use serde_json::Value;

use super::{
    Bench,
    stage::{Stage, each},
};
use crate::{
    compare::rounds::{generate, sampled},
    cpu::Sample,
    stack::Error,
};

/// Events a second, each for all webhooks.
const RATE: u64 = 500;

/// Each of 50 webhooks gets each of 500 events a second.
///
/// # Errors
/// When something is lost or repeated.
pub async fn fanout(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "fanout", "both", &[]).await?;
    let webhooks = bench.size.unwrap_or(50);
    let first = stage.hook(None, "0", &Value::Null).await?;
    for n in 1..webhooks {
        stage.hook(Some(&first.key), &n.to_string(), &Value::Null).await?;
    }
    let seconds = bench.seconds.unwrap_or(20);
    let load = stage.load(vec![first.key], RATE as f64, seconds);
    let (start, mut receiver) = (Instant::now(), stage.receiver_time());
    let before = Sample::take(stage.pids());
    let ((report, during), used) = sampled(stage.pids(), async || {
        let report = generate(load).await?;
        Ok((report, stage.ledger().await?.all.unique))
    })
    .await?;
    let loaded = start.elapsed().as_secs_f64();
    let owed = report.accepted_in_all * webhooks;
    println!(
        "fanout: {} events to {webhooks} webhooks in {loaded:.1} s, answered in {:.1}/{:.1} ms (p50/p99); {:.0} deliveries/s of {} a second while they came, {} owed at their end",
        report.accepted_in_all,
        report.latency.p50,
        report.latency.p99,
        during as f64 / loaded,
        RATE * webhooks,
        owed.saturating_sub(during),
    );
    println!("  while they came, {}", each(used, stage.receiver_time() - receiver, during));
    let cores = |us: u64| us as f64 / 1e6 / loaded;
    println!(
        "  cores: engine {:.2} postgres {:.2} redis {:.2} receiver {:.2} this {:.2} others {:.2}",
        cores(used.engine),
        cores(used.postgres),
        cores(used.redis),
        cores(stage.receiver_time() - receiver),
        cores(used.own),
        cores(used.foreign().saturating_sub(stage.receiver_time() - receiver)),
    );
    let (drain, reached) = (Instant::now(), stage.ledger().await?.all.unique);
    stage.arrived(owed).await?;
    receiver = stage.receiver_time() - receiver;
    println!(
        "  {owed} delivered once each, the last {:.1} s after the load ({:.0}/s then); in all {}",
        drain.elapsed().as_secs_f64(),
        (owed - reached) as f64 / drain.elapsed().as_secs_f64(),
        each(Sample::take(stage.pids()) - before, receiver, owed),
    );
    println!(
        "  {} parked or shelved for want of room, {} deferred, of which {} were read again; {} connections opened",
        stage.figure("lane_parked_total").await?,
        stage.figure("lane_deferred_total").await?,
        stage.figure("lane_deferred_read_total").await?,
        stage.figure("deliver_connections_opened_total").await?,
    );
    stage.stop();
    Ok(())
}
