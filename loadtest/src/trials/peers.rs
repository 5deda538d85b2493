//! Several dispatchers and one gateway: what is limited for a webhook is limited over all of them.

use std::time::Duration;

use serde_json::json;

use super::{
    Bench, must,
    stage::{Stage, settings},
};
use crate::{
    compare::rounds::generate,
    stack::{Engine, Error},
};

const DISPATCHERS: usize = 3;

/// Requests a second, and at a time, that two of the webhooks allow.
const RATE: u64 = 100;
const IN_FLIGHT: u64 = 6;

/// Time until every dispatcher knows of the others and windows have grown, and until the breaker is open for all.
const SETTLE: Duration = Duration::from_secs(10);

/// A webhook with a rate, one with a limit of requests at a time, and one whose endpoint is dead.
///
/// # Errors
/// When a limit is exceeded, or something is lost or repeated.
pub async fn peers(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "peers", "api", &[]).await?;
    let redis = bench.servers.redis.url();
    let mut dispatchers = Vec::new();
    for _ in 0..DISPATCHERS {
        let url = &stage.engine.database_url;
        dispatchers.push(Engine::start(
            &bench.engine,
            "dispatcher",
            url,
            &redis,
            &settings(bench, &[]),
            &bench.servers.dir,
        )?);
    }
    let limited = stage.hook(None, "limited", &json!({ "rateLimit": RATE })).await?;
    let narrow = stage.hook(None, "narrow", &json!({ "maxInFlight": IN_FLIGHT })).await?;
    stage.behave("narrow", "delay_ms=200").await?;
    let dead = stage.hook(None, "dead", &json!({ "retry": { "schedule": vec!["5s"; 60] } })).await?;
    stage.behave("dead", "status=503").await?;
    let measured = bench.seconds.unwrap_or(30);
    let length = measured + SETTLE.as_secs();
    // More than each of the first two lets through, so that their limit is what is seen.
    let loads = [(limited.key, 150.0), (narrow.key, 45.0), (dead.key, 50.0)]
        .map(|(key, rate)| tokio::spawn(generate(stage.load(vec![key], rate, length))));
    tokio::time::sleep(SETTLE).await;
    let known = stage.peers(&dispatchers).await?;
    let before = stage.ledger().await?;
    for (name, manner) in [("limited", ""), ("narrow", "delay_ms=200"), ("dead", "status=503")] {
        stage.behave(name, manner).await?;
    }
    tokio::time::sleep(Duration::from_secs(measured)).await;
    let after = stage.ledger().await?;
    let calls = |name: &str| after.hooks[name].calls - before.hooks[name].calls;
    let rate = calls("limited") as f64 / measured as f64;
    println!(
        "peers: {DISPATCHERS} dispatchers, each knows of {known:?}; limit {RATE}/s: {rate:.1}/s at the receiver; limit {IN_FLIGHT} at a time, 200 ms a call: {} at a time, {:.1}/s; \
         dead: {} probes in {measured} s, {} at a time",
        after.hooks["narrow"].at_once,
        calls("narrow") as f64 / measured as f64,
        calls("dead"),
        after.hooks["dead"].at_once,
    );
    let mut accepted = 0;
    for load in loads {
        accepted += load.await??.accepted_in_all;
    }
    stage.behave("dead", "").await?;
    stage.arrived(accepted).await?;
    println!("  the dead one works again: all {accepted} delivered once each");
    dispatchers.into_iter().for_each(|dispatcher| dispatcher.process.stop());
    let (narrow, dead) = (after.hooks["narrow"].at_once, after.hooks["dead"].at_once);
    stage.stop();
    must(rate <= RATE as f64 * 1.1, || format!("{rate:.1} requests a second where {RATE} are allowed"))?;
    must(narrow <= IN_FLIGHT, || format!("{narrow} requests at a time where {IN_FLIGHT} are allowed"))?;
    must(dead <= 1, || format!("{dead} probes at a time"))
}
