//! `eventpulse explain`, the real binary: what it says of events in each state, and what it does not say.

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, guests, receiver::Reply, stack};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, config, database, process, swept_soon};

/// Runs it; gives whether it succeeded, and what it said.
async fn explain(database: &str, redis: &str, arguments: &str) -> (bool, String) {
    let mut command = process::command(&format!("explain {arguments}"));
    command.env("DATABASE_URL", database).env("REDIS_URL", redis);
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

/// Waits until it says all of `parts` of an event; gives what it said.
async fn says(app: &App, event: i64, parts: &[&str]) -> String {
    let redis = stack().redis_url();
    eventually(&format!("it says {parts:?}"), PATIENCE * 2, async || {
        let (success, text) = explain(&app.database, &redis, &event.to_string()).await;
        match success && parts.iter().all(|part| text.contains(part)) {
            true => Ok(text),
            false => Err(text),
        }
    })
    .await
}

/// A new account whose webhook has more settings.
async fn register(app: &App, url: &str, settings: Value) -> Account {
    let account = app.register(url).await;
    let path = app.url(&format!("/webhooks/{}", account.webhook));
    let request = app.client.patch(path).header("x-api-key", &account.key).json(&settings);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    account
}

#[tokio::test]
async fn explain_says_where_an_event_is_and_what_comes_next() {
    let app = App::with("explain", swept_soon).await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.path.starts_with("/fail") { Reply::status(500) } else { Reply::ok() });
    let payload = json!({ "card": "PAYLOAD-4711" });

    let well = app.register(&receiver.url("/ok/PATH-TOKEN?key=QUERY-TOKEN")).await;
    let delivered = app.send(&well.key, "order.paid", payload.clone()).await;
    let parts =
        ["order.paid", "owed ", "attempt 1  success (delivered, HTTP 200)", "next: nothing: it is delivered"];
    let text = says(&app, delivered, &parts).await;
    for hidden in ["PAYLOAD-4711", "PATH-TOKEN", "QUERY-TOKEN", "whsec_", &well.secret, &well.key] {
        assert!(!text.contains(hidden), "{hidden} in\n{text}");
    }
    // Once its batch is swept, its attempt alone tells.
    app.settled().await;
    says(&app, delivered, &["its row is gone", "next: nothing: it is delivered"]).await;

    let patient = register(&app, &receiver.url("/fail"), json!({ "retry": { "schedule": ["1h"] } })).await;
    let retrying = app.send(&patient.key, "order.paid", payload.clone()).await;
    let parts =
        ["attempt 1  failed (http_status, HTTP 500)", "scheduled  attempt 2 in ", "next: attempt 2 in "];
    says(&app, retrying, &parts).await;
    let (success, text) = explain(&app.database, &stack().redis_url(), &format!("{retrying} --json")).await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let webhook = &report["webhooks"][0];
    assert!(success && webhook["isOwed"] == true, "{text}");
    assert_eq!((&report["event"], &report["type"]), (&json!(retrying), &json!("order.paid")));
    assert_eq!(
        (&webhook["attempts"][0]["responseCode"], &webhook["breakerOpen"]),
        (&json!(500), &json!(false))
    );
    assert_eq!(
        (&webhook["scheduled"]["reason"], &webhook["scheduled"]["attempt"]),
        (&json!("retry"), &json!(2))
    );

    let hasty = register(&app, &receiver.url("/fail"), json!({ "retry": { "maxAttempts": 1 } })).await;
    let dead = app.send(&hasty.key, "order.paid", payload.clone()).await;
    says(&app, dead, &["attempt 1  dead", "dead       letter ", "requeue it, POST /dlq/"]).await;

    let paused = register(&app, &receiver.url("/ok"), json!({ "state": "paused" })).await;
    let kept = app.send(&paused.key, "order.paid", payload.clone()).await;
    says(&app, kept, &[", paused", "its webhook is paused", "next: it is sent once the webhook is resumed"])
        .await;

    let picky = register(&app, &receiver.url("/ok"), json!({ "eventTypes": ["invoice.*"] })).await;
    let unmatched = app.send(&picky.key, "order.paid", payload.clone()).await;
    says(
        &app,
        unmatched,
        &["not owed   its event types do not match", "next: nothing: no webhook is owed it"],
    )
    .await;

    let strict = app.register(&receiver.url("/ok")).await;
    app.upload(&strict, guests::drop_odd()).await;
    let mut filtered = app.send(&strict.key, "order.paid", payload.clone()).await;
    while filtered % 2 == 0 {
        filtered = app.send(&strict.key, "order.paid", payload.clone()).await;
    }
    says(&app, filtered, &["attempt 1  filtered", "the webhook's transform dropped it"]).await;
    app.stop().await;
}

#[tokio::test]
async fn explain_needs_neither_redis_nor_a_running_process() {
    let gateway = App::of(config(&database("explain-alone").await), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let event = gateway.send(&account.key, "t", json!(1)).await;
    says(&gateway, event, &["streamed", "in the stream, not read yet", "none is running"]).await;
    let (success, text) = explain(&gateway.database, "redis://127.0.0.1:1/", &event.to_string()).await;
    assert!(success && text.contains("in Redis   unknown: "), "{text}");
    assert!(text.contains("next: Redis has to be reachable"), "{text}");
    let unknown = event + 1_000_000;
    let (success, text) = explain(&gateway.database, &stack().redis_url(), &unknown.to_string()).await;
    assert!(!success && text.contains(&format!("there is no event {unknown}")), "{text}");
    let (success, text) = explain("", "", "1").await;
    assert!(!success && text.contains("DATABASE_URL is not set"), "{text}");
    gateway.stop().await;
}

/// A gateway that cannot reach Redis keeps its batches; what is said of them depends on whether it lives.
#[tokio::test]
async fn explain_tells_a_living_owner_of_a_batch_from_a_dead_one() {
    let url = database("explain-owner").await;
    let mut command = process::serve(&url, "--role api");
    command.env("REDIS_URL", "redis://127.0.0.1:1/");
    let mut gateway = process::Process::spawn(command);
    let base = gateway.ready().await;
    let receiver = Receiver::start().await;
    // Only for its client and its checks; it takes over from nobody within this test.
    let mut settings = config(&url);
    settings.recover.dead_after_beats = 1000;
    let helper = App { base, ..App::of(settings, Roles::Api).await };
    let account = helper.register(&receiver.url("/")).await;
    let event = helper.send(&account.key, "t", json!(1)).await;
    says(&helper, event, &["not known to be streamed yet", "which lives", "puts its batch into Redis"]).await;
    gateway.signal(rustix::process::Signal::KILL);
    gateway.exit().await;
    says(&helper, event, &["which does not beat", "takes its batches over"]).await;
    helper.stop().await;
}
