//! Several processes on one database and one Redis.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use eventpulse::{
    config::Roles,
    store::{Address, Link, Store},
};
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::json;

use crate::harness::{
    App, PATIENCE, config, count, database, ids, postgres,
    process::{self, Process},
    swept_soon,
};

async fn all_arrive(receiver: &Receiver, sent: &HashSet<i64>) {
    eventually("everything arrives", PATIENCE * 2, async || {
        let got: HashSet<i64> = ids(receiver).into_iter().collect();
        let missing = sent.difference(&got).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} missing", sent.len())) }
    })
    .await;
}

#[tokio::test]
async fn two_dispatchers_share_the_work() {
    let mut config = config(&database("share").await);
    swept_soon(&mut config);
    let gateway = App::of(config.clone(), Roles::Api).await;
    let (one, two) =
        (App::of(config.clone(), Roles::Dispatcher).await, App::of(config, Roles::Dispatcher).await);
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(2)));
    let account = gateway.register(&receiver.url("/")).await;
    let mut sent = HashSet::new();
    for n in 0..1000 {
        sent.insert(gateway.send(&account.key, "t", json!(n)).await);
    }
    all_arrive(&receiver, &sent).await;
    gateway.settled().await;
    assert_eq!(receiver.count(), 1000, "each once");
    let made = |app: &App| app.metric("eventpulse_deliver_attempts_total{outcome=\"delivered\"}");
    assert_eq!(made(&one) + made(&two), 1000.0);
    assert!(made(&one) > 0.0 && made(&two) > 0.0, "{} and {}", made(&one), made(&two));
    for app in [gateway, one, two] {
        app.stop().await;
    }
}

#[tokio::test]
async fn the_workers_of_one_process_share_the_work_and_the_limits() {
    let app = App::with("workers", |c| {
        swept_soon(c);
        c.dispatch.workers = 3;
        c.dispatch.beat = Duration::from_millis(50);
        c.lane.in_flight_max = 6;
    })
    .await;
    let receiver = Receiver::start().await;
    let hurry = Arc::new(AtomicBool::new(false));
    let hurried = hurry.clone();
    receiver.script(move |_| {
        let wait = if hurried.load(Relaxed) { 5 } else { 300 };
        Reply::ok().with_delay(Duration::from_millis(wait))
    });
    let account = app.register(&receiver.url("/")).await;
    // The gauge is set by each of them: at one moment it says what one has seen, over some beats what all have.
    let mut looks = 0;
    eventually("each has seen all three beat", PATIENCE, async || {
        let peers = app.metric("eventpulse_dispatch_peers");
        looks = if peers == 3.0 { looks + 1 } else { 0 };
        if looks == 25 { Ok(()) } else { Err(peers.to_string()) }
    })
    .await;
    let mut sent = HashSet::new();
    // A batch goes to one worker, and whoever is there first may take several: until the others have theirs, more is sent.
    eventually("more than one worker is at work", PATIENCE, async || {
        sent.extend(app.send_at_once(&account, 50).await);
        let most = receiver.concurrency_max();
        if most > 2 { Ok(()) } else { Err(format!("{most} at once of {}", sent.len())) }
    })
    .await;
    hurry.store(true, Relaxed);
    for _ in 0..6 {
        sent.extend(app.send_at_once(&account, 50).await);
    }
    all_arrive(&receiver, &sent).await;
    app.settled().await;
    assert_eq!(receiver.count(), sent.len(), "each once");
    let most = receiver.concurrency_max();
    assert!(most <= 6, "the limit is one for all: {most}");
    eventually("the gauges add up to nothing", PATIENCE, async || {
        let held = app.metric("eventpulse_dispatch_held");
        if held == 0.0 { Ok(()) } else { Err(held.to_string()) }
    })
    .await;
    let metrics = app.engine.metrics.clone();
    app.stop().await;
    let text = metrics.render();
    assert!(text.contains("eventpulse_lane_open 0"), "{text}");
}

#[tokio::test]
async fn a_killed_dispatcher_loses_nothing() {
    let mut config = config(&database("killed").await);
    swept_soon(&mut config);
    config.dispatch.beat = Duration::from_millis(200);
    config.dispatch.dead_after = Duration::from_secs(2);
    let url = config.database_url.reveal().to_owned();
    let gateway = App::of(config.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(3)));
    let account = gateway.register(&receiver.url("/")).await;
    let mut sent = HashSet::new();
    let start = || {
        let mut command = process::serve(&url, "--role dispatcher");
        command.env("EVENTPULSE_DISPATCH__BEAT", "200ms").env("EVENTPULSE_DISPATCH__DEAD_AFTER", "2s");
        Process::spawn(command)
    };
    let (victim, survivor) = (start(), start());
    victim.ready().await;
    survivor.ready().await;
    let mut victim = Some(victim);
    for n in 0..2000 {
        sent.insert(gateway.send(&account.key, "t", json!(n)).await);
        if n == 1000 {
            victim.take().expect("once").kill();
        }
    }
    all_arrive(&receiver, &sent).await;
    gateway.settled().await;
    let repeats = receiver.count() - sent.len();
    // What was on the wire or not yet recorded at the kill, and nothing else.
    assert!(repeats <= 64 + 512, "{repeats} repeats");
    let db = postgres(&gateway.database).await;
    assert_eq!(
        count(&db, "SELECT count(DISTINCT event_id) FROM delivery_attempts WHERE status = 'success'").await,
        2000
    );
    gateway.stop().await;
}

/// Redis is out of a gateway's reach, so what it accepts stays in Postgres; then it dies.
#[tokio::test]
async fn a_dead_gateways_batches_are_taken_over() {
    let mut config = config(&database("takeover").await);
    swept_soon(&mut config);
    config.recover.dead_after_beats = 3;
    let dispatcher = App::of(config.clone(), Roles::Dispatcher).await;
    let mut command = process::serve(&dispatcher.database, "--role api");
    command.env("REDIS_URL", "redis://127.0.0.1:1/");
    let gateway = Process::spawn(command);
    let base = gateway.ready().await;
    let receiver = Receiver::start().await;
    // The other gateway is only there for its client and its checks.
    let helper = App { base, ..App::of(config, Roles::Api).await };
    let account = helper.register(&receiver.url("/")).await;
    let mut sent = HashSet::new();
    for n in 0..50 {
        sent.insert(helper.send(&account.key, "t", json!(n)).await);
    }
    let db = postgres(&dispatcher.database).await;
    assert!(count(&db, "SELECT count(*) FROM batches WHERE state = 0").await > 0);
    assert_eq!(receiver.count(), 0);
    gateway.kill();
    all_arrive(&receiver, &sent).await;
    dispatcher.settled().await;
    assert_eq!(receiver.count(), 50, "each once");
    helper.stop().await;
    dispatcher.stop().await;
}

/// Which webhooks an event is owed to is decided by what its insert saw, not by anybody's cache.
#[tokio::test]
async fn register_here_and_send_there_at_once() {
    let config = config(&database("atonce").await);
    let here = Arc::new(App::of(config.clone(), Roles::Api).await);
    let there = Arc::new(App::of(config.clone(), Roles::Both).await);
    let receiver = Receiver::start().await;
    let url = receiver.url("/");
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (here, there, url) = (here.clone(), there.clone(), url.clone());
            tokio::spawn(async move {
                let mut sent = Vec::new();
                for n in 0..100 {
                    let account = here.register(&url).await;
                    sent.push(there.send(&account.key, "t", json!(n)).await);
                }
                sent
            })
        })
        .collect();
    let mut sent = HashSet::new();
    for task in tasks {
        sent.extend(task.await.unwrap());
    }
    assert_eq!(sent.len(), 1000);
    all_arrive(&receiver, &sent).await;
    assert_eq!(there.metric("eventpulse_sweep_missing_total"), 0.0, "none of them by the sweep");
}

/// The same for a second webhook of an account whose key and webhooks every process knows already.
#[tokio::test]
async fn a_webhook_added_here_gets_what_is_sent_there_at_once() {
    let config = config(&database("added").await);
    let here = App::of(config.clone(), Roles::Api).await;
    let there = App::of(config.clone(), Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = here.register(&receiver.url("/first")).await;
    for round in 0..50 {
        there.send(&account.key, "t", json!(round)).await;
        let body = json!({ "name": "more", "url": receiver.url(&format!("/{round}")), "eventTypes": [format!("only.{round}")] });
        let request =
            here.client.post(here.url("/register-webhook")).header("x-api-key", &account.key).json(&body);
        assert_eq!(request.send().await.unwrap().status(), 201);
        there.send(&account.key, &format!("only.{round}"), json!(round)).await;
    }
    eventually("every webhook got its event", PATIENCE, async || {
        let got: HashSet<String> = receiver.requests().into_iter().map(|r| r.path).collect();
        if got.len() == 51 { Ok(()) } else { Err(format!("{} of 51", got.len())) }
    })
    .await;
    assert_eq!(receiver.count(), 150);
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_new_webhook_gets_nothing_that_came_before_it() {
    let app = App::with("before", |c| {
        swept_soon(c);
        // Long enough for the webhook below to stand before the sweep asks who is owed what.
        c.recover.sweep_after = Duration::from_secs(3);
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/old")).await;
    let mut sent = HashSet::new();
    for n in 0..1000 {
        sent.insert(app.send(&account.key, "t", json!(n)).await);
    }
    let body = json!({ "name": "new", "url": receiver.url("/new") });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key).json(&body);
    assert_eq!(request.send().await.unwrap().status(), 201);
    all_arrive(&receiver, &sent).await;
    app.settled().await;
    assert!(receiver.requests().iter().all(|r| r.path == "/old"));
    assert_eq!(receiver.count(), 1000);
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    let last = app.send(&account.key, "t", json!("last")).await;
    eventually("the next event goes to both", PATIENCE, async || {
        let got = ids(&receiver).iter().filter(|id| **id == last).count();
        if got == 2 { Ok(()) } else { Err(format!("{got} of 2")) }
    })
    .await;
    app.stop().await;
}

/// The canary's counterpart: when deliveries really are missing, the sweep finds and schedules them.
#[tokio::test]
async fn the_sweep_schedules_what_is_missing() {
    let mut config = config(&database("missing").await);
    swept_soon(&mut config);
    let gateway = App::of(config.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let mut sent = HashSet::new();
    for n in 0..30 {
        sent.insert(gateway.send(&account.key, "t", json!(n)).await);
    }
    // Nobody reads, and the entries vanish without any sign.
    let db = postgres(&gateway.database).await;
    eventually("all batches are streamed", PATIENCE, async || {
        let new = count(&db, "SELECT count(*) FROM batches WHERE state = 0").await;
        if new == 0 { Ok(()) } else { Err(format!("{new} are new")) }
    })
    .await;
    let (mut redis, keys) = gateway.redis().await;
    let () = redis::cmd("DEL").arg(format!("{keys}events")).query_async(&mut redis).await.unwrap();
    let dispatcher = App::of(config, Roles::Dispatcher).await;
    all_arrive(&receiver, &sent).await;
    gateway.settled().await;
    assert_eq!(receiver.count(), 30, "each once");
    let missing = |app: &App| app.metric("eventpulse_sweep_missing_total");
    assert_eq!(missing(&gateway) + missing(&dispatcher), 30.0);
    gateway.stop().await;
    dispatcher.stop().await;
}

/// Under load batches come of age all the time. A pass that took them in as well never ended, and was half a core of Postgres.
#[tokio::test]
async fn a_sweep_ends_while_batches_come_of_age() {
    let app = App::with("of_age", swept_soon).await;
    let db = postgres(&app.database).await;
    // Twenty seconds of five batches a millisecond.
    let sql = "INSERT INTO batches (first_id, last_id, n, owner, state, config_version, created_at)
               SELECT 1000000 + i, 1000000 + i, 1, 0, 1, 1, now() + i * interval '0.2 milliseconds'
               FROM generate_series(0, 99999) AS i";
    db.batch_execute(sql).await.unwrap();
    eventually("a sweep ends before all of them are swept", PATIENCE, async || {
        // All of them are there at the end of a look that began before they were.
        match app.metric("eventpulse_sweep_batches_owed") {
            owed if owed > 0.0 && owed < 100_000.0 => Ok(()),
            owed => Err(format!("{owed} batches")),
        }
    })
    .await;
    app.stop().await;
}

/// A retry leased by a dispatcher that had not yet heard of its webhook was once recorded as dead: the account was in
/// its cache, and the webhook was not.
#[tokio::test]
async fn a_retry_of_a_webhook_just_registered_is_delivered() {
    let app = App::start("stale").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/old")).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    all_arrive(&receiver, &HashSet::from([event])).await;
    let db = postgres(&app.database).await;
    let (mut redis, keys) = app.redis().await;
    for round in 0..10 {
        let body = json!({ "name": "new", "url": receiver.url(&format!("/{round}")) });
        let request =
            app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key).json(&body);
        let made: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        let webhook = made["webhook"]["id"].as_i64().unwrap();
        let sql = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
                   VALUES ($1, $2, 1, 1, now(), now() + interval '1 hour', 'parked')";
        db.execute(sql, &[&event, &webhook]).await.unwrap();
        let key = format!("{keys}due");
        let member = format!("{event}:{webhook}");
        let () = redis::cmd("ZADD").arg(&key).arg(1).arg(&member).query_async(&mut redis).await.unwrap();
    }
    eventually("all rounds arrive", PATIENCE, async || {
        let got = receiver.requests().iter().map(|r| r.path.clone()).collect::<HashSet<_>>().len();
        if got == 11 { Ok(()) } else { Err(format!("{got} of 11 paths")) }
    })
    .await;
    assert_eq!(count(&db, "SELECT count(*) FROM dlq_entries").await, 0);
    app.stop().await;
}

/// 1. An observer finds an instance dead. 2. It was only slow, and beats. 3. The observer gets to its batches: sent by both, each of
///    their deliveries would be made twice.
#[tokio::test]
async fn who_beats_again_keeps_its_batches() {
    let url = database("slowbeat").await;
    let store = Store::new(&url, 2).expect("a URL");
    let db = postgres(&url).await;
    let (slow, other) = (store.join("api").await.expect("joined"), store.join("api").await.expect("joined"));
    let batch = "INSERT INTO batches (first_id, last_id, n, owner, config_version, created_at)
                 VALUES (1024, 1024, 1, $1, 1, now())";
    db.execute(batch, &[&slow]).await.expect("a batch");
    let mut link = Link::new(Address::parse(&url).expect("a URL"), PATIENCE);
    let mut beat = async || {
        let beats = link.beat(slow, "api").await.expect("a beat");
        beats.into_iter().find(|(id, _)| *id == slow).expect("its own").1
    };
    let (stale, current) = (beat().await, beat().await);
    assert!(stale < current);
    assert_eq!(store.take_over(slow, stale, other, 10).await.expect("asked"), []);
    store.bury(slow, stale).await.expect("asked");
    assert_eq!(store.take_over(slow, current, other, 10).await.expect("asked").len(), 1);
    store.bury(slow, stale).await.expect("asked");
    assert_eq!(count(&db, "SELECT count(*) FROM instances").await, 2, "alive, with no batch left");
    store.bury(slow, current).await.expect("asked");
    // An owner without a row stands still at -1.
    db.execute("UPDATE batches SET owner = $1", &[&slow]).await.expect("changed");
    assert_eq!(store.take_over(slow, -1, other, 10).await.expect("asked").len(), 1);
}
