//! `Idempotency-Key`: the same request sent again is accepted once, whatever happens between.

use std::{sync::Arc, time::Duration};

use eventpulse::{
    config::{Roles, value::Secret},
    store::{Address, migrate},
};
use eventpulse_testkit::{Receiver, TcpProxy, eventually, private_postgres, stack};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    bulk::{Answer, array, delivered_once, event, post},
    harness::{App, PATIENCE, config, count, database, postgres, swept_soon},
};

async fn keyed(app: &App, path: &str, api: &str, key: &str, body: impl Into<reqwest::Body>) -> Answer {
    post(app, path, api, &[("content-type", "application/json"), ("idempotency-key", key)], body).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// Sends until it is accepted, as the README tells producers to.
async fn insist(app: &App, path: &str, api: &str, key: &str, body: &str) -> Answer {
    let until = tokio::time::Instant::now() + PATIENCE * 2;
    loop {
        let answer = keyed(app, path, api, key, body.to_owned()).await;
        match answer.status {
            201 => return answer,
            503 if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => panic!("{other}: {}", answer.text),
        }
    }
}

#[tokio::test]
async fn the_first_answer_comes_again_on_both_paths() {
    let app = App::with("replay", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut ids = Vec::new();
    let many: Vec<String> = (0..1500).map(|n| event("many", &n.to_string())).collect();
    for (key, path, body, again) in [
        (
            "one",
            "/send-event",
            event("a", "{\"b\": 1}"),
            "{ \"payload\":{\"b\": 1} ,\"type\":\"\\u0061\"}".into(),
        ),
        (
            "two",
            "/send-events",
            array(&[event("a", "1"), event("b", "2")]),
            "[ ".to_owned() + &array(&[event("a", "1"), event("b", "2")])[1..],
        ),
        ("three", "/send-events", array(&many), array(&many)),
    ] {
        let first = keyed(&app, path, &account.key, key, body).await;
        assert!(!is_replayed(&first), "{key}");
        ids.extend(first.ids());
        for _ in 0..2 {
            let second = keyed(&app, path, &account.key, key, again.clone()).await;
            assert!(is_replayed(&second), "{key}");
            assert_eq!(second.text, first.text, "{key}");
        }
    }
    assert_eq!(ids.len(), 1503);
    // Another account's key is another key.
    let other = app.register(&receiver.url("/")).await;
    let answer = keyed(&app, "/send-event", &other.key, "one", event("a", "{\"b\": 1}")).await;
    assert!(!is_replayed(&answer));
    ids.extend(answer.ids());
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, 1504);
    delivered_once(&receiver, &ids).await;
    app.settled().await;
    assert_eq!(app.metric("eventpulse_ingest_replayed_total"), 6.0);
    app.stop().await;
}

#[tokio::test]
async fn a_key_with_other_events_is_refused() {
    let app = App::start("conflict").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let first = keyed(&app, "/send-event", &account.key, "k", event("a", "1")).await.ids();
    let two = array(&[event("a", "1"), event("a", "1")]);
    for (path, body) in [
        ("/send-event", event("a", "2")),
        ("/send-event", event("b", "1")),
        ("/send-event", event("a", "1 ").replace("1 ", "1.0")),
        ("/send-events", two),
    ] {
        let answer = keyed(&app, path, &account.key, "k", body.clone()).await;
        answer.refused(&body, 422, "idempotency_key_reused");
    }
    // The same events are the same request, on whichever path.
    let same = keyed(&app, "/send-events", &account.key, "k", array(&[event("a", "1")])).await;
    assert_eq!((same.ids(), is_replayed(&same)), (first, true));
    let large: Vec<String> = (0..300).map(|n| event("a", &n.to_string())).collect();
    keyed(&app, "/send-events", &account.key, "k", array(&large)).await.refused(
        "by the other carrier",
        422,
        "idempotency_key_reused",
    );
    assert_eq!(count(&postgres(&app.database).await, "SELECT count(*) FROM events").await, 1);
    assert_eq!(app.metric("eventpulse_ingest_idempotency_conflicts_total"), 5.0);
    for key in ["", "a b", &"x".repeat(256)] {
        let answer = keyed(&app, "/send-events", &account.key, key, array(&[event("a", "1")])).await;
        answer.refused(key, 400, "invalid_idempotency_key");
    }
    app.stop().await;
}

/// Two processes on one database.
async fn pair(hint: &str) -> [Arc<App>; 2] {
    let url = database(hint).await;
    let one = App::of(config(&url), Roles::Both).await;
    [Arc::new(one), Arc::new(App::of(config(&url), Roles::Both).await)]
}

#[tokio::test]
async fn the_same_key_at_once_is_one_event() {
    let apps = pair("atonce").await;
    let receiver = Receiver::start().await;
    let account = apps[0].register(&receiver.url("/")).await;
    let mut ids = Vec::new();
    for (round, processes) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
        let many: Vec<String> = (0..400).map(|n| event("m", &n.to_string())).collect();
        let (path, body) = match round {
            3 => ("/send-events", array(&many)),
            _ => ("/send-event", event("a", "1")),
        };
        let mut calls = JoinSet::new();
        for n in 0..50 {
            let (app, api, body) = (apps[n % processes].clone(), account.key.clone(), body.clone());
            calls.spawn(async move { keyed(&app, path, &api, &format!("k{round}"), body).await });
        }
        let answers = calls.join_all().await;
        let firsts = answers.iter().filter(|answer| !is_replayed(answer)).count();
        assert_eq!(firsts, 1, "round {round}");
        assert!(answers.iter().all(|answer| answer.text == answers[0].text), "round {round}");
        ids.extend(answers[0].ids());
    }
    let db = postgres(&apps[0].database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, 403);
    delivered_once(&receiver, &ids).await;
}

/// A key that is new and comes twice into one transaction: the second can neither be inserted nor be another's.
#[tokio::test]
async fn the_same_new_key_twice_in_one_transaction_is_one_event() {
    let app = Arc::new(App::start("twice").await);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let db = postgres(&app.database).await;
    let mut ids = keyed(&app, "/send-event", &account.key, "first", event("a", "0")).await.ids();
    // While a commit waits for this lock, the others gather.
    db.batch_execute("BEGIN; LOCK TABLE batches IN SHARE MODE").await.unwrap();
    let mut calls = JoinSet::new();
    for n in 0..13 {
        let (app, api) = (app.clone(), account.key.clone());
        calls.spawn(async move {
            // One goes ahead; then three with one key, three with another, and so on.
            let key = if n == 0 { "ahead".to_owned() } else { format!("key-{}", n % 4) };
            keyed(&app, "/send-event", &api, &key, event("a", "1")).await
        });
        tokio::time::sleep(Duration::from_millis(if n == 0 { 300 } else { 10 })).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    db.batch_execute("COMMIT").await.unwrap();
    let answers = calls.join_all().await;
    let firsts: Vec<&Answer> = answers.iter().filter(|answer| !is_replayed(answer)).collect();
    assert_eq!(firsts.len(), 5);
    ids.extend(firsts.iter().flat_map(|answer| answer.ids()));
    let known = answers.iter().all(|answer| ids.contains(&answer.ids()[0]));
    assert!(known, "replays have the ids of a first answer");
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, 6);
    delivered_once(&receiver, &ids).await;
}

/// Two processes that took keys in orders of their own would wait for each other for ever.
#[tokio::test]
async fn keys_in_any_order_from_two_processes_are_one_event_each() {
    const KEYS: usize = 200;
    let apps = pair("anyorder").await;
    let receiver = Receiver::start().await;
    let account = apps[0].register(&receiver.url("/")).await;
    let db = postgres(&apps[0].database).await;
    // While the first commit of each waits for this lock, all others gather for the second.
    db.batch_execute("BEGIN; LOCK TABLE idempotency_keys IN SHARE MODE").await.unwrap();
    let mut seed = 0x5eed_u64;
    let mut calls = JoinSet::new();
    for app in &apps {
        let mut order: Vec<usize> = (0..KEYS).collect();
        for i in (1..KEYS).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(i, (seed >> 33) as usize % (i + 1));
        }
        for key in order {
            let (app, api) = (app.clone(), account.key.clone());
            calls.spawn(async move {
                let (path, body) = match key % 4 {
                    0 => ("/send-events", array(&vec![event("k", &key.to_string()); 300])),
                    _ => ("/send-event", event("k", &key.to_string())),
                };
                let answer = keyed(&app, path, &api, &format!("key-{key}"), body).await;
                assert_eq!(answer.status, 201, "key {key}: {}", answer.text);
                (key, answer.ids(), is_replayed(&answer))
            });
        }
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    db.batch_execute("COMMIT").await.unwrap();
    let mut answers = calls.join_all().await;
    answers.sort();
    assert_eq!(answers.len(), KEYS * 2);
    for pair in answers.chunks(2) {
        assert_eq!((pair[0].0, &pair[0].1), (pair[1].0, &pair[1].1), "both have the same ids");
        assert_ne!(pair[0].2, pair[1].2, "one of them is the first");
    }
    let expected = (KEYS - KEYS / 4 + KEYS / 4 * 300) as i64;
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, expected);
    assert_eq!(count(&db, "SELECT count(*) FROM idempotency_keys").await, KEYS as i64);
    // One that was broken up and tried again is not seen in the answers.
    db.batch_execute("SELECT pg_sleep(1.2)").await.unwrap();
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(count(&db, deadlocks).await, 0);
}

#[tokio::test]
async fn a_day_later_a_key_is_new_and_old_ones_are_removed() {
    let app = App::start("daylater").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let db = postgres(&app.database).await;
    let first = keyed(&app, "/send-event", &account.key, "k", event("a", "1")).await.ids();
    let age = |age: &str| format!("UPDATE idempotency_keys SET created_at = now() - interval '{age}'");
    db.batch_execute(&age("23 hours 59 minutes")).await.unwrap();
    assert!(is_replayed(&keyed(&app, "/send-event", &account.key, "k", event("a", "1")).await));
    // Held, so that it is used again before it can be removed.
    let mut holder = postgres(&app.database).await;
    let held = holder.transaction().await.unwrap();
    held.batch_execute(&age("24 hours 1 second")).await.unwrap();
    let (api, url, client) = (account.key.clone(), app.url("/send-event"), app.client.clone());
    let waiting = tokio::spawn(async move {
        let request = client.post(url).header("x-api-key", api).header("idempotency-key", "k");
        request.body(event("b", "2")).send().await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    held.commit().await.unwrap();
    let response = waiting.await.unwrap();
    assert_eq!(response.status(), 201, "other events are no conflict any more");
    assert!(!response.headers().contains_key("idempotent-replayed"));
    let body: Value = response.json().await.unwrap();
    assert_ne!(body["event"]["id"], json!(first[0]));
    let again = keyed(&app, "/send-event", &account.key, "k", event("b", "2")).await;
    assert_eq!((again.ids(), is_replayed(&again)), (vec![body["event"]["id"].as_i64().unwrap()], true));

    for n in 0..50 {
        keyed(&app, "/send-event", &account.key, &format!("old-{n}"), event("a", "1")).await.ids();
    }
    db.batch_execute(&format!(
        "{} WHERE n = 1 AND key_hash IN (SELECT key_hash FROM idempotency_keys LIMIT 40)",
        age("25 hours")
    ))
    .await
    .unwrap();
    eventually("old keys are removed", PATIENCE, async || {
        match count(&db, "SELECT count(*) FROM idempotency_keys").await {
            11 => Ok(()),
            n => Err(format!("{n} are left")),
        }
    })
    .await;
    // The rows are gone a moment before they are counted.
    eventually("they are counted", PATIENCE, async || {
        let removed = app.metric("eventpulse_recover_idempotency_keys_removed_total");
        if removed >= 40.0 { Ok(()) } else { Err(removed.to_string()) }
    })
    .await;
    app.stop().await;
}

/// A gateway behind a proxy, on a database whose first commit of a batch takes its time.
async fn slow_commit(hint: &str) -> (App, TcpProxy, tokio_postgres::Client) {
    let direct = database(hint).await;
    let (host, port) = ("127.0.0.1", stack().postgres.lock().unwrap().port());
    let proxy = TcpProxy::start(format!("{host}:{port}").parse().unwrap()).await;
    let mut config = config(&direct.replace(&format!("{host}:{port}"), &proxy.addr().to_string()));
    swept_soon(&mut config);
    config.ingest.commit_timeout = Duration::from_secs(20);
    let app = App::of(config, Roles::Both).await;
    let db = postgres(&direct).await;
    // The trigger runs within COMMIT, and the server goes on with it when the connection is cut.
    db.batch_execute(
        "CREATE SEQUENCE commits;
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('commits') = 1 THEN PERFORM pg_sleep(1); END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON batches DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await
    .unwrap();
    (app, proxy, db)
}

/// 1. COMMIT is on its way, and Postgres is at it. 2. The connection is cut. 3. The engine looks for the batch and
/// does not find it, because it is not committed yet. 4. It runs the transaction again, with the same ids, and meets
/// its own rows: its own key, which looks like another's, or its own ids.
#[tokio::test]
async fn a_commit_that_ends_after_its_connection_is_found_and_not_repeated() {
    for (hint, path, n, key) in [
        ("cutkey", "/send-event", 1, Some("k")),
        ("cutbulkkey", "/send-events", 1500, Some("k")),
        ("cutbulk", "/send-events", 1500, None),
    ] {
        let (app, proxy, db) = slow_commit(hint).await;
        let receiver = Receiver::start().await;
        let account = app.register(&receiver.url("/")).await;
        let body = match path {
            "/send-event" => event("a", "1"),
            _ => array(&vec![event("a", "1"); n]),
        };
        let headers: Vec<(&str, &str)> = key.iter().map(|key| ("idempotency-key", *key)).collect();
        let (answer, ()) = tokio::join!(post(&app, path, &account.key, &headers, body.clone()), async {
            eventually("it is committing", PATIENCE, async || {
                let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
                if count(&db, asleep).await > 0 { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            proxy.cut_all().await;
        });
        let ids = answer.ids();
        assert!(ids.len() == n && !is_replayed(&answer), "{hint}: the first answer is no replay");
        if key.is_some() {
            let again = post(&app, path, &account.key, &headers, body).await;
            assert_eq!((again.text == answer.text, is_replayed(&again)), (true, true), "{hint}");
        }
        assert_eq!(count(&db, "SELECT count(*) FROM events").await, n as i64, "{hint}");
        assert!(app.metric("eventpulse_ingest_unknown_outcomes_total") > 0.0, "{hint}: the cut met a commit");
        assert_eq!(app.metric("eventpulse_ingest_events_total"), n as f64, "{hint}");
        delivered_once(&receiver, &ids).await;
        app.settled().await;
        assert_eq!(receiver.count(), n, "{hint}");
        assert_eq!(app.metric("eventpulse_recover_leftovers_total"), 0.0, "{hint}: sent at once");
        app.stop().await;
    }
}

#[tokio::test]
async fn cut_connections_repeat_nothing() {
    let direct = database("cutmany").await;
    let (host, port) = ("127.0.0.1", stack().postgres.lock().unwrap().port());
    let proxy = TcpProxy::start(format!("{host}:{port}").parse().unwrap()).await;
    let mut config = config(&direct.replace(&format!("{host}:{port}"), &proxy.addr().to_string()));
    swept_soon(&mut config);
    let app = Arc::new(App::of(config, Roles::Both).await);
    let receiver = Receiver::start().await;
    let api = app.register(&receiver.url("/")).await.key;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut senders = JoinSet::new();
    for sender in 0..8 {
        let (app, api, stop) = (app.clone(), api.clone(), stop.clone());
        senders.spawn(async move {
            let (mut ids, mut sent) = (Vec::new(), 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let key = format!("{sender}-{sent}");
                let (path, body) = match sender % 2 {
                    0 => ("/send-event", event("a", "1")),
                    // Few enough that all fit the lane's queue: this is about keys.
                    _ => ("/send-events", array(&vec![event("a", "1"); 100])),
                };
                ids.extend(insist(&app, path, &api, &key, &body).await.ids());
                sent += 1;
            }
            ids
        });
    }
    let db = postgres(&direct).await;
    for cut in 0..15 {
        let before = count(&db, "SELECT count(*) FROM idempotency_keys").await;
        eventually("load goes on", PATIENCE, async || {
            let now = count(&db, "SELECT count(*) FROM idempotency_keys").await;
            if now > before + 5 { Ok(()) } else { Err(format!("cut {cut}: {now} after {before}")) }
        })
        .await;
        proxy.cut_all().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let ids: Vec<i64> = senders.join_all().await.into_iter().flatten().collect();
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, ids.len() as i64, "each accepted once");
    delivered_once(&receiver, &ids).await;
    assert!(app.metric("eventpulse_ingest_unknown_outcomes_total") > 0.0, "no cut met a commit");
}

#[tokio::test]
async fn a_postgres_restart_in_the_middle_repeats_nothing() {
    let mut server = private_postgres().await;
    let url = server.url("eventpulse");
    migrate::migrate(&Address::parse(&url).unwrap()).await.unwrap();
    let mut config = config(&url);
    config.database_url = Secret::new(&url);
    config.ingest.commit_timeout = Duration::from_secs(1);
    swept_soon(&mut config);
    let app = Arc::new(App::of(config, Roles::Both).await);
    let receiver = Receiver::start().await;
    let api = app.register(&receiver.url("/")).await.key;
    let mut senders = JoinSet::new();
    for sender in 0..6 {
        let (app, api) = (app.clone(), api.clone());
        senders.spawn(async move {
            let mut ids = Vec::new();
            for n in 0..40 {
                let (path, body) = match sender % 2 {
                    0 => ("/send-event", event("a", &n.to_string())),
                    _ => ("/send-events", array(&vec![event("a", &n.to_string()); 50])),
                };
                ids.extend(insist(&app, path, &api, &format!("{sender}-{n}"), &body).await.ids());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ids
        });
    }
    eventually("some are accepted", PATIENCE, async || {
        if receiver.count() > 50 { Ok(()) } else { Err(receiver.count().to_string()) }
    })
    .await;
    let server = tokio::task::spawn_blocking(move || {
        server.kill().expect("killed");
        std::thread::sleep(Duration::from_millis(1500));
        server.restart().expect("restarted");
        server
    })
    .await
    .unwrap();
    let ids: Vec<i64> = senders.join_all().await.into_iter().flatten().collect();
    assert_eq!(ids.len(), 3 * 40 + 3 * 40 * 50);
    let db = postgres(&url).await;
    assert_eq!(count(&db, "SELECT count(*) FROM events").await, ids.len() as i64);
    eventually("all are delivered", PATIENCE * 2, async || {
        if receiver.count() >= ids.len() { Ok(()) } else { Err(receiver.count().to_string()) }
    })
    .await;
    drop(server);
}
