//! What waits for one webhook: how much of it, and for how long.

use std::time::Duration;

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::json;

use crate::harness::{Account, App, PATIENCE, count, postgres, swept_soon};

async fn becomes(db: &tokio_postgres::Client, what: &str, sql: &str, n: i64) {
    eventually(what, PATIENCE, async || {
        let found = count(db, sql).await;
        if found == n { Ok(()) } else { Err(format!("{found}, not {n}")) }
    })
    .await;
}

const LIMITED: &str = "SELECT count(*) FROM dlq_entries WHERE reason_code = 'backlog_limit'";

#[tokio::test]
async fn of_a_backlog_that_is_too_long_the_oldest_end_as_dead_letters() {
    let app = App::with("backlog", |c| {
        swept_soon(c);
        c.lane.backlog_max = 20;
        c.recover.sweep_every = Duration::from_millis(100);
    })
    .await;
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let (account, fair) = (app.register(&receiver.url("/")).await, app.register(&other.url("/")).await);
    for account in [&account, &fair] {
        app.set_state(account, "paused").await;
    }
    let mut sent = Vec::new();
    for n in 0..50 {
        sent.push(app.send(&account.key, "t", json!(n)).await);
    }
    for n in 0..20 {
        app.send(&fair.key, "t", json!(n)).await;
    }
    let db = postgres(&app.database).await;
    becomes(&db, "the surplus is dead", LIMITED, 30).await;
    becomes(&db, "the rest waits", "SELECT count(*) FROM scheduled", 40).await;
    let last = format!("{LIMITED} AND webhook_id = {} AND attempts = 0", account.webhook);
    assert_eq!(count(&db, &last).await, 30, "nobody else's, and without an attempt");
    let ended = "SELECT count(*) FROM delivery_attempts JOIN dlq_entries USING (event_id, webhook_id, round)
                 WHERE status = 'dead' AND delivery_attempts.reason_code = 'backlog_limit' AND attempt = 1";
    assert_eq!(count(&db, ended).await, 30, "each has a last attempt that says why");
    assert_eq!(app.metric("eventpulse_lane_backlog_limited_total"), 30.0);
    for account in [&account, &fair] {
        app.set_state(account, "active").await;
    }
    app.settled().await;
    assert_eq!((receiver.count(), other.count()), (20, 20));
    let kept: Vec<i64> = receiver.requests().iter().map(event_id).collect();
    assert!(kept.iter().all(|id| sent[30..].contains(id)), "the newest are kept: {kept:?}, of {sent:?}");
    app.stop().await;
}

fn event_id(request: &eventpulse_testkit::receiver::Recorded) -> i64 {
    request.headers["x-eventpulse-event-id"].to_str().expect("text").parse().expect("an id")
}

#[tokio::test]
async fn of_too_many_retries_those_that_are_far_away_end() {
    let app = App::with("backlog-retries", |c| {
        swept_soon(c);
        c.lane.backlog_max = 10;
        c.lane.breaker_failures = 0;
        c.retry.schedule = "50s,1h".parse().unwrap();
        c.recover.sweep_every = Duration::from_millis(100);
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let near = app.register(&receiver.url("/")).await;
    let far = app.register(&receiver.url("/")).await;
    let url = app.url(&format!("/webhooks/{}", far.webhook));
    let change = json!({ "retry": { "schedule": ["1h"] } });
    let response = app.client.patch(url).header("x-api-key", &far.key).json(&change).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let db = postgres(&app.database).await;
    for n in 0..25 {
        app.send(&near.key, "t", json!(n)).await;
    }
    becomes(&db, "all is to be retried", "SELECT count(*) FROM scheduled WHERE reason = 'retry'", 25).await;
    for n in 0..25 {
        app.send(&far.key, "t", json!(n)).await;
    }
    becomes(&db, "the surplus is dead", LIMITED, 15).await;
    let left = |webhook| format!("SELECT count(*) FROM scheduled WHERE webhook_id = {webhook}");
    becomes(&db, "the rest waits", &left(far.webhook), 10).await;
    assert_eq!(count(&db, &left(near.webhook)).await, 25, "what may be in Redis stays");
    let attempts = format!("{LIMITED} AND webhook_id = {} AND attempts = 1", far.webhook);
    assert_eq!(count(&db, &attempts).await, 15);
    app.stop().await;
}

const DEAD: &str = "SELECT count(*) FROM dlq_entries";

#[tokio::test]
async fn time_in_a_pause_does_not_count_towards_the_expiry() {
    let app = App::with("long-pause", |c| {
        swept_soon(c);
        // With these a delivery expires after ten seconds.
        c.deliver.timeout = Duration::from_secs(1);
        c.deliver.connect_timeout = Duration::from_secs(1);
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.set_state(&account, "paused").await;
    for n in 0..30 {
        app.send(&account.key, "t", json!(n)).await;
    }
    let db = postgres(&app.database).await;
    becomes(&db, "all is on the shelf", "SELECT count(*) FROM scheduled WHERE reason = 'paused'", 30).await;
    let soonest = "SELECT (extract(epoch FROM min(expires_at)) * 1000)::bigint FROM scheduled";
    let expiry = count(&db, soonest).await;
    eventually("it would have expired", PATIENCE, async || {
        let since = count(&db, "SELECT (extract(epoch FROM now()) * 1000)::bigint").await - expiry;
        if since > 2000 { Ok(()) } else { Err(format!("{since} ms")) }
    })
    .await;
    app.set_state(&account, "active").await;
    app.settled().await;
    assert_eq!((receiver.count(), count(&db, DEAD).await), (30, 0));
    app.stop().await;
}

#[tokio::test]
async fn what_waited_in_a_pause_has_a_whole_schedule_from_its_end_on() {
    let app = App::with("resumed", |c| {
        swept_soon(c);
        c.retry.schedule = "1500ms".parse().unwrap();
    })
    .await;
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    for receiver in [&receiver, &other] {
        receiver.script(|r| if r.n < 5 { Reply::status(500) } else { Reply::ok() });
    }
    let (account, never) = (app.register(&receiver.url("/")).await, app.register(&other.url("/")).await);
    for n in 0..5 {
        app.send(&account.key, "t", json!(n)).await;
        app.send(&never.key, "t", json!(n)).await;
    }
    let db = postgres(&app.database).await;
    becomes(&db, "all are to be retried", "SELECT count(*) FROM scheduled WHERE reason = 'retry'", 10).await;
    for state in ["paused", "active"] {
        app.set_state(&account, state).await;
    }
    // As if the pause had been long, and nobody had looked at the rows meanwhile.
    db.execute("UPDATE scheduled SET expires_at = now() - interval '1 day'", &[]).await.expect("it runs");
    app.settled().await;
    let dead = |account: &Account| {
        format!("{DEAD} WHERE webhook_id = {} AND reason_code = 'expired'", account.webhook)
    };
    assert_eq!((receiver.count(), count(&db, &dead(&account)).await), (10, 0));
    assert_eq!((other.count(), count(&db, &dead(&never)).await), (5, 5), "who was never paused gets no more");
    app.stop().await;
}
