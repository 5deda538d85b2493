//! Postgres and Redis going away: nothing is promised that is not kept, and everything comes back by itself.

use std::{sync::Arc, time::Duration};

use eventpulse::config::{Roles, value::Secret};
use eventpulse_testkit::{
    Receiver, eventually, private_postgres, private_redis,
    proxy::{Mode, TcpProxy},
    stack,
};
use serde_json::json;

use crate::harness::{App, PATIENCE, config, count, database, postgres, swept_soon};

const BODY: &str = "{\"type\":\"t\",\"payload\":1}";

/// Sends until told to stop; returns the ids that were promised.
pub(crate) async fn sender(app: Arc<App>, key: String, stop: Arc<std::sync::atomic::AtomicBool>) -> Vec<i64> {
    let mut promised = Vec::new();
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let (status, body) = app.try_send(&key, BODY).await;
        match status {
            201 => promised.push(body["event"]["id"].as_i64().unwrap()),
            503 => tokio::time::sleep(Duration::from_millis(20)).await,
            other => panic!("{other}: {body}"),
        }
    }
    promised
}

pub(crate) async fn delivered(receiver: &Receiver, promised: &[i64]) {
    eventually("everything promised is delivered", PATIENCE * 2, async || {
        let got: std::collections::HashSet<i64> = receiver
            .requests()
            .iter()
            .map(|r| r.headers["x-eventpulse-event-id"].to_str().unwrap().parse().unwrap())
            .collect();
        let missing = promised.iter().filter(|id| !got.contains(id)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} missing", promised.len())) }
    })
    .await;
}

#[tokio::test]
async fn without_postgres_nothing_is_promised_and_it_recovers_by_itself() {
    let mut server = private_postgres().await;
    let url = server.url("eventpulse");
    let address = eventpulse::store::Address::parse(&url).unwrap();
    eventpulse::store::migrate::migrate(&address).await.unwrap();
    let mut config = config(&url);
    config.ingest.commit_timeout = Duration::from_millis(500);
    swept_soon(&mut config);
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut promised = vec![app.send(&account.key, "t", json!(1)).await];

    let server = tokio::task::spawn_blocking(move || {
        server.kill().expect("killed");
        server
    });
    let mut server = server.await.unwrap();
    for _ in 0..5 {
        let request = app.client.post(app.url("/send-event")).header("x-api-key", &account.key);
        let response = request.header("content-type", "application/json").body(BODY).send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!((&body["ok"], &body["error"]["code"]), (&json!(false), &json!("unavailable")));
    }
    let (status, _) = app.get(&account.key, "/events").await;
    assert_eq!(status, 503);
    let response = app.client.get(app.url("/health")).send().await.unwrap();
    assert_eq!(response.status(), 200, "the process itself is well");

    let server = tokio::task::spawn_blocking(move || {
        server.restart().expect("restarted");
        server
    })
    .await
    .unwrap();
    let id = eventually("accepted again", PATIENCE, async || {
        let (status, body) = app.try_send(&account.key, BODY).await;
        if status == 201 { Ok(body["event"]["id"].as_i64().unwrap()) } else { Err(body.to_string()) }
    })
    .await;
    promised.push(id);
    delivered(&receiver, &promised).await;
    app.settled().await;
    app.stop().await;
    drop(server);
}

#[tokio::test]
async fn a_stalled_postgres_is_answered_in_time() {
    let direct = database("stalled").await;
    let (host, port) = ("127.0.0.1", stack().postgres.lock().unwrap().port());
    let proxy = TcpProxy::start(format!("{host}:{port}").parse().unwrap()).await;
    let mut config = config(&direct.replace(&format!("{host}:{port}"), &proxy.addr().to_string()));
    config.ingest.commit_timeout = Duration::from_millis(400);
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.send(&account.key, "t", json!(1)).await;
    proxy.set(Mode::Stall).await;
    let (status, body) = app.try_send(&account.key, BODY).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")));
    proxy.set(Mode::Pass).await;
    proxy.cut_all().await;
    eventually("accepted again", PATIENCE, async || {
        let (status, body) = app.try_send(&account.key, BODY).await;
        if status == 201 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    app.stop().await;
}

/// A connection cut after COMMIT was sent leaves its outcome unknown. The batch is looked for by its ids
/// before they are inserted again, so what is answered and what is stored stay the same.
#[tokio::test]
async fn cut_connections_lose_and_repeat_nothing() {
    let direct = database("cuts").await;
    let (host, port) = ("127.0.0.1", stack().postgres.lock().unwrap().port());
    let proxy = TcpProxy::start(format!("{host}:{port}").parse().unwrap()).await;
    let mut config = config(&direct.replace(&format!("{host}:{port}"), &proxy.addr().to_string()));
    swept_soon(&mut config);
    let app = Arc::new(App::of(config, Roles::Both).await);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let senders: Vec<_> =
        (0..16).map(|_| tokio::spawn(sender(app.clone(), account.key.clone(), stop.clone()))).collect();
    for cut in 0..20 {
        let before = receiver.count();
        eventually("load goes on", PATIENCE, async || {
            if receiver.count() > before + 20 { Ok(()) } else { Err(format!("cut {cut}")) }
        })
        .await;
        proxy.cut_all().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut promised = Vec::new();
    for task in senders {
        promised.extend(task.await.unwrap());
    }
    delivered(&receiver, &promised).await;
    // Sweeping needs no proxy, but looking does not either.
    let db = postgres(&direct).await;
    eventually("everything is accounted for", PATIENCE, async || {
        let owed =
            count(&db, "SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM scheduled)").await;
        if owed == 0 { Ok(()) } else { Err(format!("{owed} rows are owed")) }
    })
    .await;
    let stored = count(&db, "SELECT count(*) FROM events").await;
    assert!(stored >= promised.len() as i64, "{stored} stored of {} promised", promised.len());
    assert_eq!(receiver.count() as i64, stored, "each stored event was sent once");
    assert!(app.metric("eventpulse_ingest_unknown_outcomes_total") > 0.0, "no cut met a commit");
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
}

#[tokio::test]
async fn without_redis_events_are_accepted_and_delivered_when_it_is_back() {
    let mut server = private_redis().await;
    let mut config = config(&database("noredis").await);
    config.redis_url = Secret::new(server.url());
    swept_soon(&mut config);
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut promised = vec![app.send(&account.key, "t", json!(0)).await];
    let mut server = tokio::task::spawn_blocking(move || {
        server.kill().expect("killed");
        server
    })
    .await
    .unwrap();
    for n in 0..200 {
        promised.push(app.send(&account.key, "t", json!(n)).await);
    }
    let (_, body) = app.get(&account.key, &format!("/events/{}", promised[200])).await;
    assert_eq!(body["deliveries"][0]["state"], "committed", "{body}");
    let server = tokio::task::spawn_blocking(move || {
        server.restart().expect("restarted");
        server
    })
    .await
    .unwrap();
    delivered(&receiver, &promised).await;
    app.settled().await;
    assert_eq!(receiver.count(), 201, "each once");
    app.stop().await;
    drop(server);
}

#[tokio::test]
async fn a_wiped_redis_loses_nothing() {
    let server = private_redis().await;
    let mut config = config(&database("wiped").await);
    config.redis_url = Secret::new(server.url());
    swept_soon(&mut config);
    let app = Arc::new(App::of(config, Roles::Both).await);
    let receiver = Receiver::start().await;
    receiver.script(|r| {
        if r.n % 10 == 9 {
            eventpulse_testkit::receiver::Reply::status(500)
        } else {
            eventpulse_testkit::receiver::Reply::ok()
        }
    });
    let account = app.register(&receiver.url("/")).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let senders: Vec<_> =
        (0..16).map(|_| tokio::spawn(sender(app.clone(), account.key.clone(), stop.clone()))).collect();
    let client = redis::Client::open(server.url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    for wipe in 0..5 {
        let before = receiver.count();
        eventually("load goes on", PATIENCE, async || {
            if receiver.count() > before + 200 {
                Ok(())
            } else {
                Err(format!("wipe {wipe}: {} calls", receiver.count()))
            }
        })
        .await;
        let () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut promised = Vec::new();
    for task in senders {
        promised.extend(task.await.unwrap());
    }
    delivered(&receiver, &promised).await;
    app.settled().await;
}

#[tokio::test]
async fn cut_redis_connections_lose_nothing() {
    let upstream: std::net::SocketAddr = stack().redis_url().trim_start_matches("redis://").parse().unwrap();
    let proxy = TcpProxy::start(upstream).await;
    let mut config = config(&database("rediscuts").await);
    config.redis_url = Secret::new(format!("redis://{}", proxy.addr()));
    config.dispatch.beat = Duration::from_millis(200);
    swept_soon(&mut config);
    let app = Arc::new(App::of(config, Roles::Both).await);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let senders: Vec<_> =
        (0..8).map(|_| tokio::spawn(sender(app.clone(), account.key.clone(), stop.clone()))).collect();
    for cut in 0..30 {
        let before = receiver.count();
        eventually("load goes on", PATIENCE, async || {
            if receiver.count() > before + 20 {
                Ok(())
            } else {
                Err(format!("cut {cut}: {} calls", receiver.count()))
            }
        })
        .await;
        proxy.cut_all().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut promised = Vec::new();
    for task in senders {
        promised.extend(task.await.unwrap());
    }
    delivered(&receiver, &promised).await;
    app.settled().await;
}

/// A multiplexed connection's default response time-out once lost the late reply of a blocking read; its
/// entries were pending for nobody. So a reader that has been idle for long must still get what comes.
#[tokio::test]
async fn an_idle_minute_loses_nothing_and_sends_nothing_again() {
    let app = App::start("idle").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut promised = Vec::new();
    for n in 0..10 {
        promised.push(app.send(&account.key, "t", json!(n)).await);
    }
    delivered(&receiver, &promised).await;
    // The default sweep looks after a minute; until it has, nobody sends anything.
    let db = postgres(&app.database).await;
    eventually("the batches are swept", Duration::from_secs(90), async || {
        let left = count(&db, "SELECT count(*) FROM batches").await;
        if left == 0 { Ok(()) } else { Err(format!("{left} batches")) }
    })
    .await;
    assert_eq!(receiver.count(), 10);
    promised.push(app.send(&account.key, "t", json!(10)).await);
    delivered(&receiver, &promised).await;
    assert_eq!(receiver.count(), 11);
    assert_eq!(app.metric("eventpulse_dispatch_resumed_total"), 0.0);
    app.stop().await;
}
