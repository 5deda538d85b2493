//! What a webhook's module makes of its deliveries: bodies, rows, retries, and nobody else's business.

use std::{collections::HashSet, sync::Arc};

use eventpulse::config::{Config, Roles};
use eventpulse_testkit::{
    Receiver, eventually, guests,
    receiver::{Recorded, Reply},
};
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::harness::{Account, App, PATIENCE, config, count, database, postgres, swept_soon};

impl App {
    /// Uploads a module that must be taken; returns its version once it is ready.
    pub(crate) async fn upload(&self, account: &Account, wasm: Vec<u8>) -> i64 {
        let path = format!("/webhooks/{}/transform", account.webhook);
        let request = self.client.put(self.url(&path)).header("x-api-key", &account.key);
        let response = request.header("content-type", "application/wasm").body(wasm).send().await;
        let response = response.expect("an answer");
        let status = response.status().as_u16();
        let body: Value = response.json().await.expect("JSON");
        assert!(matches!(status, 200..=202), "{status} {body}");
        let version = body["transform"]["version"].as_i64().expect("a version");
        eventually("the version is ready", PATIENCE, async || {
            let (_, body) = self.get(&account.key, &path).await;
            let versions = body["transform"]["versions"].as_array().cloned().unwrap_or_default();
            let ready = versions.iter().any(|v| v["version"] == version && v["state"] == "ready");
            if ready { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
        version
    }

    pub(crate) async fn set_transform(&self, account: &Account, change: Value) -> Value {
        let url = self.url(&format!("/webhooks/{}/transform", account.webhook));
        let request = self.client.patch(url).header("x-api-key", &account.key).json(&change);
        let response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{}", response.status());
        response.json().await.expect("JSON")
    }

    async fn attempts(&self, account: &Account, event: i64) -> Vec<Value> {
        let (_, body) = self.get(&account.key, &format!("/events/{event}/attempts")).await;
        body["attempts"].as_array().cloned().expect("attempts")
    }

    /// The attempts of an event once there are `n`.
    async fn attempted(&self, account: &Account, event: i64, n: usize) -> Vec<Value> {
        eventually("the attempts are recorded", PATIENCE, async || {
            let attempts = self.attempts(account, event).await;
            if attempts.len() >= n { Ok(()) } else { Err(format!("{attempts:?}")) }
        })
        .await;
        self.attempts(account, event).await
    }
}

pub(crate) async fn arrived(receiver: &Receiver, n: usize) -> Vec<Recorded> {
    eventually("the deliveries arrive", PATIENCE, async || {
        if receiver.count() >= n { Ok(()) } else { Err(format!("{} of {n}", receiver.count())) }
    })
    .await;
    receiver.requests()
}

pub(crate) fn verify(account: &Account, request: &Recorded) {
    let webhook = Webhook::new(&account.secret).expect("a secret");
    webhook.verify(&request.body, &request.headers).expect("the signature is of this body");
}

pub(crate) fn json_of(request: &Recorded) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

#[tokio::test]
async fn a_module_changes_what_its_endpoint_gets() {
    let app = App::with("shapes", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;

    app.upload(&account, guests::digits()).await;
    let event = app.send(&account.key, "order.created", json!({ "n": 12 })).await;
    let first = arrived(&receiver, 1).await.remove(0);
    verify(&account, &first);
    let body = json_of(&first);
    assert_eq!((&body["id"], &body["type"]), (&json!(event), &json!("order.created")));
    assert_eq!(body["payload"], json!({ "n": 23 }));
    assert_eq!(first.headers["content-type"], "application/json");
    let attempt = app.attempted(&account, event, 1).await.remove(0);
    assert_eq!((&attempt["status"], &attempt["transformVersion"]), (&json!("success"), &json!(1)));

    app.upload(&account, guests::body()).await;
    app.send(&account.key, "order.created", json!(1)).await;
    let second = arrived(&receiver, 2).await.remove(1);
    verify(&account, &second);
    assert_eq!(second.body, "hello");
    assert_eq!(second.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(second.headers["x-from"], "a module");

    app.upload(&account, guests::echo()).await;
    app.send(&account.key, "order.created", json!({ "as": "it came" })).await;
    let third = arrived(&receiver, 3).await.remove(2);
    verify(&account, &third);
    assert_eq!(json_of(&third)["payload"], json!({ "as": "it came" }));
    app.settled().await;
    app.stop().await;
}

#[tokio::test]
async fn what_a_module_drops_is_filtered_and_settled() {
    let app = App::with("filtered", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.upload(&account, guests::drop_odd()).await;
    let ids = app.send_at_once(&account, 100).await;
    app.settled().await;
    let got: HashSet<i64> = crate::harness::ids(&receiver).into_iter().collect();
    assert_eq!(got, ids.iter().copied().filter(|id| id % 2 == 0).collect());
    let odd = *ids.iter().find(|id| *id % 2 == 1).unwrap();
    let attempts = app.attempts(&account, odd).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (
            &attempts[0]["status"],
            &attempts[0]["reasonCode"],
            &attempts[0]["error"],
            &attempts[0]["responseCode"]
        ),
        (&json!("filtered"), &json!("filtered"), &json!("odd id"), &Value::Null)
    );
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM dlq_entries").await, 0);
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    app.stop().await;
}

/// A receiver that refuses until it is told to take.
fn refuses_first(receiver: &Receiver, times: usize) {
    receiver.script(move |r| if r.n < times { Reply::status(503) } else { Reply::ok() });
}

#[tokio::test]
async fn a_body_that_was_sent_stays_the_same_at_every_attempt() {
    let app = App::with("pinned", |c| {
        swept_soon(c);
        c.retry.schedule = "1s,1s,1s".parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    refuses_first(&receiver, 3);
    let account = app.register(&receiver.url("/")).await;
    app.set_transform_of(&account, guests::from_config(), json!({ "body": "\"one\"" })).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    arrived(&receiver, 1).await;
    app.set_transform(&account, json!({ "config": { "body": "\"two\"" } })).await;
    arrived(&receiver, 2).await;
    app.upload(&account, guests::body()).await;
    arrived(&receiver, 3).await;
    // Its version is in force no more, and cannot go before the retry is made.
    let url = app.url(&format!("/webhooks/{}/transform", account.webhook));
    let deleted = app.client.delete(url).header("x-api-key", &account.key).send().await.expect("an answer");
    assert!(deleted.status().is_success());
    let all = arrived(&receiver, 4).await;
    let bodies: HashSet<_> = all.iter().map(|request| request.body.clone()).collect();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(json_of(&all[0])["payload"], json!("one"));
    all.iter().for_each(|request| verify(&account, request));
    let attempts = app.attempted(&account, event, 4).await;
    assert!(attempts.iter().all(|attempt| attempt["transformVersion"] == attempts[0]["transformVersion"]));
    assert_eq!(app.metric("eventpulse_transform_body_mismatches_total"), 0.0);
    // The next event has no transform any more.
    app.send(&account.key, "t", json!(2)).await;
    assert_eq!(json_of(&arrived(&receiver, 5).await[4])["payload"], json!(2));
    app.stop().await;
}

impl App {
    /// Uploads a module and gives it settings.
    pub(crate) async fn set_transform_of(&self, account: &Account, wasm: Vec<u8>, settings: Value) {
        self.upload(account, wasm).await;
        self.set_transform(account, json!({ "config": settings })).await;
    }
}

#[tokio::test]
async fn an_original_that_was_sent_stays_the_original() {
    let app = App::with("original", |c| c.retry.schedule = "1s,1s".parse().unwrap()).await;
    let receiver = Receiver::start().await;
    refuses_first(&receiver, 1);
    let account = app.register(&receiver.url("/")).await;
    app.send(&account.key, "t", json!(12)).await;
    arrived(&receiver, 1).await;
    app.upload(&account, guests::digits()).await;
    let all = arrived(&receiver, 2).await;
    assert_eq!(all[0].body, all[1].body);
    app.send(&account.key, "t", json!(12)).await;
    assert_eq!(json_of(&arrived(&receiver, 3).await[2])["payload"], json!(23));
    app.stop().await;
}

#[tokio::test]
async fn each_way_to_fail_is_told_apart() {
    let app = App::with("failures", |c| {
        swept_soon(c);
        c.retry.schedule = "".parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    for (wasm, code, says) in [
        (guests::log_then_trap(), "transform_trap", "panicked"),
        (guests::endless_loop(), "transform_deadline", ""),
        (guests::memory_bomb(), "transform_memory", ""),
        (guests::error(), "transform_error", "no amount"),
        (guests::huge_output(), "transform_too_large", ""),
        (guests::not_json(), "transform_bad_output", ""),
        (guests::bad_header(), "transform_bad_output", ""),
    ] {
        app.upload(&account, wasm).await;
        let event = app.send(&account.key, "t", json!(1)).await;
        let attempt = app.attempted(&account, event, 1).await.remove(0);
        assert_eq!((&attempt["status"], &attempt["reasonCode"]), (&json!("dead"), &json!(code)));
        assert_eq!(attempt["transformVersion"], Value::Null, "nothing was sent");
        let error = attempt["error"].as_str().expect("an error");
        assert!(error.contains(says) && !error.contains('\0'), "{error}");
    }
    assert_eq!(receiver.count(), 0);
    let (_, letters) = app.get(&account.key, "/dlq").await;
    assert_eq!(letters["dlqEntries"].as_array().map(Vec::len), Some(7), "{letters}");

    app.set_transform(&account, json!({ "onError": "original" })).await;
    let event = app.send(&account.key, "t", json!("as it came")).await;
    let original = arrived(&receiver, 1).await.remove(0);
    assert_eq!(json_of(&original)["payload"], json!("as it came"));
    let attempt = app.attempted(&account, event, 1).await.remove(0);
    assert_eq!((&attempt["status"], &attempt["transformVersion"]), (&json!("success"), &json!(0)));
    assert!(attempt["error"].is_string(), "it says why: {attempt}");

    app.set_transform(&account, json!({ "onError": "drop" })).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    let attempt = app.attempted(&account, event, 1).await.remove(0);
    assert_eq!(
        (&attempt["status"], &attempt["reasonCode"]),
        (&json!("filtered"), &json!("transform_bad_output"))
    );
    app.settled().await;
    app.stop().await;
}

#[tokio::test]
async fn a_requeue_keeps_a_body_that_was_sent_and_mends_one_that_was_not() {
    let app = App::with("mended", |c| {
        swept_soon(c);
        c.retry.schedule = "".parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    refuses_first(&receiver, 1);
    let account = app.register(&receiver.url("/")).await;
    app.upload(&account, guests::digits()).await;
    let sent = app.send(&account.key, "t", json!(12)).await;
    app.attempted(&account, sent, 1).await;
    app.upload(&account, guests::trap()).await;
    let unsent = app.send(&account.key, "t", json!(12)).await;
    app.attempted(&account, unsent, 1).await;
    app.upload(&account, guests::body()).await;
    let (_, letters) = app.get(&account.key, "/dlq").await;
    for letter in letters["dlqEntries"].as_array().expect("letters") {
        let (status, body) = app.post(&account.key, &format!("/dlq/{}/retry", letter["id"])).await;
        assert_eq!(status, 200, "{body}");
    }
    let all = arrived(&receiver, 3).await;
    let of = |event: i64| -> Vec<_> {
        let is = |r: &&Recorded| r.headers["x-eventpulse-event-id"] == event.to_string().as_str();
        all.iter().filter(is).map(|r| r.body.clone()).collect()
    };
    assert_eq!(of(sent).len(), 2);
    assert_eq!(of(sent)[0], of(sent)[1]);
    assert_eq!(of(unsent), ["hello"]);
    app.stop().await;
}

#[tokio::test]
async fn a_module_that_keeps_failing_pauses_its_webhook_until_it_is_mended() {
    let app = App::with("suspended", |c| {
        swept_soon(c);
        c.transform.suspend_after = 5;
        c.retry.schedule = "100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms,100ms".parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let good = app.upload(&account, guests::echo()).await;
    app.upload(&account, guests::trap()).await;
    for n in 0..5 {
        app.send(&account.key, "t", json!(n)).await;
    }
    let path = format!("/webhooks/{}", account.webhook);
    eventually("the webhook is paused", PATIENCE, async || {
        let (_, body) = app.get(&account.key, &path).await;
        if body["webhook"]["state"] == "paused" { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    let (_, shown) = app.get(&account.key, &path).await;
    assert_eq!(shown["webhook"]["transform"]["suspended"], json!(true), "{shown}");
    let url = app.url(&format!("{path}/transform/activate"));
    let request = app.client.post(url).header("x-api-key", &account.key).json(&json!({ "version": good }));
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    let got = arrived(&receiver, 5).await;
    assert_eq!(got.len(), 5, "what waited is delivered, each once");
    app.settled().await;
    assert_eq!(app.get(&account.key, &path).await.1["webhook"]["state"], "active");
    app.stop().await;
}

#[tokio::test]
async fn a_process_without_the_compiled_module_brings_it_and_loses_nothing() {
    let url = database("brings").await;
    let folder =
        |name: &str| format!("{}/transforms-{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let of = |name: &str| -> Config {
        let mut config = config(&url);
        swept_soon(&mut config);
        config.transform.cache_folder = folder(name);
        config
    };
    let gateway = App::of(of("one"), Roles::Api).await;
    let dispatcher = App::of(of("two"), Roles::Dispatcher).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    gateway.upload(&account, guests::digits()).await;
    gateway.send_at_once(&account, 50).await;
    let got = arrived(&receiver, 50).await;
    let next = |n: usize| -> String {
        let digit = |c: char| if ('1'..='8').contains(&c) { char::from(c as u8 + 1) } else { c };
        n.to_string().chars().map(digit).collect()
    };
    let mut expected: Vec<String> = (0..50).map(next).collect();
    let mut payloads: Vec<String> = got.iter().map(|r| json_of(r)["payload"].to_string()).collect();
    expected.sort();
    payloads.sort();
    assert_eq!(payloads, expected);
    gateway.settled().await;
    assert_eq!(receiver.count(), 50);
    assert_eq!(dispatcher.metric("eventpulse_transform_compiles_total{outcome=\"compiled\"}"), 1.0);
    dispatcher.stop().await;
    gateway.stop().await;
    for name in ["one", "two"] {
        let _ = std::fs::remove_dir_all(folder(name));
    }
}

#[tokio::test]
async fn a_module_that_burns_its_time_delays_nobody_else() {
    let app = App::with("burns", |c| {
        swept_soon(c);
        c.transform.threads = 2;
    })
    .await;
    let (slow, quick, plain) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let burning = app.register(&slow.url("/")).await;
    let modest = app.register(&quick.url("/")).await;
    let none = app.register(&plain.url("/")).await;
    app.upload(&burning, guests::spin_45_ms()).await;
    app.upload(&modest, guests::digits()).await;
    app.send_at_once(&burning, 100).await;
    arrived(&slow, 2).await;
    for _ in 0..10 {
        app.send_at_once(&modest, 10).await;
        app.send_at_once(&none, 10).await;
    }
    arrived(&quick, 100).await;
    arrived(&plain, 100).await;
    assert!(slow.count() < 100, "four seconds of work, at half a core, cannot be done yet");
    app.settled_slowly().await;
    assert_eq!(slow.count(), 100, "what waited for its share is delivered, each once");
    app.stop().await;
}

impl App {
    /// As [`App::settled`], where that takes longer than a test is usually patient.
    async fn settled_slowly(&self) {
        let db = postgres(&self.database).await;
        eventually("everything is accounted for", PATIENCE * 6, async || {
            let sql = "SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM scheduled)";
            let owed = count(&db, sql).await;
            if owed == 0 { Ok(()) } else { Err(format!("{owed} rows are owed")) }
        })
        .await;
    }
}

#[tokio::test]
async fn versions_are_swapped_under_load_and_no_delivery_fails() {
    let app = Arc::new(App::with("swapped", swept_soon).await);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.set_transform_of(&account, guests::from_config(), json!({ "body": "0" })).await;
    let producer = tokio::spawn({
        let (app, account) = (app.clone(), account.clone());
        async move {
            for _ in 0..40 {
                app.send_at_once(&account, 10).await;
            }
        }
    });
    for n in 1..15 {
        app.set_transform(&account, json!({ "config": { "body": n.to_string() } })).await;
    }
    producer.await.expect("all are accepted");
    app.settled().await;
    let got = receiver.requests();
    assert_eq!(got.len(), 400);
    assert!(got.iter().all(|r| json_of(r)["payload"].as_i64().is_some_and(|n| (0..15).contains(&n))));
    let db = postgres(&app.database).await;
    let failed = "SELECT count(*) FROM delivery_attempts WHERE status <> 'success'";
    assert_eq!(count(&db, failed).await, 0);
    let Ok(app) = Arc::try_unwrap(app) else { panic!("the producer has ended") };
    app.stop().await;
}
