//! More events than can be committed: who is refused, with what, and that nothing accepted is lost by it.

use std::{sync::Arc, time::Duration};

use eventpulse_testkit::{Receiver, eventually};
use tokio::task::JoinHandle;

use crate::harness::{App, PATIENCE, count, postgres};

const BODY: &str = "{\"type\":\"t\",\"payload\":1}";

type Calls = Vec<JoinHandle<u16>>;

/// Sends `n` events at once, each on a connection of its own.
fn flood(app: &Arc<App>, key: &str, n: usize) -> Calls {
    let one = |_| {
        let (app, key) = (app.clone(), key.to_owned());
        tokio::spawn(async move { app.try_send(&key, BODY).await.0 })
    };
    (0..n).map(one).collect()
}

async fn answered(calls: &Calls, n: usize) {
    eventually("that many are answered", PATIENCE, async || {
        let done = calls.iter().filter(|call| call.is_finished()).count();
        if done >= n { Ok(()) } else { Err(format!("{done} of {n}")) }
    })
    .await;
}

/// How many were answered with 201, 429 and 503, and with nothing else.
async fn tally(calls: Calls) -> (usize, usize, usize) {
    let mut tally = (0, 0, 0);
    for call in calls {
        match call.await.expect("no panic") {
            201 => tally.0 += 1,
            429 => tally.1 += 1,
            503 => tally.2 += 1,
            other => panic!("{other}"),
        }
    }
    tally
}

/// Sends one event and waits until its commit waits for the locked table. What comes later waits in the queue: without
/// this it is a matter of luck how much of a flood the first commit takes.
async fn occupy(app: &Arc<App>, db: &tokio_postgres::Client, key: &str) -> Calls {
    let calls = flood(app, key, 1);
    eventually("a commit is under way", PATIENCE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO events%'";
        if count(db, sql).await > 0 { Ok(()) } else { Err("no commit waits".to_owned()) }
    })
    .await;
    calls
}

/// One account fills the queue while Postgres stands still; then another comes.
#[tokio::test]
async fn the_account_that_floods_is_refused_and_its_neighbour_is_not() {
    let app = App::with("overload", |config| {
        config.ingest.commits_max = 1;
        config.ingest.batch_events_max = 2;
        config.ingest.queue_events_max = 8;
        config.ingest.commit_timeout = PATIENCE;
    })
    .await;
    let app = Arc::new(app);
    let receiver = Receiver::start().await;
    let (loud, quiet) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    // Keys are known before the lock, which would not stop a look-up but makes the order of things certain.
    app.send(&loud.key, "t", 1.into()).await;
    app.send(&quiet.key, "t", 1.into()).await;

    let db = postgres(&app.database).await;
    db.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut louds = occupy(&app, &db, &loud.key).await;
    louds.extend(flood(&app, &loud.key, 39));
    // One in the commit, eight in the queue, and the rest is told at once.
    answered(&louds, 31).await;
    let quiets = flood(&app, &quiet.key, 3);
    eventually("one makes room for each of the neighbour's", PATIENCE, async || {
        let text = app.client.get(app.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let made = text.contains("eventpulse_ingest_refused_total{reason=\"share_full\"} 3");
        if made { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(quiets.iter().all(|call| !call.is_finished()), "they wait for the commit like the others");
    db.batch_execute("COMMIT").await.unwrap();

    assert_eq!(tally(quiets).await, (3, 0, 0));
    let (accepted, share, full) = tally(louds).await;
    assert_eq!(share, 3, "one made room for each of the neighbour's");
    assert_eq!(accepted + share + full, 40);
    assert_eq!(accepted, 1 + 5, "in the commit, and what was left of eight");
    assert_eq!(count(&db, "SELECT count(*) FROM events").await as usize, 2 + 3 + accepted);
    let text = app.client.get(app.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        text.contains(&format!("eventpulse_ingest_refused_total{{reason=\"queue_full\"}} {full}")),
        "{text}"
    );
}

/// A client that repeats at once what was refused is looked at ten times a second, not thousands of times.
#[tokio::test]
async fn a_refused_connection_is_paced() {
    let app = App::with("overload", |config| {
        config.ingest.commits_max = 1;
        config.ingest.batch_events_max = 1;
        config.ingest.queue_events_max = 1;
        config.ingest.commit_timeout = PATIENCE;
    })
    .await;
    let app = Arc::new(app);
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.send(&account.key, "t", 1.into()).await;
    let db = postgres(&app.database).await;
    db.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut fill = occupy(&app, &db, &account.key).await;
    fill.extend(flood(&app, &account.key, 4));
    answered(&fill, 3).await;

    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().unwrap();
    let mut times = Vec::new();
    for _ in 0..3 {
        let request = client.post(app.url("/send-event")).header("x-api-key", &account.key);
        let response = request.header("content-type", "application/json").body(BODY).send().await.unwrap();
        times.push(tokio::time::Instant::now());
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        let _ = response.bytes().await;
    }
    // A lower bound that no slow machine can break.
    assert!(times[2] - times[0] >= Duration::from_millis(190), "{:?}", times[2] - times[0]);
    db.batch_execute("COMMIT").await.unwrap();
    assert_eq!(tally(fill).await, (2, 0, 3));
}
