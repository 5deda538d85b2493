//! Trying an endpoint, and seeing what came of a webhook's last attempts.

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{App, PATIENCE, config, count, database, postgres, swept_soon};

async fn set(app: &App, key: &str, path: &str, change: Value) {
    let request = app.client.patch(app.url(path)).header("x-api-key", key).json(&change);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_test_is_signed_and_shown_and_written_nowhere() {
    // A gateway alone: there is no dispatcher to make the call.
    let app = App::of(config(&database("tested").await), Roles::Api).await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n == 0 { Reply::ok().with_body("fine") } else { Reply::status(410) });
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let webhook = format!("/webhooks/{}", account.webhook);
    let path = format!("{webhook}/test");
    set(&app, &account.key, &webhook, json!({ "state": "paused", "headers": { "X-Team": "blue" } })).await;
    let (status, body) = app.post(&account.key, &path).await;
    assert_eq!((status, &body["ok"], &body["delivered"]), (200, &json!(true), &json!(true)), "{body}");
    let outcome = &body["outcome"];
    assert_eq!((&outcome["status"], &outcome["responseCode"]), (&json!("success"), &json!(200)));
    assert_eq!((&outcome["responseBody"], &outcome["error"]), (&json!("fine"), &Value::Null));
    let request = receiver.requests().pop().unwrap();
    let theirs = standardwebhooks::Webhook::new(&account.secret).unwrap();
    theirs.verify(&request.body, &request.headers).expect("the signature holds");
    assert!(request.headers["webhook-id"].to_str().unwrap().starts_with("test_"));
    assert_eq!(request.headers["x-eventpulse-event-type"], "eventpulse.test");
    assert_eq!(request.headers["x-team"], "blue");
    assert!(request.headers.contains_key("x-eventpulse-signature"));
    let event: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(event["type"], "eventpulse.test");
    set(&app, &account.key, &webhook, json!({ "state": "disabled" })).await;
    let (status, body) = app.post(&account.key, &path).await;
    assert_eq!((status, &body["delivered"]), (200, &json!(false)));
    assert_eq!(body["outcome"]["reasonCode"], "gone");
    assert_eq!(app.post(&other.key, &path).await.0, 404, "another's webhook");
    assert_eq!(app.get(&account.key, &path).await.0, 405);
    let gone = app.client.delete(app.url(&webhook)).header("x-api-key", &account.key);
    assert_eq!(gone.send().await.expect("an answer").status(), 200);
    assert_eq!(app.post(&account.key, &path).await.0, 404, "deleted");
    let db = postgres(&app.database).await;
    let rows = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM delivery_attempts)
        + (SELECT count(*) FROM scheduled) + (SELECT count(*) FROM dlq_entries)";
    assert_eq!((count(&db, rows).await, receiver.count()), (0, 2));
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_is_tested_once_at_a_time_and_a_process_tests_sixteen() {
    let app = App::of(config(&database("tests").await), Roles::Api).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::hang());
    let mut accounts = Vec::new();
    for _ in 0..17 {
        let account = app.register(&receiver.url("/")).await;
        let path = format!("/webhooks/{}", account.webhook);
        set(&app, &account.key, &path, json!({ "timeoutMs": 5000 })).await;
        accounts.push((account.key, format!("{path}/test")));
    }
    let (last, first) = accounts.split_last().unwrap();
    let running = futures_util::future::join_all(first.iter().map(|(key, path)| app.post(key, path)));
    let refused = async {
        eventually("calls", PATIENCE, async || {
            if receiver.count() == 16 { Ok(()) } else { Err(receiver.count().to_string()) }
        })
        .await;
        let full = app.post(&last.0, &last.1).await;
        assert_eq!((full.0, &full.1["error"]["code"]), (503, &json!("too_many_tests")));
    };
    let (done, ()) = tokio::join!(running, refused);
    for (status, body) in done {
        assert_eq!((status, &body["outcome"]["reasonCode"]), (200, &json!("timeout")));
    }
    let twice = async {
        eventually(
            "a call",
            PATIENCE,
            async || if receiver.count() == 17 { Ok(()) } else { Err(String::new()) },
        )
        .await;
        app.post(&last.0, &last.1).await
    };
    let (one, two) = tokio::join!(app.post(&last.0, &last.1), twice);
    assert_eq!((one.0, two.0, &two.1["error"]["code"]), (200, 409, &json!("test_running")));
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_shows_its_last_outcomes() {
    let app = App::with("outcomes", swept_soon).await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n == 0 { Reply::status(500) } else { Reply::ok() });
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let path = format!("/webhooks/{}", account.webhook);
    assert_eq!(app.get(&account.key, &path).await.1["webhook"]["lastOutcomes"], json!([]));
    let id = app.send(&account.key, "t", json!(1)).await;
    app.settled().await;
    app.send(&other.key, "t", json!(1)).await;
    let (_, body) = app.get(&account.key, &path).await;
    let found = body["webhook"]["lastOutcomes"].as_array().unwrap().clone();
    assert_eq!(found.len(), 2, "{body}");
    assert_eq!((&found[0]["status"], &found[0]["attempt"]), (&json!("success"), &json!(2)), "newest first");
    assert_eq!((&found[1]["status"], &found[1]["attempt"]), (&json!("failed"), &json!(1)));
    assert_eq!((&found[1]["responseCode"], &found[1]["reasonCode"]), (&json!(500), &json!("http_status")));
    assert_eq!((&found[1]["eventId"], found[1]["createdAt"].is_string()), (&json!(id), true));
    for n in 0..12 {
        app.send(&account.key, "t", json!(n)).await;
    }
    app.settled().await;
    let (_, body) = app.get(&account.key, &path).await;
    assert_eq!(body["webhook"]["lastOutcomes"].as_array().map(Vec::len), Some(10));
    app.stop().await;
}
