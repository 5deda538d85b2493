//! Redis forgets everything, or what happened last: its index is made again, and what is in hand meanwhile is not sent twice.
//! The sweep has its usual minute in these tests, so it is not what helps.

use std::{collections::HashMap, time::Duration};

use eventpulse::config::{Config, Roles, value::Secret};
use eventpulse_embedded::Redis;
use eventpulse_testkit::{Receiver, eventually, private_redis, receiver::Reply};
use serde_json::json;

use crate::harness::{App, PATIENCE, config, count, database, ids, postgres};

async fn on(redis: &Redis, hint: &str) -> Config {
    let mut config = config(&database(hint).await);
    config.redis_url = Secret::new(redis.url());
    config
}

async fn tell(redis: &Redis, command: &[&str]) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.unwrap();
}

async fn restart(mut redis: Redis) -> Redis {
    let restarted = move || {
        redis.restart().expect("restarted");
        redis
    };
    tokio::task::spawn_blocking(restarted).await.unwrap()
}

async fn received(receiver: &Receiver, n: usize) {
    eventually("they come", PATIENCE, async || {
        let came = receiver.count();
        if came >= n { Ok(()) } else { Err(format!("{came} of {n}")) }
    })
    .await;
}

/// Waits until Redis was looked over again after a loss.
async fn in_order_again(apps: &[&App]) {
    eventually("the index is in order again", PATIENCE, async || {
        // In this order: what is in order after a loss was counted is in order again.
        let lost: f64 = apps.iter().map(|app| app.metric("eventpulse_recover_rebuilds_total")).sum();
        let open = apps.iter().all(|app| app.metric("eventpulse_recover_redis_in_order") == 1.0);
        if open && lost > 0.0 { Ok(()) } else { Err(format!("lost {lost}, in order: {open}")) }
    })
    .await;
}

#[tokio::test]
async fn what_is_in_hand_when_redis_is_wiped_is_not_sent_again() {
    const N: usize = 6;
    let redis = private_redis().await;
    let config = on(&redis, "inhand").await;
    let first = App::of(config.clone(), Roles::Both).await;
    let second = App::of(config, Roles::Dispatcher).await;
    let (slow, retried) = (Receiver::start().await, Receiver::start().await);
    // Longer than it takes to make the index again.
    let long = Duration::from_secs(14);
    slow.script(move |_| Reply::ok().with_delay(long));
    retried.script(move |request| match request.headers["x-eventpulse-attempt"].to_str() {
        Ok("1") => Reply::status(500),
        _ => Reply::ok().with_delay(long),
    });
    let (a, b) = (first.register(&slow.url("/")).await, first.register(&retried.url("/")).await);
    for n in 0..N {
        first.send(&a.key, "t", json!(n)).await;
        first.send(&b.key, "t", json!(n)).await;
    }
    // Some first tries and some retries are on the wire, and all the others wait for their turn.
    received(&slow, 3).await;
    received(&retried, N + 3).await;
    tell(&redis, &["FLUSHALL"]).await;
    in_order_again(&[&first, &second]).await;
    let db = postgres(&first.database).await;
    eventually("all are delivered", PATIENCE * 3, async || {
        let sql = "SELECT count(*) FROM delivery_attempts WHERE status = 'success'";
        let done = count(&db, sql).await;
        if done == 2 * N as i64 { Ok(()) } else { Err(format!("{done} of {}", 2 * N)) }
    })
    .await;
    for (receiver, each) in [(&slow, 1), (&retried, 2)] {
        let mut times: HashMap<i64, usize> = HashMap::new();
        ids(receiver).into_iter().for_each(|id| *times.entry(id).or_default() += 1);
        assert!(times.values().all(|n| *n == each), "{times:?}");
    }
    for app in [first, second] {
        assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
        app.stop().await;
    }
}

#[tokio::test]
async fn what_nobody_had_read_when_redis_was_wiped_is_streamed_again() {
    let redis = private_redis().await;
    let config = on(&redis, "unread").await;
    let gateway = App::of(config.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let mut sent = Vec::new();
    for n in 0..50 {
        sent.push(gateway.send(&account.key, "t", json!(n)).await);
    }
    let db = postgres(&gateway.database).await;
    eventually("all are streamed", PATIENCE, async || {
        let new = count(&db, "SELECT count(*) FROM batches WHERE state = 0").await;
        if new == 0 { Ok(()) } else { Err(format!("{new} are not")) }
    })
    .await;
    tell(&redis, &["FLUSHALL"]).await;
    in_order_again(&[&gateway]).await;
    assert!(gateway.metric("eventpulse_recover_restreamed_total") > 0.0);
    let dispatcher = App::of(config, Roles::Dispatcher).await;
    received(&receiver, 50).await;
    let mut got = ids(&receiver);
    got.sort_unstable();
    assert_eq!(got, sent);
    dispatcher.stop().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_redis_that_forgot_the_last_moments_sends_nothing_again() {
    let redis = private_redis().await;
    let config = on(&redis, "rollback").await;
    let gateway = App::of(config.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    for n in 0..50 {
        gateway.send(&account.key, "t", json!(n)).await;
    }
    // From here on nothing reaches its file: not the group, nor what is read, acked and deleted.
    tell(&redis, &["CONFIG", "SET", "appendonly", "no"]).await;
    let dispatcher = App::of(config, Roles::Dispatcher).await;
    received(&receiver, 50).await;
    eventually("all are acked", PATIENCE, async || {
        let acked = dispatcher.metric("eventpulse_settle_acked_total");
        let entries = dispatcher.metric("eventpulse_dispatch_entries_total");
        if acked > 0.0 && acked == entries { Ok(()) } else { Err(format!("{acked} of {entries}")) }
    })
    .await;
    let redis = restart(redis).await;
    in_order_again(&[&gateway, &dispatcher]).await;
    let last = gateway.send(&account.key, "t", json!("last")).await;
    eventually("what comes after is delivered", PATIENCE, async || {
        if ids(&receiver).contains(&last) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(dispatcher.metric("eventpulse_dispatch_checked_total") > 0.0, "Redis did not forget");
    assert_eq!(receiver.count(), 51, "each once");
    dispatcher.stop().await;
    gateway.stop().await;
    drop(redis);
}
