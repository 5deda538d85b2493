//! Many events: each exactly once, nothing left behind.

use std::{collections::HashSet, sync::Arc};

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, count, postgres, swept_soon};

/// Sends `n` events from `connections` at once; returns their ids.
async fn load(app: &Arc<App>, account: &Account, n: usize, connections: usize) -> HashSet<i64> {
    let tasks: Vec<_> = (0..connections)
        .map(|c| {
            let (app, key) = (app.clone(), account.key.clone());
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for i in (c..n).step_by(connections) {
                    ids.push(app.send(&key, "load.test", json!({ "i": i, "pad": "x".repeat(200) })).await);
                }
                ids
            })
        })
        .collect();
    let mut all = HashSet::new();
    for task in tasks {
        for id in task.await.expect("a sender") {
            assert!(all.insert(id), "{id} was given twice");
        }
    }
    all
}

async fn deliveries(app: &App, what: &str, sql: &str, n: i64) {
    let db = postgres(&app.database).await;
    eventually(what, PATIENCE * 3, async || {
        let found = count(&db, sql).await;
        if found == n { Ok(()) } else { Err(format!("{found} of {n}")) }
    })
    .await;
}

async fn stream_is_empty(app: &App) {
    let (mut redis, keys) = app.redis().await;
    eventually("the stream and due are empty", PATIENCE, async || {
        let key = |what| format!("{keys}{what}");
        let events: i64 = redis::cmd("XLEN").arg(key("events")).query_async(&mut redis).await.unwrap();
        let due: i64 = redis::cmd("ZCARD").arg(key("due")).query_async(&mut redis).await.unwrap();
        if events + due == 0 { Ok(()) } else { Err(format!("{events} entries, {due} due")) }
    })
    .await;
}

const DELIVERED: &str = "SELECT count(*) FROM delivery_attempts WHERE status = 'success'";

#[tokio::test]
async fn twenty_thousand_events_are_delivered_exactly_once() {
    let app = Arc::new(App::with("twenty", swept_soon).await);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let sent = load(&app, &account, 20_000, 64).await;
    deliveries(&app, "all delivered", DELIVERED, 20_000).await;
    let got: Vec<i64> = receiver
        .requests()
        .iter()
        .map(|r| r.headers["x-eventpulse-event-id"].to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(got.len(), 20_000, "each once");
    assert_eq!(got.into_iter().collect::<HashSet<_>>(), sent);
    app.settled().await;
    stream_is_empty(&app).await;
    for name in ["eventpulse_sweep_missing_total", "eventpulse_deliver_repeats_total"] {
        assert_eq!(app.metric(name), 0.0, "{name}");
    }
    // The lists agree: every page, each event once, each with its attempt.
    let (mut before, mut listed) = (i64::MAX, HashSet::new());
    while listed.len() < sent.len() {
        let (_, body) = app.get(&account.key, &format!("/events?limit=200&before={before}")).await;
        let page = body["events"].as_array().unwrap().clone();
        assert!(!page.is_empty(), "the list ends after {}", listed.len());
        for event in &page {
            before = event["id"].as_i64().unwrap();
            assert!(listed.insert(before));
        }
    }
    assert_eq!(listed, sent);
    for id in sent.iter().take(20) {
        let (_, body) = app.get(&account.key, &format!("/events/{id}/attempts")).await;
        let attempts = body["attempts"].as_array().unwrap();
        assert_eq!((attempts.len(), &attempts[0]["status"]), (1, &Value::from("success")));
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_now_and_then_gets_everything() {
    let app = Arc::new(
        App::with("third", |c| {
            swept_soon(c);
            c.retry.schedule = ["100ms"; 20].join(",").parse().unwrap();
        })
        .await,
    );
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    receiver.script(|r| if r.n % 3 == 2 { Reply::status(500) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    load(&app, &account, 5000, 64).await;
    deliveries(&app, "all delivered", DELIVERED, 5000).await;
    app.settled().await;
    stream_is_empty(&app).await;
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM dlq_entries").await, 0);
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    let failed = count(&db, "SELECT count(*) FROM delivery_attempts WHERE status = 'failed'").await;
    assert_eq!(receiver.count() as i64, 5000 + failed, "every call is an attempt and every attempt a call");
}

#[tokio::test]
async fn an_endpoint_that_always_fails_fills_the_dead_letters_and_can_be_caught_up() {
    let app = Arc::new(App::with("always", swept_soon).await);
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    receiver.script(|_| Reply::status(500));
    let account = app.register(&receiver.url("/")).await;
    load(&app, &account, 2000, 64).await;
    deliveries(&app, "all dead", "SELECT count(*) FROM dlq_entries", 2000).await;
    app.settled().await;
    receiver.script(|_| Reply::ok());
    let (mut before, mut requeued) = (i64::MAX, 0);
    loop {
        let (_, body) = app.get(&account.key, &format!("/dlq?limit=200&before={before}")).await;
        let page = body["dlqEntries"].as_array().unwrap().clone();
        let Some(last) = page.last() else { break };
        before = last["id"].as_i64().unwrap();
        for entry in &page {
            assert_eq!(app.post(&account.key, &format!("/dlq/{}/retry", entry["id"])).await.0, 200);
            requeued += 1;
        }
    }
    assert_eq!(requeued, 2000);
    deliveries(&app, "all delivered in their second round", DELIVERED, 2000).await;
    app.settled().await;
    stream_is_empty(&app).await;
}
