//! What ends by itself: webhooks that only fail.

use std::time::Duration;

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, config, count, database, postgres};

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
