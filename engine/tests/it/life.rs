//! What ends by itself: webhooks that only fail or are gone, and who is told.

use std::time::Duration;

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, config, count, database, postgres, swept_soon};

async fn patch(app: &App, account: &Account, body: Value) {
    let path = app.url(&format!("/webhooks/{}", account.webhook));
    let request = app.client.request(Method::PATCH, path).header("x-api-key", &account.key);
    let response = request.json(&body).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
}

async fn shown(app: &App, account: &Account) -> Value {
    app.get(&account.key, &format!("/webhooks/{}", account.webhook)).await.1["webhook"].clone()
}

#[tokio::test]
async fn of_two_processes_one_disables_a_webhook_that_only_fails() {
    let url = database("failing").await;
    let mut config = config(&url);
    config.webhooks.disable_after = Duration::from_secs(2);
    config.retry.schedule = "".parse().unwrap();
    config.lane.breaker_failures = 0;
    let apps = [App::of(config.clone(), Roles::Both).await, App::of(config, Roles::Both).await];
    let app = &apps[0];
    let (bad, fair) = (Receiver::start().await, Receiver::start().await);
    bad.script(|_| Reply::status(404));
    fair.script(|r| if r.n % 3 == 2 { Reply::ok() } else { Reply::status(503) });
    let (always, mostly) = (app.register(&bad.url("/")).await, app.register(&fair.url("/")).await);
    let mut sent = 0;
    eventually("the one that always fails is disabled", PATIENCE, async || {
        for account in [&always, &mostly] {
            apps[sent % 2].send(&account.key, "t", json!(sent)).await;
        }
        sent += 1;
        let webhook = shown(app, &always).await;
        if webhook["state"] == "disabled" { Ok(()) } else { Err(webhook.to_string()) }
    })
    .await;
    assert_eq!(shown(app, &always).await["disabledReason"], "failing");
    for _ in 0..20 {
        app.send(&mostly.key, "t", json!("more")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(shown(app, &mostly).await["state"], "active", "a success now and then is enough");
    let disabled: f64 =
        apps.iter().map(|a| a.metric("eventpulse_webhooks_disabled_total{reason=\"failing\"}")).sum();
    assert!((disabled - 1.0).abs() < f64::EPSILON, "{disabled}");
    let db = postgres(&app.database).await;
    patch(app, &always, json!({ "state": "active" })).await;
    let failing =
        format!("SELECT count(*) FROM webhooks WHERE id = {} AND failing_since IS NOT NULL", always.webhook);
    assert_eq!(count(&db, &failing).await, 0, "enabled again, it begins anew");
    for app in apps {
        app.stop().await;
    }
}

/// One webhook more for an account.
async fn add(app: &App, account: &Account, url: &str, types: Value) -> i64 {
    let body = json!({ "name": "more", "url": url, "eventTypes": types });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key);
    let response = request.json(&body).send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.expect("JSON");
    body["webhook"]["id"].as_i64().expect("an id")
}

#[tokio::test]
async fn an_account_is_told_once_that_a_webhook_is_disabled() {
    let app = App::with("told", swept_soon).await;
    let (gone, asks, all) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    gone.script(|_| Reply::status(410));
    let account = app.register(&all.url("/")).await;
    add(&app, &account, &asks.url("/"), json!(["eventpulse.*"])).await;
    let url = gone.url("/hook?token=hidden");
    let webhook = add(&app, &account, &url, json!(["t", "eventpulse.webhook.disabled"])).await;
    app.send(&account.key, "t", json!(1)).await;
    eventually("the one that asks is told", PATIENCE, async || {
        if asks.count() > 0 { Ok(()) } else { Err("nothing came".to_owned()) }
    })
    .await;
    let told: Value = serde_json::from_slice(&asks.requests()[0].body).expect("JSON");
    assert_eq!(told["type"], "eventpulse.webhook.disabled");
    let payload = &told["payload"];
    assert_eq!((&payload["webhookId"], &payload["reason"]), (&json!(webhook), &json!("410 Gone")));
    assert_eq!((&payload["name"], &payload["failingSince"]), (&json!("more"), &Value::Null));
    assert_eq!(payload["url"], json!(gone.url("/hook")), "without its query");
    assert_eq!(payload["disabledAt"], told["createdAt"]);
    // A second time within the hour it is disabled, and nobody is told.
    let request = app.client.request(Method::PATCH, app.url(&format!("/webhooks/{webhook}")));
    let again = request.header("x-api-key", &account.key).json(&json!({ "state": "active" }));
    assert_eq!(again.send().await.expect("an answer").status(), 200);
    app.send(&account.key, "t", json!(2)).await;
    eventually("it is called again", PATIENCE, async || {
        if gone.count() > 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    app.settled().await;
    assert_eq!((asks.count(), all.count(), gone.count()), (1, 2, 2));
    assert_eq!(app.metric("eventpulse_recover_leftovers_total"), 0.0, "sent at once");
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    let body = json!({ "type": "eventpulse.webhook.disabled", "payload": 1 }).to_string();
    assert_eq!(app.try_send(&account.key, &body).await.0, 400, "no producer says so");
    app.stop().await;
}
