//! What a webhook missed is sent to it when its account asks, and nothing else is.

use std::collections::BTreeSet;

use eventpulse::{
    model::{AccountId, EventId, Timestamp, WebhookId},
    store::Store,
};
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, count, postgres, swept_soon};

/// Long ago for a test, and within the longest range.
fn since() -> String {
    ago(3_600_000)
}

fn ago(ms: i64) -> String {
    Timestamp(Timestamp::now().0 - ms).to_string()
}

async fn call(app: &App, account: &Account, webhook: i64, body: Value) -> (u16, Value) {
    let request = app.client.post(app.url(&format!("/webhooks/{webhook}/replay")));
    let response = request.header("x-api-key", &account.key).json(&body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// Replays to the account's first webhook; returns replayed, delivered, pending, scanned.
async fn replay(app: &App, account: &Account, body: Value) -> [i64; 4] {
    let (status, body) = call(app, account, account.webhook, body).await;
    assert_eq!(status, 200, "{body}");
    numbers(&body)
}

fn numbers(body: &Value) -> [i64; 4] {
    ["replayed", "delivered", "pending", "scanned"].map(|name| body[name].as_i64().expect("a number"))
}

async fn set(app: &App, account: &Account, change: Value) {
    let request = app.client.patch(app.url(&format!("/webhooks/{}", account.webhook)));
    let answer = request.header("x-api-key", &account.key).json(&change).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

/// One webhook more for an account, as an account of its own to the functions above.
async fn add(app: &App, account: &Account, url: &str) -> Account {
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key);
    let answer = request.json(&json!({ "name": "more", "url": url })).send().await.expect("an answer");
    let body: Value = answer.json().await.expect("JSON");
    Account { webhook: body["webhook"]["id"].as_i64().expect("an id"), ..account.clone() }
}

/// The events a receiver was sent, each as often as it was.
fn got(receiver: &Receiver) -> Vec<i64> {
    let id =
        |body: &[u8]| serde_json::from_slice::<Value>(body).expect("JSON")["id"].as_i64().expect("an id");
    let mut ids: Vec<i64> = receiver.requests().iter().map(|r| id(&r.body)).collect();
    ids.sort_unstable();
    ids
}

async fn received(receiver: &Receiver, n: usize) {
    eventually("requests", PATIENCE, async || {
        let found = receiver.count();
        if found >= n { Ok(()) } else { Err(format!("{found} of {n}")) }
    })
    .await;
}

/// Events of an account that nobody is owed, made by hand: `n` of them, one each millisecond, the newest `age_ms` ago.
async fn past(app: &App, account: &Account, first: i64, n: i64, age_ms: i64) {
    let sql = "INSERT INTO events (id, account_id, type, payload, created_at)
        SELECT $2::bigint + g, w.account_id, 'past', '1',
            date_trunc('milliseconds', now()) - ($4::bigint + $3 - g) * interval '1 millisecond'
        FROM webhooks AS w, generate_series(1, $3::bigint) AS g WHERE w.id = $1";
    let db = postgres(&app.database).await;
    db.execute(sql, &[&account.webhook, &first, &n, &age_ms]).await.expect("rows");
}

#[tokio::test]
async fn what_came_before_a_webhook_is_delivered_to_it_once() {
    let app = App::with("replay-new", swept_soon).await;
    let (old, new, theirs) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let (account, other) = (app.register(&old.url("/")).await, app.register(&theirs.url("/")).await);
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(app.send(&account.key, "t", json!(n)).await);
        app.send(&other.key, "t", json!("not ours")).await;
    }
    received(&old, 5).await;
    app.settled().await;
    let added = add(&app, &account, &new.url("/")).await;
    assert_eq!(replay(&app, &added, json!({ "since": since() })).await, [5, 0, 0, 5]);
    received(&new, 5).await;
    app.settled().await;
    assert_eq!(got(&new), ids, "its own account's, each once");
    for request in new.requests() {
        let id = request.headers["webhook-id"].to_str().unwrap();
        let before = old.requests().into_iter().find(|r| r.body == request.body).expect("the same event");
        // It ends with the webhook, so that the rest is that of the event.
        let stem = |id: &str| id.rsplit_once('_').map(|(stem, _)| stem.to_owned());
        assert_eq!(stem(id), stem(before.headers["webhook-id"].to_str().unwrap()));
        assert_eq!(request.headers["x-eventpulse-attempt"], "1");
    }
    assert_eq!(replay(&app, &added, json!({ "since": since() })).await, [0, 5, 0, 5], "nothing is repeated");
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [0, 5, 0, 5]);
    app.settled().await;
    assert_eq!((old.count(), new.count(), theirs.count()), (5, 5, 5));
    assert_eq!(app.metric("eventpulse_replay_scheduled_total"), 5.0);
    app.stop().await;
}

#[tokio::test]
async fn what_failed_is_delivered_and_its_dead_letter_is_requeued() {
    let app = App::with("replay-dead", |c| {
        swept_soon(c);
        c.retry.schedule = "".parse().unwrap();
        c.lane.breaker_failures = 0;
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n % 2 == 0 { Reply::status(500) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    for n in 0..6 {
        app.send(&account.key, "t", json!(n)).await;
        received(&receiver, n + 1).await;
    }
    app.settled().await;
    let failed: BTreeSet<i64> = got(&receiver).into_iter().step_by(2).collect();
    let names = |receiver: &Receiver| -> BTreeSet<String> {
        let failed = receiver.requests().into_iter();
        failed.map(|r| r.headers["webhook-id"].to_str().unwrap().to_owned()).collect()
    };
    let before = names(&receiver);
    receiver.clear();
    receiver.script(|_| Reply::ok());
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [3, 3, 0, 6]);
    received(&receiver, 3).await;
    app.settled().await;
    assert_eq!(got(&receiver), Vec::from_iter(failed));
    assert!(names(&receiver).is_subset(&before), "a replay has the id of the first delivery");
    let db = postgres(&app.database).await;
    let sql = "SELECT count(*) FROM delivery_attempts WHERE round = 2 AND attempt = 1 AND status = 'success'";
    assert_eq!(count(&db, sql).await, 3);
    let request = app.client.post(app.url("/dlq/retry")).header("x-api-key", &account.key);
    let answer = request.json(&json!({})).send().await.expect("an answer");
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!((&body["requeued"], &body["skipped"]), (&json!(0), &json!(0)), "no letter is left open");
    app.stop().await;
}

#[tokio::test]
async fn what_is_on_its_way_is_left_alone() {
    let app = App::with("replay-pending", |c| {
        swept_soon(c);
        c.recover.sweep_after = std::time::Duration::from_secs(3);
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    set(&app, &account, json!({ "state": "paused" })).await;
    for n in 0..3 {
        app.send(&account.key, "t", json!(n)).await;
    }
    // First by their batch, and once that is accounted for by the schedule.
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [0, 0, 3, 3]);
    let db = postgres(&app.database).await;
    eventually("the batches are swept", PATIENCE, async || {
        let left = count(&db, "SELECT count(*) FROM batches").await;
        if left == 0 { Ok(()) } else { Err(format!("{left}")) }
    })
    .await;
    assert_eq!(count(&db, "SELECT count(*) FROM scheduled").await, 3);
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [0, 0, 3, 3]);
    // A paused webhook keeps what it is given.
    past(&app, &account, 5000, 2, 1000).await;
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [2, 0, 3, 5]);
    assert_eq!(receiver.count(), 0);
    set(&app, &account, json!({ "state": "active" })).await;
    received(&receiver, 5).await;
    app.settled().await;
    assert_eq!(receiver.count(), 5, "each once");
    app.stop().await;
}

#[tokio::test]
async fn types_are_those_of_the_webhook_and_of_the_request() {
    let app = App::with("replay-types", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    set(&app, &account, json!({ "eventTypes": ["none"] })).await;
    let mut ids = Vec::new();
    for kind in ["order.paid", "order.sent", "invoice.paid", "other"] {
        ids.push(app.send(&account.key, kind, json!(1)).await);
    }
    app.settled().await;
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [0, 0, 0, 4]);
    set(&app, &account, json!({ "eventTypes": ["order.*", "invoice.paid"] })).await;
    let some = json!({ "since": since(), "eventTypes": ["order.sent", "invoice.*", "other"] });
    assert_eq!(replay(&app, &account, some).await, [2, 0, 0, 4]);
    received(&receiver, 2).await;
    app.settled().await;
    assert_eq!(got(&receiver), ids[1..3]);
    assert_eq!(replay(&app, &account, json!({ "since": since() })).await, [1, 2, 0, 4]);
    app.settled().await;
    assert_eq!(got(&receiver), ids[..3]);
    app.stop().await;
}

#[tokio::test]
async fn a_long_range_goes_page_by_page_within_its_times() {
    let app = App::with("replay-pages", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    // A day ago, in between, and a minute ago.
    let hour = 3_600_000;
    past(&app, &account, 0, 200, 24 * hour).await;
    past(&app, &account, 10_000, 1300, 2 * hour).await;
    past(&app, &account, 20_000, 200, 60_000).await;
    let (since, until) = (ago(3 * hour), ago(hour));
    let mut body = json!({ "since": since, "until": until, "limit": 600 });
    let (mut seen, mut calls) = (0, 0);
    loop {
        let (status, answer) = call(&app, &account, account.webhook, body.clone()).await;
        assert_eq!(status, 200, "{answer}");
        let [replayed, .., scanned] = numbers(&answer);
        assert_eq!(replayed, scanned, "{answer}");
        (seen, calls) = (seen + replayed, calls + 1);
        assert_eq!(answer["remaining"], json!(1300 - seen));
        if answer["next"].is_null() {
            break;
        }
        // The cursor keeps the end, whoever leaves it out.
        body = json!({ "since": since, "limit": 600, "after": answer["next"] });
    }
    assert_eq!((seen, calls), (1300, 3));
    received(&receiver, 1300).await;
    app.settled().await;
    assert_eq!(got(&receiver), Vec::from_iter(10_001..=11_300));
    // To the millisecond: a millisecond lies between each two of these.
    let (from, to) = {
        let db = postgres(&app.database).await;
        let sql = "SELECT min(created_at), max(created_at) FROM events WHERE id IN (20010, 20020)";
        let row = db.query_one(sql, &[]).await.expect("a row");
        let text = |at: std::time::SystemTime| Timestamp::from(at).to_string();
        (text(row.get(0)), text(row.get(1)))
    };
    assert_eq!(replay(&app, &account, json!({ "since": from, "until": to })).await, [10, 0, 0, 10]);
    app.settled().await;
    assert_eq!(got(&receiver)[1300..], Vec::from_iter(20_010..20_020));
    app.stop().await;
}

#[tokio::test]
async fn of_many_replays_at_once_each_delivery_is_scheduled_once() {
    let app = App::with("replay-race", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    past(&app, &account, 0, 900, 1000).await;
    let body = json!({ "since": since() });
    let calls = (0..8).map(|_| replay(&app, &account, body.clone()));
    let answers = futures_util::future::join_all(calls).await;
    let sum = |n: usize| answers.iter().map(|numbers| numbers[n]).sum::<i64>();
    assert_eq!((sum(0), sum(1) + sum(2)), (900, 7 * 900), "{answers:?}");
    received(&receiver, 900).await;
    app.settled().await;
    assert_eq!(receiver.count(), 900);
    app.stop().await;
}

/// A replay whose turn comes after another's deliveries sees them, however long ago it was asked for.
#[tokio::test]
async fn a_replay_that_waited_sees_what_was_delivered_meanwhile() {
    let app = App::with("replay-waits", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    past(&app, &account, 0, 1, 1000).await;
    let mut db = postgres(&app.database).await;
    let holder = db.transaction().await.expect("begun");
    holder.execute("SELECT FROM webhooks FOR UPDATE", &[]).await.expect("locked");
    let store = Store::new(&app.database, 1).expect("a URL");
    let (owner, webhook) = {
        let row = holder.query_one("SELECT account_id, id FROM webhooks", &[]).await.expect("a row");
        (AccountId(row.get(0)), WebhookId(row.get(1)))
    };
    let waiting =
        tokio::spawn(
            async move { store.replay(owner, webhook, &[EventId(1)], 60_000).await.expect("an answer") },
        );
    let watch = postgres(&app.database).await;
    eventually("it waits", PATIENCE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        if count(&watch, sql).await > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let delivered = "INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, reason_code, duration_ms,
        created_at) SELECT 1, id, 1, 1, 'success', 'delivered', 1, now() FROM webhooks";
    holder.execute(delivered, &[]).await.expect("a row");
    holder.commit().await.expect("committed");
    let counts = waiting.await.expect("no panic");
    let counts = counts.expect("the webhook is there");
    assert_eq!((counts.replayed, counts.delivered, counts.pending), (0, 1, 0));
    app.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let app = App::start("replay-wrong").await;
    let receiver = Receiver::start().await;
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let day = 24 * 3_600_000;
    for (field, value, code) in [
        ("since", Value::Null, "invalid_time"),
        ("since", json!(1), "invalid_time"),
        ("since", json!("yesterday"), "invalid_time"),
        ("since", json!("2999-01-01T00:00:00Z"), "invalid_range"),
        ("since", json!(ago(30 * day + 60_000)), "invalid_range"),
        ("until", json!("x"), "invalid_time"),
        ("until", json!(ago(2 * 3_600_000)), "invalid_range"),
        ("eventTypes", json!([]), "invalid_event_types"),
        ("eventTypes", json!(["*"]), "invalid_event_types"),
        ("limit", json!(0), "invalid_limit"),
        ("limit", json!(10_001), "invalid_limit"),
        ("limit", json!("5"), "invalid_limit"),
        ("after", json!(7), "invalid_after"),
        ("after", json!("7"), "invalid_after"),
        ("colour", json!(1), "invalid_body"),
    ] {
        let mut body = json!({ "since": since() });
        body[field] = value;
        let (status, answer) = call(&app, &account, account.webhook, body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{body}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(field), "{answer}");
    }
    let body = json!({ "since": since() });
    let wrong = json!({ "since": ago(3_600_000), "until": "2999-01-01T00:00:00Z" });
    assert_eq!(call(&app, &account, account.webhook, wrong).await.0, 200, "what is to come is left out");
    assert_eq!(call(&app, &account, account.webhook, json!([])).await.0, 400);
    assert_eq!(call(&app, &account, other.webhook, body.clone()).await.0, 404, "another's webhook");
    assert_eq!(call(&app, &account, 999, body.clone()).await.0, 404);
    assert_eq!(app.get(&account.key, &format!("/webhooks/{}/replay", account.webhook)).await.0, 405);
    let keyless = app.client.post(app.url(&format!("/webhooks/{}/replay", account.webhook)));
    assert_eq!(keyless.json(&body).send().await.expect("an answer").status(), 401);
    set(&app, &account, json!({ "state": "disabled" })).await;
    let (status, answer) = call(&app, &account, account.webhook, body.clone()).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("webhook_disabled")));
    let gone = app.client.delete(app.url(&format!("/webhooks/{}", account.webhook)));
    assert_eq!(gone.header("x-api-key", &account.key).send().await.expect("an answer").status(), 200);
    assert_eq!(call(&app, &account, account.webhook, body).await.0, 404, "deleted");
    app.stop().await;
}

/// The webhook may be disabled between two pages, so the statement asks again.
#[tokio::test]
async fn a_webhook_that_was_just_disabled_is_given_nothing() {
    let app = App::start("replay-disabled").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    past(&app, &account, 0, 3, 1000).await;
    let db = postgres(&app.database).await;
    let row = db.query_one("SELECT account_id, id FROM webhooks", &[]).await.expect("a row");
    let (owner, webhook) = (AccountId(row.get(0)), WebhookId(row.get(1)));
    let store = Store::new(&app.database, 1).expect("a URL");
    let events = [1, 2, 3].map(EventId);
    let foreign = AccountId(owner.0 + 1);
    assert!(store.replay(foreign, webhook, &events, 60_000).await.expect("an answer").is_none());
    set(&app, &account, json!({ "state": "disabled" })).await;
    assert!(store.replay(owner, webhook, &events, 60_000).await.expect("an answer").is_none());
    assert_eq!(count(&db, "SELECT count(*) FROM scheduled").await, 0);
    set(&app, &account, json!({ "state": "paused" })).await;
    let counts = store.replay(owner, webhook, &events, 60_000).await.expect("an answer");
    assert_eq!(counts.map(|counts| counts.replayed), Some(3));
    app.stop().await;
}
