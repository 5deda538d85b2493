//! What an endpoint gets, and what its answers lead to.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use eventpulse::config::Config;
use eventpulse_testkit::{
    Receiver, eventually,
    receiver::{Recorded, Reply},
};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, count, postgres, swept_soon};

async fn attempts(app: &App, account: &Account, event: i64, n: usize) -> Vec<Value> {
    eventually("the attempts are recorded", PATIENCE, async || {
        let (_, body) = app.get(&account.key, &format!("/events/{event}/attempts")).await;
        let attempts = body["attempts"].as_array().cloned().unwrap_or_default();
        if attempts.len() >= n { Ok(attempts) } else { Err(body.to_string()) }
    })
    .await
}

/// Verifies a request as a user of the Standard Webhooks library would.
fn verify(account: &Account, request: &Recorded) {
    let webhook = standardwebhooks::Webhook::new(&account.secret).unwrap();
    webhook.verify(&request.body, &request.headers).expect("the signature holds");
}

#[tokio::test]
async fn every_header_of_a_delivery_is_right() {
    use hmac::{Hmac, KeyInit, Mac};
    let app = App::start("headers").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/hook?x=1")).await;
    let body = "{\"type\":\"order.créé\",\"payload\":{ \"b\" : 1e2, \"a\":\"\\u00e9\" }}";
    let (_, answer) = app.try_send(&account.key, body).await;
    let request = eventually("a request", PATIENCE, async || {
        receiver.requests().pop().ok_or_else(|| "none yet".to_owned())
    })
    .await;
    assert_eq!(request.path, "/hook?x=1");
    let (id, at) = (&answer["event"]["id"], answer["event"]["createdAt"].as_str().unwrap());
    let expected = format!(
        "{{\"id\":{id},\"type\":\"order.créé\",\"payload\":{{ \"b\" : 1e2, \"a\":\"\\u00e9\" }},\"createdAt\":\"{at}\"}}"
    );
    assert_eq!(request.body, expected.as_bytes());
    let header = |name: &str| std::str::from_utf8(request.headers[name].as_bytes()).unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json");
    assert!(header("user-agent").starts_with("EventPulse/"));
    assert_eq!(header("x-eventpulse-event-id"), id.to_string());
    assert_eq!(header("x-eventpulse-event-type"), "order.créé");
    assert_eq!(header("x-eventpulse-attempt"), "1");
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(account.secret.as_bytes()).unwrap();
    mac.update(&request.body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(header("x-eventpulse-signature"), format!("sha256={hex}"));
    verify(&account, &request);
    app.stop().await;
}

#[tokio::test]
async fn failures_are_tried_again_with_the_same_id_until_they_succeed() {
    let app = App::start("retry").await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n < 2 { Reply::status(503) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!("x")).await;
    let rows = attempts(&app, &account, id, 3).await;
    let statuses: Vec<(&str, i64)> =
        rows.iter().map(|a| (a["status"].as_str().unwrap(), a["attempt"].as_i64().unwrap())).collect();
    assert_eq!(statuses, [("failed", 1), ("failed", 2), ("success", 3)]);
    let requests = receiver.requests();
    for (n, request) in requests.iter().enumerate() {
        assert_eq!(request.headers["x-eventpulse-attempt"], (n + 1).to_string().as_str());
        assert_eq!(request.headers["webhook-id"], requests[0].headers["webhook-id"]);
        assert_eq!(request.body, requests[0].body);
        verify(&account, request);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_scheduled_retry_says_when_and_why() {
    let app = App::with("scheduled", |c| c.retry.schedule = "1h".parse().unwrap()).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!(1)).await;
    let delivery = eventually("scheduled", PATIENCE, async || {
        let (_, body) = app.get(&account.key, &format!("/events/{id}")).await;
        let delivery = body["deliveries"][0].clone();
        if delivery["state"] == "scheduled" { Ok(delivery) } else { Err(body.to_string()) }
    })
    .await;
    assert_eq!(delivery["attempt"], 2);
    assert!(delivery["dueAt"].is_string() && delivery["expiresAt"].is_string(), "{delivery}");
    assert_eq!(delivery["reason"], "retry: the endpoint refused (HTTP 500)");
    app.stop().await;
}

/// A reply's bytes once went into the attempts' text column as they were: one NUL would have stopped the
/// recorder for everybody.
#[tokio::test]
async fn a_replys_foreign_bytes_are_recorded_and_harm_no_neighbour() {
    let app = App::with("bytes", |c| c.deliver.success_bytes_kept = 9).await;
    let receiver = Receiver::start().await;
    receiver.script(|r| match r.path.as_str() {
        "/nul" => Reply::ok().with_body(&b"a\0b"[..]),
        "/invalid" => Reply::ok().with_body(&b"\xff\xfe\x00"[..]),
        // The cap falls into the middle of a character.
        "/cut" => Reply::ok().with_body("ééééééé"),
        _ => Reply::ok().with_body("fine"),
    });
    let mut sent = Vec::new();
    for path in ["/nul", "/invalid", "/cut", "/fine"] {
        let account = app.register(&receiver.url(path)).await;
        for n in 0..20 {
            sent.push((account.clone(), path, app.send(&account.key, "t", json!(n)).await));
        }
    }
    for (account, path, id) in sent {
        let rows = attempts(&app, &account, id, 1).await;
        assert_eq!(rows[0]["status"], "success", "{path}");
        let body = rows[0]["responseBody"].as_str().unwrap();
        let expected = match path {
            "/nul" => "a\u{fffd}b",
            "/invalid" => "\u{fffd}\u{fffd}\u{fffd}",
            "/cut" => "éééé",
            _ => "fine",
        };
        assert_eq!(body, expected, "{path}");
    }
    assert_eq!(receiver.count(), 80);
    app.stop().await;
}

/// The same, with a row that Postgres refuses for a reason we did not foresee.
#[tokio::test]
async fn an_attempt_that_postgres_refuses_is_recorded_without_its_texts() {
    let app = App::start("refused").await;
    let db = postgres(&app.database).await;
    db.batch_execute("ALTER TABLE delivery_attempts ADD CHECK (response_body <> 'poison')").await.unwrap();
    let receiver = Receiver::start().await;
    receiver.script(|r| {
        if r.path == "/bad" { Reply::ok().with_body("poison") } else { Reply::ok().with_body("fine") }
    });
    let (bad, good) = (app.register(&receiver.url("/bad")).await, app.register(&receiver.url("/good")).await);
    let mut sent = Vec::new();
    for n in 0..30 {
        let account = if n % 3 == 0 { &bad } else { &good };
        sent.push((account, app.send(&account.key, "t", json!(n)).await));
    }
    for (account, id) in sent {
        let rows = attempts(&app, account, id, 1).await;
        assert_eq!(rows[0]["status"], "success");
        assert_eq!(rows[0]["responseBody"], if account.key == bad.key { Value::Null } else { json!("fine") });
    }
    assert_eq!(app.metric("eventpulse_settle_rewritten_total"), 10.0);
    assert_eq!(receiver.count(), 30, "nothing was sent twice");
    app.stop().await;
}

#[tokio::test]
async fn redirects_are_failures_and_are_not_followed() {
    let app = App::with("redirect", |c| c.retry.schedule = "".parse().unwrap()).await;
    let receiver = Receiver::start().await;
    let elsewhere = receiver.url("/elsewhere");
    receiver.script(move |r| if r.path == "/" { Reply::redirect(&elsewhere) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!(1)).await;
    let rows = attempts(&app, &account, id, 1).await;
    assert_eq!((&rows[0]["status"], &rows[0]["reasonCode"]), (&json!("dead"), &json!("redirect")));
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_410_disables_the_webhook_and_dead_letters() {
    let app = App::with("gone", swept_soon).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(410));
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!(1)).await;
    let rows = attempts(&app, &account, id, 1).await;
    assert_eq!((&rows[0]["status"], &rows[0]["reasonCode"]), (&json!("dead"), &json!("gone")));
    let (_, body) = app.get(&account.key, "/dlq").await;
    let entry = &body["dlqEntries"][0];
    assert!(entry["reason"].as_str().unwrap().contains("410"), "{entry}");
    let (status, body) = app.post(&account.key, &format!("/dlq/{}/retry", entry["id"])).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("webhook_disabled")));
    // What comes later is owed to nobody.
    let later = app.send(&account.key, "t", json!(2)).await;
    app.settled().await;
    let (_, body) = app.get(&account.key, &format!("/events/{later}")).await;
    assert_eq!(body["matched"], false, "{body}");
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

#[tokio::test]
async fn connections_that_break_or_hang_are_failed_attempts() {
    let app = App::with("broken", |c| {
        c.retry.schedule = "".parse().unwrap();
        c.deliver.timeout = Duration::from_millis(700);
        c.deliver.connect_timeout = Duration::from_millis(500);
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|r| match r.path.as_str() {
        "/reset" => Reply::reset(),
        "/hang" => Reply::hang(),
        // The head is an answer, however slowly its body comes.
        _ => Reply::slow_body("abcdef", 1, Duration::from_millis(400)),
    });
    let refused = {
        let closed = Receiver::start().await;
        closed.url("/")
    };
    let cases = [
        (receiver.url("/reset"), "dead", "connection_lost"),
        (receiver.url("/hang"), "dead", "timeout"),
        (refused, "dead", "connect"),
        ("http://no-such-host.invalid/".to_owned(), "dead", "dns"),
        (receiver.url("/slow"), "success", "delivered"),
    ];
    for (url, status, reason) in cases {
        let account = app.register(&url).await;
        let id = app.send(&account.key, "t", json!(1)).await;
        let rows = attempts(&app, &account, id, 1).await;
        assert_eq!(
            (&rows[0]["status"], &rows[0]["reasonCode"]),
            (&json!(status), &json!(reason)),
            "{url}: {}",
            rows[0]
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn a_private_target_is_not_called_even_by_a_name() {
    let app = App::with("private", |c: &mut Config| {
        c.targets.allow_private = false;
        c.retry.schedule = "".parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register("http://example.com/").await;
    // A name that resolves to loopback, put past the check at registration as a changed DNS entry would be.
    let db = postgres(&app.database).await;
    let url = format!("http://localhost:{}/", receiver.addr().port());
    db.execute("UPDATE webhooks SET url = $1", &[&url]).await.unwrap();
    let id = app.send(&account.key, "t", json!(1)).await;
    let rows = attempts(&app, &account, id, 1).await;
    assert_eq!(rows[0]["reasonCode"], "target_blocked");
    assert_eq!(receiver.count(), 0);
    assert!(app.metric("eventpulse_deliver_targets_blocked_total") >= 1.0);
    app.stop().await;
}

/// An ack never waits for a slow endpoint: its deliveries move to the schedule and keep their request.
#[tokio::test]
async fn a_slow_endpoint_holds_neither_its_entry_nor_its_neighbours() {
    let app = App::with("slow", |c| {
        swept_soon(c);
        c.dispatch.hold = Duration::from_millis(300);
        c.lane.in_flight_max = 4;
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|r| {
        if r.path == "/slow" { Reply::ok().with_delay(Duration::from_millis(1200)) } else { Reply::ok() }
    });
    let (slow, fast) =
        (app.register(&receiver.url("/slow")).await, app.register(&receiver.url("/fast")).await);
    for n in 0..12 {
        app.send(&slow.key, "t", json!(n)).await;
    }
    let fast_ids = [app.send(&fast.key, "t", json!(1)).await, app.send(&fast.key, "t", json!(2)).await];
    for id in fast_ids {
        attempts(&app, &fast, id, 1).await;
    }
    let (_, body) = app.get(&slow.key, "/events").await;
    let newest = body["events"][0]["id"].as_i64().unwrap();
    let (_, body) = app.get(&slow.key, &format!("/events/{newest}")).await;
    assert_ne!(body["deliveries"][0]["state"], "delivered", "the fast one did not wait for the slow one");
    app.settled().await;
    let slow_requests = receiver.requests().iter().filter(|r| r.path == "/slow").count();
    assert_eq!(slow_requests, 12, "each exactly once");
    assert!(app.metric("eventpulse_lane_parked_total{reason=\"held\"}") >= 4.0);
    assert_eq!(app.metric("eventpulse_deliver_repeats_total"), 0.0);
    app.stop().await;
}

#[tokio::test]
async fn what_exceeds_a_lane_is_parked_and_comes_back() {
    let app = App::with("parked", |c| {
        swept_soon(c);
        c.lane.in_flight_max = 2;
        c.lane.queue_max = 5;
        c.lane.deferred_max = 0;
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(20)));
    let account = app.register(&receiver.url("/")).await;
    let sent = AtomicUsize::new(0);
    let send = async || {
        for n in 0..25 {
            app.send(&account.key, "t", json!(n)).await;
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(send(), send(), send(), send());
    app.settled().await;
    assert_eq!((receiver.count(), sent.into_inner()), (100, 100), "each exactly once");
    assert!(receiver.concurrency_max() <= 2, "{}", receiver.concurrency_max());
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM delivery_attempts WHERE status = 'success'").await, 100);
    assert!(app.metric("eventpulse_lane_parked_total{reason=\"parked\"}") > 0.0);
    app.stop().await;
}

#[tokio::test]
async fn one_delivery_never_splits_into_two_chains() {
    let app = App::with("chains", |c| c.retry.schedule = "300ms,300ms,300ms".parse().unwrap()).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let account = app.register(&receiver.url("/")).await;
    let id = app.send(&account.key, "t", json!(1)).await;
    attempts(&app, &account, id, 1).await;
    // The same member made due again and again, worse than a feeder, a sweep and a claim at once: it breaks the lease, so
    // how often one attempt is made depends on the machine. Only the last of it counts.
    let db = postgres(&app.database).await;
    let (mut redis, keys) = app.redis().await;
    let member = format!("{id}:{}", account.webhook);
    let dead = eventually("a dead letter", PATIENCE, async || {
        let key = format!("{keys}due");
        let () = redis::cmd("ZADD").arg(&key).arg(1).arg(&member).query_async(&mut redis).await.unwrap();
        let (_, body) = app.get(&account.key, "/dlq").await;
        if body["dlqEntries"].get(0).is_some() { Ok(body) } else { Err(body.to_string()) }
    })
    .await;
    assert_eq!(dead["dlqEntries"].as_array().unwrap().len(), 1);
    let requests = receiver.requests();
    let mut tries: Vec<String> =
        requests.iter().map(|r| r.headers["x-eventpulse-attempt"].to_str().unwrap().to_owned()).collect();
    tries.sort();
    tries.dedup();
    assert_eq!(tries, ["1", "2", "3", "4"]);
    assert_eq!(count(&db, "SELECT count(*) FROM delivery_attempts").await, 4);
    assert_eq!(count(&db, "SELECT count(*) FROM delivery_attempts WHERE status = 'dead'").await, 1);
    assert_eq!(count(&db, "SELECT count(*) FROM scheduled").await, 0);
    app.stop().await;
}

/// Bytes of what is held were once shared by all: a few large events to endpoints that hang stopped every other
/// delivery of the process until they timed out.
#[tokio::test]
async fn large_events_to_endpoints_that_hang_leave_room_for_others() {
    let app = App::with("bytes-held", |c| {
        c.http.body_bytes_max = 64 << 10;
        c.dispatch.held_bytes_max = 512 << 10;
        c.deliver.timeout = Duration::from_secs(20);
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.path == "/hang" { Reply::hang() } else { Reply::ok() });
    let (slow, fast) =
        (app.register(&receiver.url("/hang")).await, app.register(&receiver.url("/fast")).await);
    for n in 0..10 {
        let body = json!({ "name": n.to_string(), "url": receiver.url("/hang") });
        let request =
            app.client.post(app.url("/register-webhook")).header("x-api-key", &slow.key).json(&body);
        assert_eq!(request.send().await.unwrap().status(), 201);
    }
    for _ in 0..12 {
        app.send(&slow.key, "t", json!("x".repeat(60_000))).await;
    }
    let id = app.send(&fast.key, "t", json!("x".repeat(60_000))).await;
    attempts(&app, &fast, id, 1).await;
    let db = postgres(&app.database).await;
    let ended = count(&db, "SELECT count(*) FROM delivery_attempts").await;
    assert_eq!(ended, 1, "the fast one was made before any of those that hang was over");
}

/// 1. A retry is leased for as long as an attempt with the usual time-out takes, and some more.
/// 2. The webhook has a time-out of its own that is longer than all of that.
/// 3. So its lease would be over before the reply could be there: it was dropped unsent each time, until it expired.
#[tokio::test]
async fn a_retry_is_made_however_long_its_webhook_may_take() {
    let app = App::with("longer", |config| {
        config.deliver.timeout = Duration::from_secs(1);
        config.deliver.connect_timeout = Duration::from_secs(1);
        config.dispatch.margin = Duration::from_secs(1);
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n == 0 { Reply::status(500) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    let url = app.url(&format!("/webhooks/{}", account.webhook));
    let change =
        app.client.patch(url).header("x-api-key", &account.key).json(&json!({ "timeoutMs": 60_000 }));
    assert_eq!(change.send().await.unwrap().status(), 200);
    let event = app.send(&account.key, "t", json!(1)).await;
    let attempts = attempts(&app, &account, event, 2).await;
    assert_eq!(attempts[1]["status"], "success", "{attempts:?}");
    app.stop().await;
}
