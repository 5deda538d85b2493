//! Dead letters by filter, and many of them brought back at once.

use std::time::Duration;

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, config, count, database, postgres, swept_soon};

async fn bulk(app: &App, account: &Account, body: Value) -> (u16, Value) {
    let request = app.client.post(app.url("/dlq/retry")).header("x-api-key", &account.key);
    let response = request.json(&body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// Dead letters of an account, made by hand: every other one with another reason code.
async fn letters(app: &App, account: &Account, n: i64) {
    let db = postgres(&app.database).await;
    let sql = "WITH a AS (SELECT id, account_id FROM webhooks WHERE id = $1),
        e AS (INSERT INTO events (id, account_id, type, payload, created_at)
            SELECT 50000000 + g, account_id, 't', '1', now() FROM a, generate_series(1, $2::bigint) AS g RETURNING id)
        INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
        SELECT a.account_id, e.id, a.id, 1, 3, 'by the test', CASE WHEN e.id % 2 = 0 THEN 'even' ELSE 'odd' END
        FROM a, e ORDER BY e.id";
    db.execute(sql, &[&account.webhook, &n]).await.expect("rows");
}

#[tokio::test]
async fn a_bulk_requeue_goes_page_by_page_and_can_be_resumed() {
    let app = App::with("bulk-requeue", swept_soon).await;
    let receiver = Receiver::start().await;
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    letters(&app, &account, 1300).await;
    let (status, body) = app.get(&account.key, "/dlq?reasonCode=even&limit=200").await;
    assert_eq!((status, body["dlqEntries"].as_array().map(Vec::len)), (200, Some(200)));
    let since = "/dlq?since=2999-01-01T00:00:00Z";
    assert_eq!(app.get(&account.key, since).await.1["dlqEntries"], json!([]));
    let (_, body) = bulk(&app, &other, json!({})).await;
    assert_eq!((&body["requeued"], &body["next"]), (&json!(0), &Value::Null), "not another's");
    let (mut after, mut requeued, mut calls) = (json!(0), 0, 0);
    while !after.is_null() {
        let (status, body) =
            bulk(&app, &account, json!({ "reasonCode": "even", "limit": 300, "after": after })).await;
        assert_eq!(status, 200, "{body}");
        requeued += body["requeued"].as_i64().unwrap();
        assert_eq!(body["remaining"], json!(650 - requeued), "{body}");
        after = body["next"].clone();
        calls += 1;
    }
    assert_eq!((requeued, calls), (650, 3));
    let db = postgres(&app.database).await;
    eventually("they are delivered", PATIENCE, async || {
        let sql = "SELECT count(*) FROM delivery_attempts WHERE status = 'success' AND round = 2";
        let found = count(&db, sql).await;
        if found == 650 { Ok(()) } else { Err(format!("{found}")) }
    })
    .await;
    app.settled().await;
    assert_eq!(receiver.count(), 650);
    app.stop().await;
}

/// A gateway alone, so that the schedule stays as the calls leave it.
#[tokio::test]
async fn a_new_round_ends_by_the_webhooks_own_retries() {
    let mut config = config(&database("own-expiry").await);
    config.retry.schedule = "1s,1s".parse().unwrap();
    config.deliver.timeout = Duration::from_secs(10);
    let app = App::of(config, Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(&app, &account, 7).await;
    let db = postgres(&app.database).await;
    // The events of the first webhook, and letters for both.
    let own =
        json!({ "name": "own", "url": receiver.url("/"), "retry": { "schedule": ["1h"] }, "timeoutMs": 500 });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key);
    let answer: Value = request.json(&own).send().await.expect("an answer").json().await.expect("JSON");
    let own = answer["webhook"]["id"].as_i64().expect("an id");
    // Letters of five events for either: one is sent by resend and one by replay.
    let more = "INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
        SELECT account_id, event_id, $1, round, attempts, reason, reason_code FROM dlq_entries WHERE event_id < 50000006";
    db.execute(more, &[&own]).await.expect("rows");
    let sql = format!("SELECT id FROM dlq_entries WHERE webhook_id = {own} AND event_id = 50000001");
    let path = format!("/dlq/{}/retry", count(&db, &sql).await);
    assert_eq!(app.post(&account.key, &path).await.0, 200);
    let (status, body) = bulk(&app, &account, json!({ "limit": 10_000 })).await;
    assert_eq!((status, &body["requeued"]), (200, &json!(11)), "{body}");
    let request = app.client.post(app.url("/events/50000006/resend")).header("x-api-key", &account.key);
    let answer = request.json(&json!({ "webhookId": own })).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let request = app.client.post(app.url(&format!("/webhooks/{own}/replay")));
    let since = eventpulse::model::Timestamp(eventpulse::model::Timestamp::now().0 - 60_000).to_string();
    let request = request.header("x-api-key", &account.key).json(&json!({ "since": since }));
    let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!((&answer["replayed"], &answer["pending"]), (&json!(1), &json!(6)), "{answer}");
    // The waits and a time-out each, and a fifth more.
    for (webhook, rows, ms) in [(account.webhook, 7, 38_400), (own, 7, 4_321_200)] {
        let sql = format!(
            "SELECT count(*) FROM scheduled WHERE webhook_id = {webhook}
            AND expires_at - next_at = {ms} * interval '1 millisecond'"
        );
        assert_eq!(count(&db, &sql).await, rows, "of {webhook}");
    }
    app.stop().await;
}

#[tokio::test]
async fn of_many_requeues_at_once_one_wins() {
    let app = App::with("requeue-race", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(&app, &account, 1).await;
    let id = app.get(&account.key, "/dlq").await.1["dlqEntries"][0]["id"].clone();
    let path = format!("/dlq/{id}/retry");
    let calls = (0..20).map(|_| app.post(&account.key, &path));
    let mut statuses: Vec<u16> = futures_util::future::join_all(calls).await.iter().map(|a| a.0).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200], vec![409; 19]].concat());
    app.settled().await;
    assert_eq!(receiver.count(), 1);
    app.stop().await;
}

#[tokio::test]
async fn wrong_filters_are_named() {
    let app = App::start("filters").await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok());
    let account = app.register(&receiver.url("/")).await;
    for (query, code) in [("since=yesterday", "invalid_time"), ("webhookId=x", "invalid_id")] {
        let (status, body) = app.get(&account.key, &format!("/dlq?{query}")).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!(code)));
    }
    for (body, code) in [
        (json!({ "limit": 0 }), "invalid_limit"),
        (json!({ "until": "x" }), "invalid_time"),
        (json!({ "colour": 1 }), "invalid_body"),
    ] {
        let (status, answer) = bulk(&app, &account, body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)));
    }
    app.stop().await;
}
