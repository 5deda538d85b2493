//! Redis forgets everything in the middle of it: work in every state, and more of it every moment.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    Bench, must,
    rows::{self, Rows},
    stage::{Hook, LOOK, Stage, settings},
};
use crate::{
    compare::rounds::generate,
    generator::Load,
    stack::{Engine, Error, metric},
};

/// Streamed and not delivered when Redis forgets.
const UNDELIVERED: u64 = 100_000;
/// Retries, due later.
const RETRIES: u64 = 50_000;
/// Dead letters that were requeued a moment ago.
const LETTERS: u64 = 100;

/// Events a second all the time.
const RATE: f64 = 5000.0;

/// When the retries are due, from when they are written on: after the index is in order again.
const AFTER: Duration = Duration::from_secs(60);
const OVER: Duration = Duration::from_secs(10);

struct Hooks {
    flow: Hook,
    backlog: Hook,
    dead: Hook,
}

/// FLUSHALL under load, with as many settled events behind it as `size` says (none without it).
///
/// # Errors
/// When an event is lost or repeated, or a retry's time changed.
pub async fn wiped(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "wiped", "api", &[]).await?;
    let hooks = Hooks {
        flow: stage.hook(None, "flow", &Value::Null).await?,
        backlog: stage.hook(None, "backlog", &Value::Null).await?,
        dead: stage.hook(None, "dead", &json!({ "retry": { "maxAttempts": 1 } })).await?,
    };
    stage.hook(None, "retried", &Value::Null).await?;
    letters(&stage, &hooks.dead).await?;
    let settled = bench.size.unwrap_or(0);
    if settled > 0 {
        let written = rows::settled(&stage.postgres, settled, hooks.flow.id).await?;
        println!("wiped: {settled} settled events written in {:.0} s", written.as_secs_f64());
    }
    let work = Rows {
        n: RETRIES,
        webhooks: "retried",
        reason: "retry: the endpoint refused",
        after: AFTER,
        span: OVER,
    };
    let written = Instant::now();
    rows::insert(&stage.postgres, work).await?;
    let bulk = Load { bulk: Some(500), ..stage.load(vec![hooks.backlog.key.clone()], 50.0, 4) };
    let bulk = generate(bulk).await?.accepted_in_all * 500;
    must(bulk == UNDELIVERED, || format!("{bulk} of {UNDELIVERED} were taken"))?;
    requeue(&stage, &hooks.dead.key).await?;

    let dispatcher = dispatcher(&stage)?;
    let seconds = bench.seconds.unwrap_or(60);
    let load = tokio::spawn(generate(stage.load(vec![hooks.flow.key.clone()], RATE, seconds)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let owed = async || -> Result<u64, Error> {
        let taken = stage.gateway_figure("ingest_events_total").await? as u64;
        // All but the retries, which are not due yet.
        Ok(taken.saturating_sub(stage.ledger().await?.all.unique))
    };
    let before = owed().await?;
    stage
        .postgres
        .batch_execute("CREATE TABLE before AS SELECT event_id, webhook_id, next_at FROM scheduled")
        .await?;
    must(written.elapsed() < AFTER / 2, || "the retries are due too soon for this machine".to_owned())?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut stage.redis.clone()).await?;
    let start = Instant::now();
    in_order(&stage, &dispatcher, start).await?;
    let ordered = start.elapsed();
    let waiting = owed().await?;
    // What came in the last fifth of a second is on its way.
    while owed().await? > RATE as u64 / 5 {
        must(start.elapsed() < Duration::from_secs(300), || "the backlog does not end".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
    let caught_up = start.elapsed();
    let moved = stage
        .count(
            "SELECT count(*) FROM before JOIN scheduled USING (event_id, webhook_id)
             WHERE abs(extract(epoch FROM before.next_at - scheduled.next_at)) > 1 AND before.next_at > now()",
        )
        .await?;
    let report = load.await??;
    // More than were accepted, where the last answers came too late.
    let all = stage.count("SELECT count(*) FROM events").await? - settled;
    let accepted = report.accepted_in_all + UNDELIVERED + LETTERS + RETRIES;
    must(all >= accepted, || format!("{accepted} were accepted, {all} are stored"))?;
    let ledger = stage.arrived(all).await?;
    let late = ledger.latency.get("retried").copied().unwrap_or_default();
    let figure =
        async |name: &str| metric(&stage.client, dispatcher.gateway, &format!("eventpulse_{name}")).await;
    let restreamed =
        figure("recover_restreamed_total").await? + stage.gateway_figure("recover_restreamed_total").await?;
    println!(
        "wiped: {settled} settled, {before} undelivered of {:.0}/s, {RETRIES} retries, {LETTERS} requeued letters; in order after {:.1} s \
         with {waiting} owed, {restreamed} batches streamed again; all delivered once each, caught up {:.1} s after the wipe",
        report.accepted_in_all as f64 / seconds as f64,
        ordered.as_secs_f64(),
        caught_up.as_secs_f64(),
    );
    println!(
        "  producers: {} refused, p50 {:.1} p99 {:.1} ms; retries at most {:.2} s late, {moved} moved; swept {:.0}, repeats {:.0}",
        report.limited + report.unavailable + report.other + report.broken,
        report.latency.p50,
        report.latency.p99,
        late.max / 1000.0,
        figure("sweep_missing_total").await? + stage.gateway_figure("sweep_missing_total").await?,
        figure("deliver_repeats_total").await?,
    );
    dispatcher.process.stop();
    stage.stop();
    must(moved == 0, || format!("{moved} retries have another time"))
}

pub(super) fn dispatcher(stage: &Stage<'_>) -> Result<Engine, Error> {
    let bench = stage.bench;
    let (url, redis) = (&stage.engine.database_url, bench.servers.redis.url());
    Engine::start(&bench.engine, "dispatcher", url, &redis, &settings(bench, &[]), &bench.servers.dir)
}

/// Makes dead letters, with a dispatcher that is gone afterwards.
async fn letters(stage: &Stage<'_>, dead: &Hook) -> Result<(), Error> {
    stage.behave("dead", "status=500").await?;
    let dispatcher = dispatcher(stage)?;
    let sent = generate(stage.load(vec![dead.key.clone()], LETTERS as f64, 1)).await?.accepted_in_all;
    must(sent == LETTERS, || format!("{sent} of {LETTERS} were taken"))?;
    stage.counted("SELECT count(*) FROM dlq_entries", LETTERS).await?;
    dispatcher.process.stop();
    stage.behave("dead", "").await
}

async fn requeue(stage: &Stage<'_>, key: &str) -> Result<(), Error> {
    let url = format!("http://{}/dlq/retry", stage.engine.gateway);
    let request = stage.client.post(url).header("x-api-key", key).json(&json!({ "limit": LETTERS }));
    let answer: Value = request.send().await?.error_for_status()?.json().await?;
    must(answer["requeued"] == LETTERS, || format!("the letters were not requeued: {answer}"))
}

/// Waits until both processes take work again.
async fn in_order(stage: &Stage<'_>, dispatcher: &Engine, start: Instant) -> Result<(), Error> {
    loop {
        let (mut rebuilds, mut open) = (0.0, true);
        for at in [stage.engine.gateway, dispatcher.gateway] {
            rebuilds += metric(&stage.client, at, "eventpulse_recover_rebuilds_total").await?;
        }
        for at in [stage.engine.gateway, dispatcher.gateway] {
            open &= metric(&stage.client, at, "eventpulse_recover_redis_in_order").await? == 1.0;
        }
        if open && rebuilds > 0.0 {
            return Ok(());
        }
        must(start.elapsed() < Duration::from_secs(120), || "Redis's index is not made again".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
}
