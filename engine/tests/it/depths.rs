//! Metrics that say how far behind the work is: as old, as many and as full as it really is, and `NaN` when nobody can know.

use std::time::Duration;

use eventpulse::config::{Roles, value::Secret};
use eventpulse_testkit::{
    Receiver, eventually, private_redis,
    proxy::{Mode, TcpProxy},
    receiver::Reply,
    stack,
};
use serde_json::json;

use crate::harness::{App, PATIENCE, config, count, database, postgres};

/// Waits until a metric is as it should be.
async fn becomes(app: &App, name: &str, good: impl Fn(f64) -> bool) {
    eventually(&format!("{name} is right"), PATIENCE, async || {
        let value = app.metric(name);
        if good(value) { Ok(()) } else { Err(value.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn what_waits_is_as_old_as_it_is() {
    let redis = private_redis().await;
    let mut settings = config(&database("ages").await);
    settings.redis_url = Secret::new(redis.url());
    // Nobody delivers, so all of it stays.
    let gateway = App::of(settings.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    becomes(&gateway, "eventpulse_recover_oldest_undelivered_seconds", |age| age == 0.0).await;
    let id = gateway.send(&account.key, "t", json!(1)).await;
    becomes(&gateway, "eventpulse_stream_length_entries", |n| n >= 1.0).await;
    becomes(&gateway, "eventpulse_stream_lag_entries", |n| n >= 1.0).await;
    becomes(&gateway, "eventpulse_redis_memory_used_bytes", |n| n > 100_000.0).await;

    let db = postgres(&gateway.database).await;
    db.batch_execute("UPDATE batches SET created_at = now() - interval '1 day'").await.unwrap();
    becomes(&gateway, "eventpulse_recover_oldest_undelivered_seconds", |age| age >= 86_400.0).await;
    let sql = format!(
        "UPDATE events SET created_at = now() - interval '3 days' WHERE id = {id};
         INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
         VALUES ({id}, {}, 1, 2, now() - interval '10 minutes', now() + interval '1 day', 'retry')",
        account.webhook
    );
    db.batch_execute(&sql).await.unwrap();
    becomes(&gateway, "eventpulse_recover_oldest_undelivered_seconds", |age| age >= 3.0 * 86_400.0).await;
    becomes(&gateway, "eventpulse_retry_overdue_seconds", |age| age >= 600.0).await;

    let dispatcher = App::of(settings, Roles::Dispatcher).await;
    for app in [&gateway, &dispatcher] {
        becomes(app, "eventpulse_retry_overdue_seconds", |age| age == 0.0).await;
        becomes(app, "eventpulse_stream_lag_entries", |n| n == 0.0).await;
        becomes(app, "eventpulse_stream_pending_entries", |n| n == 0.0).await;
    }
    dispatcher.stop().await;
    gateway.stop().await;
}

#[tokio::test]
async fn latency_counts_from_the_commit_and_new_rounds_not_at_all() {
    let app = App::start("latency").await;
    let receiver = Receiver::start().await;
    receiver.script(|request| if request.n < 3 { Reply::status(500) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    let (first, delivered) = (
        "eventpulse_deliver_publish_to_first_attempt_seconds_count",
        "eventpulse_deliver_publish_to_delivered_seconds_count",
    );
    // All three attempts fail: one first attempt, and nothing is delivered.
    app.send(&account.key, "t", json!(1)).await;
    becomes(&app, "eventpulse_dlq_depth", |n| n == 1.0).await;
    assert_eq!((app.metric(first), app.metric(delivered)), (1.0, 0.0));
    // A new round succeeds, whenever somebody asks for it.
    let db = postgres(&app.database).await;
    let letter = count(&db, "SELECT id FROM dlq_entries").await;
    let (status, _) = app.post(&account.key, &format!("/dlq/{letter}/retry")).await;
    assert_eq!(status, 200);
    becomes(&app, "eventpulse_deliver_attempts_total{outcome=\"delivered\"}", |n| n == 1.0).await;
    becomes(&app, "eventpulse_dlq_depth", |n| n == 0.0).await;
    assert_eq!((app.metric(first), app.metric(delivered)), (1.0, 0.0));
    // Delivered at the second attempt: later than the first one ended.
    receiver.clear();
    receiver.script(|request| if request.n == 0 { Reply::status(500) } else { Reply::ok() });
    let sum = "eventpulse_deliver_publish_to_first_attempt_seconds_sum";
    let before = app.metric(sum);
    app.send(&account.key, "t", json!(2)).await;
    becomes(&app, delivered, |n| n == 1.0).await;
    assert_eq!(app.metric(first), 2.0);
    let (tried, arrived) =
        (app.metric(sum) - before, app.metric("eventpulse_deliver_publish_to_delivered_seconds_sum"));
    assert!(arrived > tried, "tried after {tried} s, arrived after {arrived} s");
    app.stop().await;
}

#[tokio::test]
async fn without_postgres_ages_are_unknown_and_waiting_for_a_connection_shows() {
    let direct = database("unknown").await;
    let server = format!("127.0.0.1:{}", stack().postgres.lock().unwrap().port());
    let proxy = TcpProxy::start(server.parse().unwrap()).await;
    let mut config = config(&direct.replace(&server, &proxy.addr().to_string()));
    config.ingest.commit_timeout = Duration::from_millis(400);
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.get(&account.key, "/events").await;
    becomes(&app, "eventpulse_retry_overdue_seconds", |age| age == 0.0).await;
    becomes(&app, "eventpulse_store_pool_waiting", |n| n == 0.0).await;
    proxy.set(Mode::Stall).await;
    // More than the pool has connections.
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let request = app.client.get(app.url("/events")).header("x-api-key", &account.key);
            tokio::spawn(request.send())
        })
        .collect();
    becomes(&app, "eventpulse_store_pool_waiting", |n| n > 0.0).await;
    proxy.set(Mode::Refuse).await;
    proxy.cut_all().await;
    becomes(&app, "eventpulse_retry_overdue_seconds", f64::is_nan).await;
    becomes(&app, "eventpulse_recover_oldest_undelivered_seconds", f64::is_nan).await;
    for request in asked {
        let _ = request.await;
    }
    proxy.set(Mode::Pass).await;
    becomes(&app, "eventpulse_retry_overdue_seconds", |age| age == 0.0).await;
    becomes(&app, "eventpulse_store_pool_waiting", |n| n == 0.0).await;
    app.stop().await;
}
