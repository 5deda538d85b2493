//! Webhooks with modules of their own: what a filter costs, and what a hostile module costs the others.

use std::time::{Duration, Instant};

use eventpulse_testkit::guests;
use serde_json::{Value, json};

use super::{
    Bench, must,
    stage::{Hook, LOOK, Stage, settings},
};
use crate::{
    compare::{rounds::generate, spread},
    cpu::Sample,
    generator::{Load, Report},
    receiver::Latency,
    stack::{Engine, Error, metric},
};

/// Runs with and without the filter, by turns.
const ROUNDS: usize = 3;

/// Accounts beside a hostile one, and their events a second together.
const NEIGHBOURS: usize = 20;
const RATE: f64 = 500.0;

/// Events a second for the hostile one.
const HOSTILE_RATE: f64 = 1000.0;

impl Stage<'_> {
    /// Uploads a module with settings, and waits until it is ready.
    async fn upload(&self, hook: &Hook, wasm: Vec<u8>, settings: &Value) -> Result<(), Error> {
        let url = format!("http://{}/webhooks/{}/transform", self.engine.gateway, hook.id);
        let request = self.client.put(&url).header("x-api-key", &hook.key);
        let request = request.header("content-type", "application/wasm").body(wasm);
        request.send().await?.error_for_status()?;
        let change = json!({ "config": settings });
        loop {
            let shown: Value =
                self.client.get(&url).header("x-api-key", &hook.key).send().await?.json().await?;
            if shown["transform"]["state"] == "ready" {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        if settings.is_object() {
            let request = self.client.patch(&url).header("x-api-key", &hook.key).json(&change);
            request.send().await?.error_for_status()?;
        }
        Ok(())
    }
}

/// Deliveries a second through a filter that lets all of them pass, beside those without one: with both roles at work from the
/// first event sent to the last delivered, and from a full stream. The filter is the one that `--module` names, with `min` 100
/// as its setting; without it, a module that gives back what it gets.
///
/// # Errors
/// When a delivery is missing or comes twice.
pub async fn filter(bench: &Bench) -> Result<(), Error> {
    let module = match &bench.module {
        Some(path) => std::fs::read(path)?,
        None => guests::echo(),
    };
    let (mut whole, mut drain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let without = end_to_end(bench, "plain", None).await?;
        let with = end_to_end(bench, "filtered", Some(module.clone())).await?;
        println!("filter: end to end {without:.0}/s without, {with:.0} with = {:.2}", with / without);
        whole.push(with / without);
        let without = drained(bench, "plain", None).await?;
        let with = drained(bench, "filtered", Some(module.clone())).await?;
        println!("filter: from a full stream {without:.0}/s without, {with:.0} with = {:.2}", with / without);
        drain.push(with / without);
    }
    for (what, ratios) in [("end to end", whole), ("from a full stream", drain)] {
        let (median, least, most) = spread(ratios);
        println!("filter: {what} {median:.2} x the deliveries without one ({least:.2}-{most:.2})");
    }
    Ok(())
}

/// Events a second with both roles, of as many as are answered on 256 connections, until all of them are delivered.
async fn end_to_end(bench: &Bench, name: &str, module: Option<Vec<u8>>) -> Result<f64, Error> {
    let stage = Stage::start(bench, name, "both", &[]).await?;
    let hook = stage.hook(None, name, &Value::Null).await?;
    if let Some(module) = module {
        stage.upload(&hook, module, &json!({ "min": "100" })).await?;
    }
    let seconds = bench.seconds.unwrap_or(8);
    let load = Load { rate: None, connections: 256, ..stage.load(vec![hook.key], RATE, seconds) };
    let (start, before) = (Instant::now(), Sample::take(stage.pids()));
    // A refusal may be told a second after the last event was accepted, so the end of the load says nothing of that of the deliveries.
    let mut last = (start, 0);
    let report = tokio::select! {
        report = generate(load) => report?,
        error = watch(&stage, name, &mut last) => return Err(error),
    };
    let all = report.accepted_in_all;
    tokio::select! {
        ledger = stage.arrived(all) => ledger.map(drop)?,
        error = watch(&stage, name, &mut last) => return Err(error),
    }
    let done = all as f64;
    let took = if last.1 < all { start.elapsed() } else { last.0 - start }.as_secs_f64();
    let used = Sample::take(stage.pids()) - before;
    println!(
        "  {name}: {done:.0} events sent in {seconds} s and delivered in {took:.1}, {} refused; us each: engine {:.1} postgres {:.1} redis {:.1}; {} parked",
        report.limited + report.unavailable,
        used.engine as f64 / done,
        used.postgres as f64 / done,
        used.redis as f64 / done,
        stage.figure("lane_parked_total").await?
    );
    stage.stop();
    Ok(done / took)
}

/// Keeps when the receiver was last seen with more, and how many it had.
async fn watch(stage: &Stage<'_>, name: &str, last: &mut (Instant, u64)) -> Error {
    loop {
        match stage.counts(name).await {
            Ok(counts) if counts.unique > last.1 => *last = (Instant::now(), counts.unique),
            Ok(_) => {}
            Err(error) => return error,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn drained(bench: &Bench, name: &str, module: Option<Vec<u8>>) -> Result<f64, Error> {
    let stage = Stage::start(bench, name, "api", &[]).await?;
    let hook = stage.hook(None, name, &Value::Null).await?;
    if let Some(module) = module {
        stage.upload(&hook, module, &json!({ "min": "100" })).await?;
    }
    let seconds = bench.seconds.unwrap_or(4);
    let load = Load { rate: None, connections: 256, ..stage.load(vec![hook.key.clone()], RATE, seconds) };
    let report = generate(load).await?;
    let redis = bench.servers.redis.url();
    let own = settings(bench, &[]);
    let url = &stage.engine.database_url;
    let dispatcher = Engine::start(&bench.engine, "dispatcher", url, &redis, &own, &bench.servers.dir)?;
    let pids = dispatcher.pids(&bench.servers);
    let all = report.accepted_in_all as f64;
    // Neither the start nor the last few.
    let reach = async |part: f64| loop {
        let count = stage.counts(name).await?.unique;
        if count as f64 >= all * part {
            return Ok::<_, Error>((Instant::now(), count, Sample::take(pids)));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (start, from, before) = reach(0.1).await?;
    let (end, to, after) = reach(0.9).await?;
    stage.arrived(report.accepted_in_all).await?;
    let (done, used) = ((to - from) as f64, after - before);
    let figure =
        async |name: &str| metric(&stage.client, dispatcher.gateway, &format!("eventpulse_{name}")).await;
    let calls = figure("transform_calls_total").await?;
    let (parked, shelved) = (figure("lane_parked_total").await?, figure("lane_shelved_total").await?);
    println!(
        "  {name}: us each: dispatcher {:.1} postgres {:.1} redis {:.1}; {calls} calls of the module, {parked} parked, {shelved} shelved",
        used.engine as f64 / done,
        used.postgres as f64 / done,
        used.redis as f64 / done
    );
    dispatcher.process.stop();
    stage.stop();
    Ok(done / (end - start).as_secs_f64())
}

/// Latency of accounts beside one whose webhook's module is hostile, or takes nearly all of its time, against that beside one
/// without a module. The first run finds everything cold and is not counted; the two after it are of the same kind: their ratio is
/// the noise.
///
/// # Errors
/// When a healthy delivery is missing or comes twice.
pub async fn neighbours(bench: &Bench) -> Result<(), Error> {
    beside(bench, "cold", None).await?;
    let quiet = beside(bench, "nothing", None).await?;
    let cases: [(&str, Option<Vec<u8>>); 9] = [
        ("nothing_again", None),
        ("echo", Some(guests::echo())),
        ("spin_45_ms", Some(guests::spin_45_ms())),
        ("endless_loop", Some(guests::endless_loop())),
        ("memory_bomb", Some(guests::memory_bomb())),
        ("recursion", Some(guests::recursion())),
        ("trap", Some(guests::trap())),
        ("huge_output", Some(guests::huge_output())),
        ("log_flood", Some(guests::log_flood())),
    ];
    for (name, module) in cases {
        let late = beside(bench, name, module).await?;
        println!(
            "neighbours beside {name}: p50 {:.2} p99 {:.2} max {:.1} ms; p99 {:.2} x that beside nothing",
            late.p50,
            late.p99,
            late.max,
            late.p99 / quiet.p99.max(0.001)
        );
    }
    Ok(())
}

async fn beside(bench: &Bench, name: &str, module: Option<Vec<u8>>) -> Result<Latency, Error> {
    // It must go on failing for as long as this lasts.
    let own = [("EVENTPULSE_TRANSFORM__SUSPEND_AFTER", "0")];
    let stage = Stage::start(bench, name, "both", &own).await?;
    let hostile = stage.hook(None, "hostile", &Value::Null).await?;
    if let Some(module) = module {
        stage.upload(&hostile, module, &Value::Null).await?;
    }
    let mut keys = Vec::new();
    for _ in 0..NEIGHBOURS {
        keys.push(stage.hook(None, "healthy", &Value::Null).await?.key);
    }
    let seconds = bench.seconds.unwrap_or(20);
    let (bad, good) = (stage.load(vec![hostile.key], HOSTILE_RATE, seconds), stage.load(keys, RATE, seconds));
    let before = Sample::take(stage.pids());
    let (bad, good): (Result<Report, Error>, Result<Report, Error>) =
        tokio::join!(generate(bad), generate(good));
    let used = Sample::take(stage.pids()) - before;
    let (bad, good) = (bad?, good?);
    let deadline = Instant::now() + Duration::from_secs(30);
    while stage.counts("healthy").await?.unique < good.accepted_in_all && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    let mut ledger = stage.ledger().await?;
    let counts = ledger.hooks.remove("healthy").unwrap_or_default();
    must(counts.unique == good.accepted_in_all && counts.duplicates == 0, || {
        format!("{} events were accepted beside {name}; the receiver has {counts:?}", good.accepted_in_all)
    })?;
    println!(
        "  beside {name}: {} events for it, {} calls and {} failures of its module; engine {:.2} cores",
        bad.accepted_in_all,
        stage.figure("transform_calls_total").await?,
        stage.figure("transform_failures_total").await?,
        used.engine as f64 / 1e6 / seconds as f64
    );
    let late = ledger.latency.get("healthy").copied().unwrap_or_default();
    stage.stop();
    Ok(late)
}
