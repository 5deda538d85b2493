//! Dead letters by filter, many of them brought back at once, and what becomes of old ones.

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

#[tokio::test]
async fn a_bulk_requeue_does_not_walk_over_what_was_requeued() {
    let app = App::with("open-letters", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(&app, &account, 5000).await;
    let db = postgres(&app.database).await;
    let done =
        "UPDATE dlq_entries SET requeued_at = now() WHERE id <= (SELECT max(id) FROM dlq_entries) - 100";
    assert_eq!(db.execute(done, &[]).await.expect("the statement runs"), 4900);
    db.batch_execute("VACUUM ANALYZE dlq_entries").await.expect("the statement runs");
    let (_, body) = bulk(&app, &account, json!({ "limit": 60 })).await;
    assert_eq!((&body["requeued"], &body["remaining"]), (&json!(60), &json!(40)));
    let (_, body) = bulk(&app, &account, json!({ "after": body["next"] })).await;
    assert_eq!((&body["requeued"], &body["remaining"]), (&json!(40), &json!(0)));
    let scans =
        "SELECT coalesce(max(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname = 'dlq_entries_open'";
    // What a connection did is told now and then, when it is used.
    eventually("the index of open letters is used", PATIENCE, async || {
        bulk(&app, &account, json!({})).await;
        let found = count(&db, scans).await;
        if found >= 4 { Ok(()) } else { Err(format!("{found} scans")) }
    })
    .await;
    app.settled().await;
    assert_eq!(receiver.count(), 100);
    app.stop().await;
}

/// Longer than a lease of `due` lasts: when Redis' answer to one comes too late, as on a machine that stalls for seconds, its
/// 128 deliveries are made when it ends, after 47 s.
async fn letters_left(db: &tokio_postgres::Client, n: i64) {
    eventually("old letters are removed", PATIENCE * 3, async || {
        let found = count(db, "SELECT count(*) FROM dlq_entries").await;
        if found == n { Ok(()) } else { Err(format!("{found}, not {n}")) }
    })
    .await;
}

#[tokio::test]
async fn old_dead_letters_are_removed_but_for_those_whose_delivery_is_owed_again() {
    let url = database("retention").await;
    let mut config = config(&url);
    swept_soon(&mut config);
    config.dlq.retention = Duration::from_secs(3600);
    let apps = [App::of(config.clone(), Roles::Both).await, App::of(config, Roles::Both).await];
    let app = &apps[0];
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(app, &account, 2550).await;
    // More than one step looks at, so that what is kept must not stand in the way of the rest.
    app.set_state(&account, "paused").await;
    assert_eq!(bulk(app, &account, json!({ "limit": 1100 })).await.1["requeued"], json!(1100));
    let db = postgres(&app.database).await;
    let old = "UPDATE dlq_entries SET created_at = now() - interval '2 hours'
               WHERE id <= (SELECT id FROM dlq_entries ORDER BY id OFFSET 2499 LIMIT 1)";
    assert_eq!(db.execute(old, &[]).await.expect("the statement runs"), 2500);
    letters_left(&db, 1150).await;
    let kept = "SELECT count(*) FROM dlq_entries JOIN scheduled USING (event_id, webhook_id) WHERE requeued_at IS NOT NULL";
    assert_eq!(count(&db, kept).await, 1100, "what is owed again keeps its letter");
    app.set_state(&account, "active").await;
    letters_left(&db, 50).await;
    let removed: f64 = apps.iter().map(|a| a.metric("eventpulse_dlq_removed_total")).sum();
    assert!((removed - 2500.0).abs() < f64::EPSILON, "{removed}");
    app.settled().await;
    assert_eq!(receiver.count(), 1100);
    for app in apps {
        app.stop().await;
    }
}

async fn resend(app: &App, account: &Account, event: &Value) -> u16 {
    let request = app.client.post(app.url(&format!("/events/{event}/resend")));
    let request = request.header("x-api-key", &account.key).json(&json!({ "webhookId": account.webhook }));
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn a_resend_requeues_the_dead_letter_of_its_delivery() {
    let app = App::with("resent-letter", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(&app, &account, 20).await;
    app.set_state(&account, "paused").await;
    let entries = app.get(&account.key, "/dlq").await.1["dlqEntries"].as_array().unwrap().clone();
    let (first, others) = entries.split_first().unwrap();
    let retry = format!("/dlq/{}/retry", first["id"]);
    assert_eq!(resend(&app, &account, &first["eventId"]).await, 200);
    let (status, body) = app.post(&account.key, &retry).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("already_requeued")), "{body}");
    let shown = app.get(&account.key, "/dlq").await.1["dlqEntries"][0].clone();
    assert!(shown["id"] == first["id"] && shown["requeuedAt"].is_string(), "{shown}");
    // At the same time, one of the two wins, and neither waits for the other for ever.
    for entry in others {
        let path = format!("/dlq/{}/retry", entry["id"]);
        let (resent, requeued) =
            tokio::join!(resend(&app, &account, &entry["eventId"]), app.post(&account.key, &path));
        let statuses = std::collections::BTreeSet::from([resent, requeued.0]);
        assert_eq!(statuses, [200, 409].into(), "{entry}");
    }
    assert_eq!(bulk(&app, &account, json!({})).await.1["requeued"], json!(0));
    app.set_state(&account, "active").await;
    app.settled().await;
    assert_eq!(receiver.count(), 20, "each delivery once");
    app.stop().await;
}

#[tokio::test]
async fn a_dead_letter_waits_for_a_later_round_of_its_delivery() {
    let app = App::with("later-round", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    letters(&app, &account, 1).await;
    app.set_state(&account, "paused").await;
    let db = postgres(&app.database).await;
    // Two letters of one delivery, whose third round is on its way.
    db.batch_execute(
        "INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
             SELECT account_id, event_id, webhook_id, 2, 3, reason, reason_code FROM dlq_entries;
         INSERT INTO scheduled SELECT event_id, webhook_id, 3, 1, now() + interval '1 h', now() + interval '1 day', 'retry'
             FROM dlq_entries WHERE round = 2",
    )
    .await
    .expect("the statements run");
    for entry in app.get(&account.key, "/dlq").await.1["dlqEntries"].as_array().unwrap() {
        let (status, body) = app.post(&account.key, &format!("/dlq/{}/retry", entry["id"])).await;
        assert_eq!((status, &body["error"]["code"]), (409, &json!("already_scheduled")), "{body}");
    }
    let (_, body) = bulk(&app, &account, json!({})).await;
    assert_eq!((&body["requeued"], &body["skipped"]), (&json!(0), &json!(2)), "{body}");
    let open = "SELECT count(*) FROM dlq_entries WHERE requeued_at IS NULL";
    assert_eq!(count(&db, open).await, 2, "they can be requeued later");
    db.batch_execute(
        "WITH s AS (DELETE FROM scheduled RETURNING *)
         INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, reason_code, duration_ms, created_at)
             SELECT event_id, webhook_id, round, attempt, 'success', 'ok', 1, now() FROM s",
    )
    .await
    .expect("the statement runs");
    let (status, body) = bulk(&app, &account, json!({})).await;
    assert_eq!((status, &body["requeued"]), (200, &json!(1)), "both by one round: {body}");
    assert_eq!(count(&db, open).await, 0);
    app.set_state(&account, "active").await;
    app.settled().await;
    assert_eq!(receiver.count(), 1);
    let rounds = "SELECT max(round)::bigint FROM delivery_attempts WHERE status = 'success'";
    assert_eq!(count(&db, rounds).await, 4, "a round that was never tried");
    assert_eq!(app.metric("eventpulse_deliver_repeats_total"), 0.0);
    app.stop().await;
}
