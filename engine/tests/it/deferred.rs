//! What a fast lane has no room for waits beside its stream entry.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use eventpulse::config::{Config, Roles};
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};

use crate::harness::{App, PATIENCE, config, count, database, ids, postgres, swept_soon};

fn narrow(config: &mut Config) {
    swept_soon(config);
    config.lane.in_flight_max = 2;
    config.lane.queue_max = 5;
}

#[tokio::test]
async fn a_fast_lane_takes_its_overflow_from_the_stream() {
    assert_eq!(overflow("deferred", narrow).await, 0.0, "all payloads were kept");
}

#[tokio::test]
async fn payloads_that_there_is_no_room_for_are_read_again() {
    let read = overflow("deferred-again", |config| {
        narrow(config);
        config.http.body_bytes_max = 16 << 10;
        config.dispatch.held_bytes_max = 64 << 10;
    })
    .await;
    assert!((30.0..95.0).contains(&read), "8 KiB are kept: {read}");
}

/// A hundred events for a narrow lane. Returns how many payloads were read twice.
async fn overflow(name: &str, change: impl FnOnce(&mut Config)) -> f64 {
    let app = App::with(name, change).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(20)));
    let account = app.register(&receiver.url("/")).await;
    app.send_at_once(&account, 100).await;
    app.settled().await;
    let got = ids(&receiver);
    assert_eq!(got.len(), 100, "each exactly once");
    let inversions = got.windows(2).filter(|pair| pair[0] > pair[1] + 10).count();
    assert_eq!(inversions, 0, "about in their order: {got:?}");
    assert!(receiver.concurrency_max() <= 2, "{}", receiver.concurrency_max());
    assert!(app.metric("eventpulse_lane_deferred_total") >= 50.0);
    assert_eq!(app.metric("eventpulse_lane_parked_total{reason=\"parked\"}"), 0.0, "no row was made for any");
    eventually("nothing waits any more", PATIENCE, async || {
        let waiting = app.metric("eventpulse_lane_deferred");
        if waiting == 0.0 { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
    let read = app.metric("eventpulse_lane_deferred_read_total");
    app.stop().await;
    read
}

#[tokio::test]
async fn a_lane_that_turns_slow_keeps_no_entry_open() {
    let app = App::with("turned-slow", |c| {
        narrow(c);
        c.deliver.timeout = Duration::from_secs(20);
        c.lane.breaker_failures = 0;
    })
    .await;
    let receiver = Receiver::start().await;
    let hangs = Arc::new(AtomicBool::new(true));
    let endpoint = hangs.clone();
    receiver.script(move |_| {
        let delay = if endpoint.load(Relaxed) { 4000 } else { 1 };
        Reply::ok().with_delay(Duration::from_millis(delay))
    });
    let account = app.register(&receiver.url("/")).await;
    let sent = app.send_at_once(&account, 60).await;
    let db = postgres(&app.database).await;
    // Two are in flight beyond the hold; the rest is in rows before one of them has ended.
    eventually("all of it stands in the schedule", PATIENCE, async || {
        let rows = count(&db, "SELECT count(*) FROM scheduled").await;
        if rows >= 58 { Ok(()) } else { Err(rows.to_string()) }
    })
    .await;
    assert!(app.metric("eventpulse_lane_deferred_total") > 0.0, "it was thought to be fast");
    assert!(receiver.count() <= 4, "so few were tried: {}", receiver.count());
    hangs.store(false, Relaxed);
    app.settled().await;
    let got = ids(&receiver);
    assert_eq!((got.len(), got.into_iter().collect::<HashSet<_>>()), (60, sent));
    app.stop().await;
}

#[tokio::test]
async fn what_waited_is_another_dispatchers_after_a_stop() {
    let mut config = config(&database("deferred-stop").await);
    narrow(&mut config);
    let gateway = App::of(config.clone(), Roles::Api).await;
    let one = App::of(config.clone(), Roles::Dispatcher).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(30)));
    let account = gateway.register(&receiver.url("/")).await;
    let sent = gateway.send_at_once(&account, 80).await;
    eventually("some wait", PATIENCE, async || {
        let waiting = one.metric("eventpulse_lane_deferred");
        if waiting > 0.0 { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
    one.stop().await;
    let before = receiver.count();
    assert!(before < 80, "it was stopped in time: {before}");
    let two = App::of(config, Roles::Dispatcher).await;
    gateway.settled().await;
    let got = ids(&receiver);
    assert_eq!((got.len(), got.into_iter().collect::<HashSet<_>>()), (80, sent), "each exactly once");
    two.stop().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_webhook_that_was_disabled_meanwhile_gets_nothing_more() {
    let app = App::with("deferred-disabled", narrow).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(50)));
    let account = app.register(&receiver.url("/")).await;
    app.send_at_once(&account, 100).await;
    app.set_state(&account, "disabled").await;
    app.settled().await;
    let db = postgres(&app.database).await;
    let dead = count(&db, "SELECT count(*) FROM dlq_entries").await;
    let delivered = count(&db, "SELECT count(*) FROM delivery_attempts WHERE status = 'success'").await;
    assert_eq!(dead + delivered, 100);
    assert!(dead > 30, "{dead} dead letters and {delivered} deliveries");
    app.stop().await;
}
