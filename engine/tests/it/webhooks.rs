//! What an account may do with its webhooks, and how soon dispatchers feel it.

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{App, PATIENCE, count, postgres, swept_soon};

async fn call(app: &App, method: Method, key: &str, path: &str, body: Value) -> (u16, Value) {
    let request = app.client.request(method, app.url(path)).header("x-api-key", key);
    let response = request.json(&body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

async fn received(receiver: &Receiver, n: usize) {
    eventually("requests", PATIENCE, async || {
        let found = receiver.count();
        if found >= n { Ok(()) } else { Err(format!("{found} of {n}")) }
    })
    .await;
}

#[tokio::test]
async fn a_webhook_is_shown_changed_and_deleted_by_its_account_alone() {
    let app = App::start("manage").await;
    let receiver = Receiver::start().await;
    let (ours, theirs) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let path = format!("/webhooks/{}", ours.webhook);
    for (method, body) in
        [(Method::GET, json!({})), (Method::PATCH, json!({"name":"x"})), (Method::DELETE, json!({}))]
    {
        assert_eq!(call(&app, method.clone(), &theirs.key, &path, body).await.0, 404, "{method}");
    }
    let change = json!({ "name": "billing", "headers": { "X-Team": "secret" }, "rateLimit": 5,
        "retry": { "schedule": ["1s", "2m"] }, "timeoutMs": 700, "maxInFlight": 3, "eventTypes": ["a.*"] });
    let (status, body) = call(&app, Method::PATCH, &ours.key, &path, change).await;
    assert_eq!(status, 200, "{body}");
    let (status, body) = app.get(&ours.key, &path).await;
    assert_eq!(status, 200);
    let webhook = &body["webhook"];
    assert_eq!(webhook["name"], "billing");
    assert_eq!(webhook["headers"], json!({ "x-team": null }), "values are not shown");
    assert_eq!(webhook["retry"], json!({ "schedule": ["1s", "2m"] }));
    assert_eq!((&webhook["timeoutMs"], &webhook["maxInFlight"]), (&json!(700), &json!(3)));
    assert_eq!((&webhook["breaker"], &webhook["scheduled"]), (&json!("closed"), &json!(0)));
    assert!(webhook.get("secret").is_none());
    let (_, body) = app.get(&ours.key, "/webhooks").await;
    assert_eq!(body["webhooks"].as_array().map(Vec::len), Some(1));
    let (status, body) = call(&app, Method::PATCH, &ours.key, &path, json!({ "rateLimit": -1 })).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_rate_limit")), "{body}");
    assert_eq!(call(&app, Method::DELETE, &ours.key, &path, json!({})).await.0, 200);
    assert_eq!(app.get(&ours.key, &path).await.0, 404);
    assert_eq!(app.get(&ours.key, "/webhooks").await.1["webhooks"], json!([]));
    assert_eq!(call(&app, Method::POST, &ours.key, &path, json!({})).await.0, 405);
    app.stop().await;
}

#[tokio::test]
async fn a_webhook_is_registered_with_settings_of_its_own() {
    let app = App::with("registered", swept_soon).await;
    let receiver = Receiver::start().await;
    let form = json!({ "name": "n", "url": receiver.url("/"), "state": "paused", "headers": { "X-Team": "blue" },
        "rateLimit": 5, "retry": { "schedule": ["1s", "2m"] }, "timeoutMs": 700, "maxInFlight": 3, "colour": 1 });
    let request = app.client.post(app.url("/register-webhook")).json(&form);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.expect("JSON");
    let mut fields: Vec<&str> = body["webhook"].as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["createdAt", "eventTypes", "id", "name", "secret", "url"], "the answer is as it was");
    let key = body["apiKey"].as_str().unwrap();
    let (status, body) = call(&app, Method::POST, key, "/register-webhook", form.clone()).await;
    assert_eq!(status, 201, "{body}");
    let (_, body) = app.get(key, "/webhooks").await;
    for webhook in body["webhooks"].as_array().unwrap() {
        assert_eq!((&webhook["state"], &webhook["rateLimit"]), (&json!("paused"), &json!(5.0)));
        assert_eq!(webhook["headers"], json!({ "x-team": null }));
        assert_eq!(webhook["retry"], json!({ "schedule": ["1s", "2m"] }));
        assert_eq!((&webhook["timeoutMs"], &webhook["maxInFlight"]), (&json!(700), &json!(3)));
    }
    let path = format!("/webhooks/{}", body["webhooks"][0]["id"]);
    app.send(key, "t", json!(1)).await;
    assert_eq!(call(&app, Method::PATCH, key, &path, json!({ "state": "active" })).await.0, 200);
    received(&receiver, 1).await;
    assert_eq!(receiver.requests()[0].headers["x-team"], "blue");
    for (field, value, code) in [
        ("state", json!("disabled"), "invalid_state"),
        ("state", json!("deleted"), "invalid_state"),
        ("headers", json!(["x"]), "invalid_headers"),
        ("rateLimit", json!(0), "invalid_rate_limit"),
        ("retry", json!({}), "invalid_retry"),
        ("timeoutMs", json!(1), "invalid_number"),
        ("maxInFlight", json!("3"), "invalid_number"),
    ] {
        let mut form = json!({ "name": "n", "url": receiver.url("/") });
        form[field] = value;
        let (status, body) = call(&app, Method::POST, key, "/register-webhook", form).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!(code)), "{field}");
        assert!(body["error"]["message"].as_str().unwrap().contains(field), "{body}");
    }
    app.stop().await;
}

#[tokio::test]
async fn running_dispatchers_feel_a_change() {
    let app = App::with("felt", swept_soon).await;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let account = app.register(&old.url("/")).await;
    app.send(&account.key, "t", json!(0)).await;
    received(&old, 1).await;
    let path = format!("/webhooks/{}", account.webhook);
    let change = json!({ "url": new.url("/"), "headers": { "X-Team": "blue", "Authorization": "Bearer t" } });
    assert_eq!(call(&app, Method::PATCH, &account.key, &path, change).await.0, 200);
    app.send(&account.key, "t", json!(1)).await;
    received(&new, 1).await;
    let request = new.requests().pop().unwrap();
    assert_eq!(
        (&request.headers["x-team"], &request.headers["authorization"]),
        (&"blue".parse().unwrap(), &"Bearer t".parse().unwrap())
    );
    assert_eq!(old.count(), 1, "an event after the change goes to the new place alone");
    app.stop().await;
}

#[tokio::test]
async fn work_of_a_deleted_or_disabled_webhook_ends_as_dead_letters() {
    for (name, state) in [("webhook_deleted", None), ("webhook_disabled", Some("disabled"))] {
        let app = App::with("ended", |c| {
            swept_soon(c);
            c.retry.schedule = "1s,1s,1s,1s,1s,1s".parse().unwrap();
        })
        .await;
        let receiver = Receiver::start().await;
        receiver.script(|_| Reply::status(500));
        let account = app.register(&receiver.url("/")).await;
        for n in 0..20 {
            app.send(&account.key, "t", json!(n)).await;
        }
        received(&receiver, 4).await;
        let path = format!("/webhooks/{}", account.webhook);
        let (method, body) = match state {
            None => (Method::DELETE, json!({})),
            Some(state) => (Method::PATCH, json!({ "state": state })),
        };
        assert_eq!(call(&app, method, &account.key, &path, body).await.0, 200);
        let db = postgres(&app.database).await;
        let dead = format!("SELECT count(*) FROM dlq_entries WHERE reason_code = '{name}'");
        eventually("all is dead", PATIENCE, async || {
            let found = count(&db, &dead).await;
            if found == 20 { Ok(()) } else { Err(format!("{found} of 20")) }
        })
        .await;
        app.settled().await;
        let calls = receiver.count();
        app.send(&account.key, "t", json!("later")).await;
        app.settled().await;
        assert_eq!((receiver.count(), count(&db, &dead).await), (calls, 20), "later events are not owed");
        app.stop().await;
    }
}

#[tokio::test]
async fn a_webhook_has_retries_of_its_own() {
    let app = App::with("own-retries", |c| c.retry.schedule = "1h".parse().unwrap()).await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n < 2 { Reply::status(500) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    let path = format!("/webhooks/{}", account.webhook);
    let change = json!({ "retry": { "schedule": ["50ms", "50ms"] } });
    assert_eq!(call(&app, Method::PATCH, &account.key, &path, change).await.0, 200);
    app.send(&account.key, "t", json!(1)).await;
    received(&receiver, 3).await;
    let slow = Receiver::start().await;
    slow.script(|_| Reply::hang());
    let change = json!({ "url": slow.url("/"), "timeoutMs": 100, "retry": { "maxAttempts": 1 } });
    assert_eq!(call(&app, Method::PATCH, &account.key, &path, change).await.0, 200);
    app.send(&account.key, "t", json!(2)).await;
    let db = postgres(&app.database).await;
    eventually("one attempt, and dead", PATIENCE, async || {
        let dead = count(&db, "SELECT count(*) FROM dlq_entries").await;
        if dead == 1 { Ok(()) } else { Err(format!("{dead}")) }
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn an_event_is_sent_once_more_when_its_account_asks() {
    let app = App::with("resend", swept_soon).await;
    let receiver = Receiver::start().await;
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let id = app.send(&account.key, "t", json!(1)).await;
    received(&receiver, 1).await;
    app.settled().await;
    let path = format!("/events/{id}/resend");
    let ours = json!({ "webhookId": account.webhook });
    let (status, body) = call(&app, Method::POST, &account.key, &path, ours.clone()).await;
    assert_eq!(status, 200, "{body}");
    received(&receiver, 2).await;
    app.settled().await;
    let (_, body) = app.get(&account.key, &format!("/events/{id}/attempts")).await;
    let rounds: Vec<i64> =
        body["attempts"].as_array().unwrap().iter().map(|a| a["round"].as_i64().unwrap()).collect();
    assert_eq!(rounds, [1, 2]);
    let theirs = json!({ "webhookId": other.webhook });
    assert_eq!(call(&app, Method::POST, &account.key, &path, theirs).await.0, 404, "another's webhook");
    assert_eq!(call(&app, Method::POST, &other.key, &path, ours.clone()).await.0, 404, "another's event");
    assert_eq!(call(&app, Method::POST, &account.key, &path, json!({})).await.0, 400);
    receiver.script(|_| Reply::hang());
    assert_eq!(call(&app, Method::POST, &account.key, &path, ours.clone()).await.0, 200);
    received(&receiver, 3).await;
    let (status, body) = call(&app, Method::POST, &account.key, &path, ours.clone()).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("already_scheduled")));
    let webhook = format!("/webhooks/{}", account.webhook);
    call(&app, Method::PATCH, &account.key, &webhook, json!({ "state": "disabled" })).await;
    let (status, body) = call(&app, Method::POST, &account.key, &path, ours).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("webhook_disabled")));
    app.stop().await;
}
