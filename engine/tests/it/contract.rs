//! The HTTP contract: paths, names of fields, statuses, and the form of every answer.

use std::sync::Arc;

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{App, PATIENCE};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn is_iso_with_ms(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() == 24 && text.ends_with('Z') && &text[10..11] == "T" && &text[19..20] == "."
}

#[tokio::test]
async fn health_and_metrics_on_both_ports() {
    let app = App::start("health").await;
    let dispatcher = format!("http://{}", app.engine.dispatcher.unwrap());
    for (base, service) in [(&app.base, "api-gateway"), (&dispatcher, "dispatcher-worker")] {
        let response = app.client.get(format!("{base}/health")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.json::<Value>().await.unwrap(), json!({ "status": "ok", "service": service }));
        let text = app.client.get(format!("{base}/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(text.contains("# TYPE eventpulse_ingest_events_total counter"), "{text}");
        let response = app.client.post(format!("{base}/health")).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str().unwrap()), (405, "GET"));
        assert_eq!(app.client.get(format!("{base}/nowhere")).send().await.unwrap().status(), 404);
    }
    app.stop().await;
}

#[tokio::test]
async fn registering_answers_with_webhook_and_key() {
    let app = App::start("register").await;
    let body = json!({ "name": "My Webhook", "url": "http://127.0.0.1:9/hook" });
    let response = app.client.post(app.url("/register-webhook")).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.unwrap();
    assert_eq!(keys(&body), ["apiKey", "ok", "webhook"]);
    assert_eq!(keys(&body["webhook"]), ["createdAt", "eventTypes", "id", "name", "secret", "url"]);
    assert_eq!(body["ok"], true);
    assert!(body["webhook"]["id"].is_i64());
    assert_eq!(body["webhook"]["name"], "My Webhook");
    assert_eq!(body["webhook"]["url"], "http://127.0.0.1:9/hook");
    assert!(body["webhook"]["secret"].as_str().unwrap().starts_with("whsec_"));
    assert!(is_iso_with_ms(&body["webhook"]["createdAt"]), "{body}");
    let key = body["apiKey"].as_str().unwrap();
    assert!(key.starts_with("ep_live_"), "{key}");

    // With the key, one webhook more for the same account, and no second key.
    let more = json!({ "name": "more", "url": "http://127.0.0.1:9/more", "eventTypes": ["a", "b.*"] });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", key).json(&more);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.unwrap();
    assert_eq!(keys(&body), ["ok", "webhook"]);
    assert_eq!(body["webhook"]["eventTypes"], json!(["a", "b.*"]));
    app.stop().await;
}

#[tokio::test]
async fn an_event_is_accepted_listed_and_found() {
    let app = App::start("events").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let body = json!({ "type": "order.created", "payload": { "n": n } }).to_string();
        let (status, body) = app.try_send(&account.key, &body).await;
        assert_eq!(status, 201);
        assert_eq!(keys(&body), ["event", "ok"]);
        assert_eq!(keys(&body["event"]), ["createdAt", "id", "payload", "type"]);
        assert_eq!(
            (&body["event"]["type"], &body["event"]["payload"]),
            (&json!("order.created"), &json!({ "n": n }))
        );
        assert!(is_iso_with_ms(&body["event"]["createdAt"]));
        ids.push(body["event"]["id"].as_i64().unwrap());
    }
    assert!(ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");

    let (status, body) = app.get(&account.key, "/events").await;
    assert_eq!(status, 200);
    let listed: Vec<i64> =
        body["events"].as_array().unwrap().iter().map(|e| e["id"].as_i64().unwrap()).collect();
    assert_eq!(listed, ids.iter().rev().copied().collect::<Vec<_>>(), "newest first");
    assert_eq!(keys(&body["events"][0]), ["createdAt", "id", "payload", "type"]);
    // Pages meet without a gap and without a repeat.
    let (_, one) = app.get(&account.key, "/events?limit=2").await;
    let (_, two) = app.get(&account.key, &format!("/events?limit=2&before={}", one["events"][1]["id"])).await;
    assert_eq!(two["events"][0]["id"], listed[2]);
    assert_eq!(two["events"].as_array().unwrap().len(), 2);

    let (status, body) = eventually("delivered", PATIENCE, async || {
        let (status, body) = app.get(&account.key, &format!("/events/{}", ids[0])).await;
        if body["deliveries"][0]["state"] == "delivered" { Ok((status, body)) } else { Err(body.to_string()) }
    })
    .await;
    assert_eq!(status, 200);
    assert_eq!(body["event"]["payload"], json!({ "n": 0 }));
    assert_eq!(
        (&body["matched"], &body["deliveries"][0]["webhookId"]),
        (&json!(true), &json!(account.webhook))
    );

    let (status, body) = app.get(&account.key, &format!("/events/{}/attempts", ids[0])).await;
    assert_eq!(status, 200);
    let attempt = &body["attempts"][0];
    assert_eq!(
        keys(attempt),
        [
            "attempt",
            "createdAt",
            "durationMs",
            "error",
            "id",
            "reasonCode",
            "responseBody",
            "responseCode",
            "round",
            "status",
            "transformVersion",
            "webhookId"
        ]
    );
    assert_eq!((&attempt["status"], &attempt["responseCode"]), (&json!("success"), &json!(200)));
    assert!(attempt["id"].is_i64() && is_iso_with_ms(&attempt["createdAt"]));
    app.stop().await;
}

#[tokio::test]
async fn events_go_to_every_webhook_that_matches() {
    let app = App::start("match").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/all")).await;
    for (path, types) in
        [("orders", json!(["order.*"])), ("exact", json!(["order.paid", "x"])), ("none", json!(["y"]))]
    {
        let body = json!({ "name": path, "url": receiver.url(&format!("/{path}")), "eventTypes": types });
        let request =
            app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key).json(&body);
        assert_eq!(request.send().await.unwrap().status(), 201);
    }
    app.send(&account.key, "order.paid", json!(1)).await;
    app.send(&account.key, "order.shipped", json!(2)).await;
    app.send(&account.key, "orders", json!(3)).await;
    let wanted = ["/all 1", "/all 2", "/all 3", "/exact 1", "/orders 1", "/orders 2"];
    eventually("six deliveries", PATIENCE, async || {
        let mut got: Vec<String> = receiver
            .requests()
            .iter()
            .map(|r| format!("{} {}", r.path, serde_json::from_slice::<Value>(&r.body).unwrap()["payload"]))
            .collect();
        got.sort();
        if got == wanted { Ok(()) } else { Err(format!("{got:?}")) }
    })
    .await;
    // An event that nobody is owed says so.
    let lonely = app.register(&receiver.url("/lonely")).await;
    let db = crate::harness::postgres(&app.database).await;
    db.execute("UPDATE webhooks SET event_types = '{z}' WHERE id = $1", &[&lonely.webhook]).await.unwrap();
    let id = app.send(&lonely.key, "a", json!(null)).await;
    let (_, body) = app.get(&lonely.key, &format!("/events/{id}")).await;
    assert_eq!((&body["matched"], &body["deliveries"]), (&json!(false), &json!([])));
    app.stop().await;
}

#[tokio::test]
async fn dead_letters_are_listed_and_requeued_once() {
    let app = App::start("dlq").await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500).with_body("no"));
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!(1)).await;
    let entry = eventually("a dead letter", PATIENCE, async || {
        let (_, body) = app.get(&account.key, "/dlq").await;
        body["dlqEntries"].get(0).cloned().ok_or_else(|| body.to_string())
    })
    .await;
    assert_eq!(
        keys(&entry),
        ["attempt", "createdAt", "eventId", "id", "reason", "reasonCode", "requeuedAt", "webhookId"]
    );
    assert_eq!((entry["eventId"].as_i64(), entry["attempt"].as_i64()), (Some(id), Some(3)));
    assert!(entry["reason"].as_str().unwrap().contains("HTTP 500"), "{entry}");
    let (_, body) = app.get(&account.key, &format!("/events/{id}")).await;
    assert_eq!(body["deliveries"][0]["state"], "dead", "{body}");

    receiver.script(|_| Reply::ok());
    let path = format!("/dlq/{}/retry", entry["id"]);
    let app = Arc::new(app);
    // Of many at once exactly one begins a new round.
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (app, key, path) = (app.clone(), account.key.clone(), path.clone());
            tokio::spawn(async move { app.post(&key, &path).await })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in tasks {
        let (status, body) = task.await.unwrap();
        match status {
            200 => assert_eq!((keys(&body), &body["ok"]), (vec!["message", "ok"], &json!(true))),
            _ => assert_eq!((status, &body["error"]["code"]), (409, &json!("already_requeued"))),
        }
        statuses.push(status);
    }
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{statuses:?}");
    eventually("delivered in its second round", PATIENCE, async || {
        let (_, body) = app.get(&account.key, &format!("/events/{id}")).await;
        let d = &body["deliveries"][0];
        if d["state"] == "delivered" && d["round"] == 2 && d["attempt"] == 1 {
            Ok(())
        } else {
            Err(body.to_string())
        }
    })
    .await;
    assert_eq!(receiver.count(), 4, "three attempts of the first round, one of the second");
    let ids: std::collections::HashSet<String> =
        receiver.requests().iter().map(|r| r.headers["webhook-id"].to_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 1, "one delivery keeps one webhook-id");
}

#[tokio::test]
async fn a_page_of_large_events_ends_early_and_paging_goes_on() {
    let app = App::start("pages").await;
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    let account = app.register(&receiver.url("/")).await;
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(app.send(&account.key, "t", json!("x".repeat(1_000_000))).await);
    }
    let (mut before, mut listed, mut pages) = (i64::MAX, Vec::new(), 0);
    loop {
        let (_, body) = app.get(&account.key, &format!("/events?before={before}")).await;
        let page: Vec<i64> =
            body["events"].as_array().unwrap().iter().map(|e| e["id"].as_i64().unwrap()).collect();
        let Some(last) = page.last() else { break };
        before = *last;
        assert!(page.len() <= 2, "{} MB in one page", page.len());
        listed.extend(page);
        pages += 1;
    }
    listed.reverse();
    assert_eq!(listed, sent);
    assert!(pages >= 3);
    app.stop().await;
}
