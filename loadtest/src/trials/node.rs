//! A receiver on Node as it comes: it closes connections that idle for five seconds, when the next event is due.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bench, must, stage::Stage};
use crate::{
    compare::rounds::generate,
    generator::Load,
    stack::{Error, Process, register_as},
};

/// Seconds between two events: what Node waits for before it closes a connection.
const EVERY: f64 = 5.0;

/// One event every five seconds, for ten minutes.
///
/// # Errors
/// When an attempt fails.
pub async fn node(bench: &Bench) -> Result<(), Error> {
    let stage = Stage::start(bench, "node", "both", &[]).await?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/node/receiver.mjs");
    let (node, url) = Process::that_says(Path::new("node"), &[script])?;
    let body = json!({ "name": "node", "url": format!("{url}/hook") });
    let answer = register_as(&stage.client, stage.engine.gateway, None, &body).await?;
    let key = answer["apiKey"].as_str().ok_or("an answer without a key")?.to_owned();
    let load = stage.load(vec![key], 1.0 / EVERY, bench.seconds.unwrap_or(600));
    // More would idle for longer than the gateway leaves them open.
    let report = generate(Load { connections: 1, ..load }).await?;
    let sent = report.accepted_in_all;
    let done = stage.counted("SELECT count(*) FROM delivery_attempts WHERE status = 'success'", sent).await?;
    let failed = stage.count("SELECT count(*) FROM delivery_attempts WHERE status <> 'success'").await?;
    let seen: Value = stage.client.get(format!("{url}/seen")).send().await?.json().await?;
    let attempts = stage.figure("deliver_attempts_total").await?;
    println!(
        "node: {sent} events, one every {EVERY} s; {} requests, {failed} failed attempts of {attempts}, {} ms late at most, {} connections; the last recorded {:.1} s after the load",
        seen["requests"],
        seen["latest"],
        seen["connections"],
        done.as_secs_f64(),
    );
    let came = seen["requests"].as_u64();
    stage.stop();
    node.stop();
    must(failed == 0 && attempts as u64 == sent && came == Some(sent), || {
        format!("{sent} events, {came:?} requests, {attempts} attempts, of which {failed} failed")
    })
}
