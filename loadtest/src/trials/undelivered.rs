//! Nobody delivers for a while: what a million events that wait cost Redis, and what their delivery does.

use std::time::Instant;

use serde_json::Value;

use super::{
    Bench, must,
    stage::Stage,
    watch::{REDIS_MAX, Watch, redis_bytes},
    wiped::dispatcher,
};
use crate::{compare::rounds::generate, cpu::resident_kib, generator::Load, stack::Error};

/// Requests a second, and events in each.
const RATE: f64 = 1000.0;
const BULK: usize = 20;

/// A million events with no dispatcher there, then one that delivers them.
///
/// # Errors
/// When an event is lost or repeated, or Redis uses more than it may.
pub async fn undelivered(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "undelivered", "api", &[]).await?;
    let key = stage.hook(None, "late", &Value::Null).await?.key;
    let n = bench.size.unwrap_or(1_000_000);
    let mut redis = stage.redis.clone();
    let empty = redis_bytes(&mut redis).await?;
    let seconds = n.div_ceil(RATE as u64 * BULK as u64);
    let load = Load { bulk: Some(BULK), ..stage.load(vec![key], RATE, seconds) };
    let report = generate(load).await?;
    let waiting = stage.count("SELECT count(*) FROM events").await?;
    must(waiting >= report.accepted_in_all * BULK as u64, || {
        format!("{} requests were accepted, {waiting} events are stored", report.accepted_in_all)
    })?;
    let full = redis_bytes(&mut redis).await?;
    let stream = stage.due().await?.replace(":due", ":events");
    let entries: u64 = redis::cmd("XLEN").arg(&stream).query_async(&mut redis).await?;
    println!(
        "undelivered: {waiting} events wait in {entries} entries; Redis {} KiB before, {} with them; gateway {} KiB",
        empty >> 10,
        full >> 10,
        resident_kib(stage.engine.process.pid()),
    );
    let own = redis::Client::open(bench.servers.redis.url())?.get_multiplexed_async_connection().await?;
    let dispatcher = dispatcher(&stage)?;
    let watch = Watch::start(own, stage.due().await?, dispatcher.process.pid());
    let start = Instant::now();
    stage.arrived(waiting).await?;
    let (took, seen) = (start.elapsed().as_secs_f64(), watch.end().await?);
    println!(
        "  delivered once each in {took:.0} s, {:.0}/s; Redis {} KiB at most, {} in the end; dispatcher {} KiB at most",
        waiting as f64 / took,
        seen.redis_bytes >> 10,
        redis_bytes(&mut redis).await? >> 10,
        seen.resident_kib,
    );
    dispatcher.process.stop();
    stage.stop();
    must(full.max(seen.redis_bytes) < REDIS_MAX, || {
        format!("Redis used {} bytes", full.max(seen.redis_bytes))
    })
}
