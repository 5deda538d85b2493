//! An endpoint that never works, and one that comes back.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{
    Bench, must,
    stage::{LOOK, Stage, each},
};
use crate::{
    compare::rounds::{generate, sampled},
    stack::Error,
};

/// Waits of the webhook that never works, in seconds; their sum is what a dead letter may take.
const WAITS: [u64; 3] = [2, 4, 6];

/// Every event of a webhook that answers 500 for ever becomes a dead letter.
///
/// # Errors
/// When one does not.
pub async fn failing(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "failing", "both", &[]).await?;
    let schedule: Vec<String> = WAITS.iter().map(|wait| format!("{wait}s")).collect();
    let hook = stage.hook(None, "failing", &json!({ "retry": { "schedule": schedule } })).await?;
    stage.behave("failing", "status=500").await?;
    let size = bench.size.unwrap_or(20_000);
    let before = stage.receiver_time();
    let ((sent, last, sending), used) = sampled(stage.pids(), async || {
        let start = Instant::now();
        let report = generate(stage.load(vec![hook.key.clone()], size as f64 / 10.0, 10)).await?;
        let (sent, sending) = (report.accepted_in_all, start.elapsed());
        let last = stage.counted("SELECT count(*) FROM dlq_entries", sent).await?;
        Ok((sent, last, sending))
    })
    .await?;
    let cost = each(used, stage.receiver_time() - before, sent);
    let ledger = stage.ledger().await?;
    let letters =
        stage.count("SELECT count(DISTINCT event_id) FROM dlq_entries WHERE requeued_at IS NULL").await?;
    let left = stage.count("SELECT count(*) FROM scheduled").await?;
    let plan: u64 = WAITS.iter().sum();
    println!(
        "failing: {sent} events in {:.1} s; all dead letters {:.1} s after the last, schedule + 20 % is {:.1} s; {} calls; {cost}",
        sending.as_secs_f64(),
        last.as_secs_f64(),
        plan as f64 * 1.2,
        ledger.all.calls,
    );
    for row in stage.postgres.query("SELECT reason_code, count(*) FROM dlq_entries GROUP BY 1", &[]).await? {
        println!("  {} {}", row.get::<_, &str>(0), row.get::<_, i64>(1));
    }
    stage.stop();
    must(letters == sent && left == 0 && ledger.all.unique == 0, || {
        format!("{sent} events were accepted; {letters} are dead letters, {left} still scheduled")
    })
}

/// An endpoint answers 503 for two minutes and comes back: everything arrives once, and meanwhile one request at a time
/// asks whether it is back.
///
/// # Errors
/// When something is lost or repeated, or more than one request probes.
pub async fn recovery(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "recovery", "both", &[]).await?;
    // Longer than the outage, and without a long wait at the end for what failed again and again.
    let hook = stage.hook(None, "main", &json!({ "retry": { "schedule": vec!["5s"; 90] } })).await?;
    let (down, rate) = (bench.seconds.unwrap_or(120), 200.0);
    let load = tokio::spawn(generate(stage.load(vec![hook.key], rate, down + 20)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.behave("main", "status=503").await?;
    let fell = Instant::now();
    let healthy = stage.counts("main").await?;
    while stage.figure("lane_breakers_open").await? < 1.0 {
        must(fell.elapsed() < Duration::from_secs(30), || "the breaker does not open".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
    let opened = fell.elapsed();
    // What was on its way when the breaker opened has been answered.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = stage.counts("main").await?;
    let failed = before.calls - healthy.calls;
    stage.behave("main", "status=503").await?;
    tokio::time::sleep((fell + Duration::from_secs(down)).saturating_duration_since(Instant::now())).await;
    let probes = stage.counts("main").await?;
    stage.behave("main", "").await?;
    let back = Instant::now();
    while stage.counts("main").await?.unique == probes.unique {
        must(back.elapsed() < Duration::from_secs(60), || "nothing comes after the recovery".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
    let first = back.elapsed();
    let start = Instant::now();
    // All but what came in the last fifth of a second.
    let behind = async || -> Result<u64, Error> {
        let (unique, all) =
            (stage.counts("main").await?.unique, stage.gateway_figure("ingest_events_total").await?);
        Ok((all as u64).saturating_sub(unique + rate as u64 / 5))
    };
    let waiting = behind().await?;
    while behind().await? > 0 {
        must(start.elapsed() < Duration::from_secs(120), || "the backlog does not end".to_owned())?;
        tokio::time::sleep(LOOK).await;
    }
    let (drained, taken) =
        (start.elapsed().as_secs_f64(), stage.counts("main").await?.unique - probes.unique);
    let report = load.await??;
    let ledger = stage.arrived(report.accepted_in_all).await?;
    println!(
        "recovery: down for {down} s at {rate}/s: {failed} requests until the breaker held ({:.1} s), then {} probes, {} at a time; first delivery {:.1} s after the recovery, \
         {waiting} waited, {:.0}/s until none did ({drained:.1} s); {} delivered once each, {} calls",
        opened.as_secs_f64(),
        probes.calls - before.calls,
        probes.at_once,
        first.as_secs_f64(),
        taken as f64 / drained.max(0.001),
        ledger.all.unique,
        ledger.all.calls,
    );
    stage.stop();
    must(probes.at_once <= 1, || format!("{} requests at a time behind an open breaker", probes.at_once))
}
