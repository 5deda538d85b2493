//! What one endpoint may cost the others, and what a lane does while its endpoint is down, slow, limited or paused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use serde_json::json;

use crate::harness::{Account, App, PATIENCE, count, postgres, swept_soon};

/// Changes a webhook as an operator would by hand.
async fn set(app: &App, account: &Account, assignment: &str) {
    let sql = format!(
        "WITH v AS (UPDATE engine_state SET config_version = config_version + 1 RETURNING config_version),
         w AS (UPDATE webhooks SET version = config_version, {assignment} FROM v WHERE id = {} RETURNING account_id)
         UPDATE accounts SET version = config_version FROM v, w WHERE accounts.id = w.account_id",
        account.webhook
    );
    postgres(&app.database).await.execute(&sql, &[]).await.expect("the statement runs");
}

/// Opens a webhook's breaker, with these events behind it that end in `seconds`.
async fn shelve(app: &App, account: &Account, events: &[i64], seconds: f64) {
    let (mut redis, keys) = app.redis().await;
    let breaker = format!("{keys}lane:{}:breaker", account.webhook);
    let () = redis::cmd("SET").arg(&breaker).arg(1).query_async(&mut redis).await.unwrap();
    let rows = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
                SELECT event, $2, 2, 1, at, at, 'breaker'
                FROM unnest($1::bigint[]) AS event, (SELECT now() + $3 * interval '1 s' AS at) AS t";
    postgres(&app.database).await.execute(rows, &[&events, &account.webhook, &seconds]).await.unwrap();
}

async fn received(receiver: &Receiver, n: usize) {
    eventually("all is received", PATIENCE, async || {
        let count = receiver.count();
        if count >= n { Ok(()) } else { Err(format!("{count} of {n}")) }
    })
    .await;
}

#[tokio::test]
async fn endpoints_that_hang_leave_the_others_their_permits() {
    let app = App::with("isolation", |c| {
        c.dispatch.held_max = 64;
        c.lane.queue_max = 16;
        c.dispatch.retries_held_max = 16;
        c.deliver.timeout = Duration::from_secs(4);
        c.deliver.connect_timeout = Duration::from_secs(1);
    })
    .await;
    let (bad, good) = (Receiver::start().await, Receiver::start().await);
    bad.script(|_| Reply::hang());
    let hog = app.register(&bad.url("/0")).await;
    let mut hanging = vec![hog];
    for n in 1..12 {
        hanging.push(app.register(&bad.url(&format!("/{n}"))).await);
    }
    let healthy = app.register(&good.url("/")).await;
    for n in 0..20 {
        for account in &hanging {
            app.send(&account.key, "t", json!(n)).await;
        }
        app.send(&healthy.key, "t", json!(n)).await;
    }
    received(&good, 20).await;
    // Far more than fits is owed to those that hang, and none of it is held: first tries have their permits, retries theirs.
    assert!(app.metric("eventpulse_dispatch_held") <= 64.0 + 16.0);
    for n in 0..20 {
        app.send(&healthy.key, "t", json!(n)).await;
    }
    received(&good, 40).await;
    assert!(bad.concurrency_max() <= 64 + 16, "no more in flight than may be held");
    app.stop().await;
}

#[tokio::test]
async fn a_breaker_opens_probes_one_at_a_time_and_gives_everything_back() {
    let app = App::with("breaker", |c| {
        swept_soon(c);
        // The oldest is every probe, and fails each time: its last waits must end while this test is patient, and
        // all of them together must outlast it.
        c.retry.schedule = "200ms,500ms,1s,8s,8s,8s,8s,8s".parse().unwrap();
        c.lane.probe_first = Duration::from_millis(100);
        c.lane.probe_max = Duration::from_millis(400);
    })
    .await;
    let receiver = Receiver::start().await;
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    receiver.script(move |_| if is_down.load(SeqCst) { Reply::status(503) } else { Reply::ok() });
    let account = app.register(&receiver.url("/")).await;
    for n in 0..200 {
        app.send(&account.key, "t", json!(n)).await;
    }
    eventually("the breaker opens", PATIENCE, async || {
        let open = app.metric("eventpulse_lane_breakers_open");
        if open > 0.0 { Ok(()) } else { Err(format!("{open}")) }
    })
    .await;
    let db = postgres(&app.database).await;
    eventually("all is on the shelf but a probe", PATIENCE, async || {
        let shelved = count(&db, "SELECT count(*) FROM scheduled WHERE reason = 'breaker'").await;
        if shelved >= 199 { Ok(()) } else { Err(format!("{shelved}")) }
    })
    .await;
    let (calls, probes) = (receiver.count(), app.metric("eventpulse_lane_probes_total"));
    eventually("more probes", PATIENCE, async || {
        let more = app.metric("eventpulse_lane_probes_total") - probes;
        if more >= 3.0 { Ok(()) } else { Err(format!("{more}")) }
    })
    .await;
    let (calls, probes) = (receiver.count() - calls, app.metric("eventpulse_lane_probes_total") - probes);
    assert!(calls as f64 <= probes + 1.0, "{calls} calls, {probes} probes");
    down.store(false, SeqCst);
    app.settled().await;
    let delivered = "SELECT count(*) FROM delivery_attempts WHERE status = 'success'";
    assert_eq!(count(&db, delivered).await, 200);
    eventually("the breaker is closed", PATIENCE, async || {
        let open = app.metric("eventpulse_lane_breakers_open");
        if open == 0.0 { Ok(()) } else { Err(format!("{open}")) }
    })
    .await;
    app.stop().await;
}

/// 1. A dispatcher shelves a retry: Postgres has it, Redis has not heard of it and still shows the lease. 2. Another one takes it for
/// its probe. 3. The first takes it out of `due`, and the feeder brings it in again: it was made twice, as no lease was the probe's.
#[tokio::test]
async fn what_is_in_somebodys_hands_is_no_probe() {
    let app = App::with("probe", |c| {
        swept_soon(c);
        c.lane.probe_first = Duration::from_millis(100);
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    app.settled().await;

    let db = postgres(&app.database).await;
    let (mut redis, keys) = app.redis().await;
    let key = |name: &str| format!("{keys}{name}");
    let (breaker, member) =
        (key(&format!("lane:{}:breaker", account.webhook)), format!("{event}:{}", account.webhook));
    let mut pipe = redis::pipe();
    pipe.cmd("ZADD")
        .arg(key("due"))
        .arg(i64::from(i32::MAX) * 1000)
        .arg(&member)
        .cmd("SET")
        .arg(&breaker)
        .arg(1);
    let () = pipe.query_async(&mut redis).await.unwrap();
    let row = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
               VALUES ($1, $2, 2, 1, now() + interval '1 hour', now() + interval '1 hour', 'breaker')";
    db.execute(row, &[&event, &account.webhook]).await.unwrap();

    eventually("a probe finds it in hand, and the next one nothing", PATIENCE, async || {
        let open: bool = redis::cmd("EXISTS").arg(&breaker).query_async(&mut redis).await.unwrap();
        let off = count(&db, "SELECT count(*) FROM scheduled WHERE reason = 'parked'").await;
        if !open && off == 1 { Ok(()) } else { Err(format!("open: {open}, rows off the shelf: {off}")) }
    })
    .await;
    assert_eq!(receiver.count(), 1);
    let () = redis::cmd("ZREM").arg(key("due")).arg(&member).query_async(&mut redis).await.unwrap();
    app.settled().await;
    assert_eq!(receiver.count(), 2);
    app.stop().await;
}

#[tokio::test]
async fn behind_an_open_breaker_nothing_waits_for_ever() {
    let app = App::with("shelf", swept_soon).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let account = app.register(&receiver.url("/")).await;
    for n in 0..100 {
        app.send(&account.key, "t", json!(n)).await;
    }
    let db = postgres(&app.database).await;
    eventually("all is dead", PATIENCE, async || {
        let dead = count(&db, "SELECT count(*) FROM dlq_entries").await;
        if dead == 100 { Ok(()) } else { Err(format!("{dead}")) }
    })
    .await;
    app.settled().await;
    let parked = "SELECT count(*) FROM dlq_entries WHERE reason_code = 'expired_while_parked'";
    assert!(count(&db, parked).await > 0, "some died without a call");
    assert!(receiver.count() < 200, "and so there were few calls: {}", receiver.count());
    let ended = "SELECT count(DISTINCT event_id) FROM delivery_attempts WHERE status = 'dead'";
    assert_eq!(count(&db, ended).await, 100, "each has a last attempt that says why");
    app.stop().await;
}

/// 1. A probe takes a delivery that was never tried and has ten seconds left. 2. It fails, and its retry would come in an hour: the
/// promise moved its end to then.
#[tokio::test]
async fn a_failed_probe_lives_no_longer_than_what_it_stood_with() {
    let app = App::with("probed", |c| {
        swept_soon(c);
        c.retry.schedule = ["1h"; 12].join(",").parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    app.settled().await;

    receiver.script(|_| Reply::status(500));
    shelve(&app, &account, &[event], 10.0).await;
    let db = postgres(&app.database).await;
    let letter = eventually("its time is up", PATIENCE, async || {
        let sql = "SELECT reason_code, attempts FROM dlq_entries";
        db.query_opt(sql, &[]).await.unwrap().ok_or_else(|| format!("{} requests", receiver.count()))
    })
    .await;
    assert_eq!(letter.get::<_, &str>(0), "expired_while_parked");
    let probes = receiver.count() - 1;
    assert!(probes > 0 && letter.get::<_, i16>(1) as usize == probes, "{probes} probes, {letter:?}");
    app.stop().await;
}

/// Its breaker closes, so the shelf is no place to wait: it would be pulled and tried again at once.
#[tokio::test]
async fn a_probe_that_is_refused_has_its_retry() {
    let app = App::with("refused", |c| {
        swept_soon(c);
        c.retry.schedule = ["1h"; 12].join(",").parse().unwrap();
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    app.settled().await;

    receiver.script(|_| Reply::status(404));
    shelve(&app, &account, &[event], 60.0).await;
    let db = postgres(&app.database).await;
    eventually("a retry is promised", PATIENCE, async || {
        let sql = "SELECT reason, attempt FROM scheduled WHERE expires_at > next_at AND next_at > now() + interval '50 min'";
        match db.query_opt(sql, &[]).await.unwrap() {
            Some(row) => {
                assert_eq!((row.get::<_, &str>(0), row.get::<_, i16>(1)), ("retry", 2));
                Ok(())
            }
            None => Err(format!("{} requests", receiver.count())),
        }
    })
    .await;
    app.stop().await;
}

/// 1. A probe takes a delivery whose time is just up, or whose event is gone. 2. That was taken for an empty shelf: the breaker
/// closed, and all that stood there went to an endpoint that did not work.
#[tokio::test]
async fn what_is_over_does_not_close_a_breaker() {
    let app = App::with("over", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let event = app.send(&account.key, "t", json!(1)).await;
    app.settled().await;

    shelve(&app, &account, &[1, event], 3600.0).await;
    received(&receiver, 2).await;
    eventually("the second is a probe", PATIENCE, async || {
        match app.metric("eventpulse_lane_probes_total") {
            1.0 => Ok(()),
            probes => Err(format!("{probes}")),
        }
    })
    .await;
    // Its lease would last as long as that of a process that died.
    postgres(&app.database).await.execute("DELETE FROM scheduled WHERE event_id = 1", &[]).await.unwrap();
    app.settled().await;
    app.stop().await;
}

#[tokio::test]
async fn a_paused_webhook_holds_its_work_and_gets_it_when_it_is_active_again() {
    let app = App::with("paused", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    set(&app, &account, "state = 'paused'").await;
    for n in 0..30 {
        app.send(&account.key, "t", json!(n)).await;
    }
    let db = postgres(&app.database).await;
    eventually("all is on the shelf", PATIENCE, async || {
        let shelved = count(&db, "SELECT count(*) FROM scheduled WHERE reason = 'paused'").await;
        if shelved == 30 { Ok(()) } else { Err(format!("{shelved}")) }
    })
    .await;
    assert_eq!(receiver.count(), 0);
    set(&app, &account, "state = 'active'").await;
    received(&receiver, 30).await;
    app.settled().await;
    assert_eq!(receiver.count(), 30);
    app.stop().await;
}

/// What was pulled came back by way of a lease like that of others, so that the lane did not know how many were on their way, and pulled
/// until the first ones were there.
#[tokio::test]
async fn a_lane_pulls_no_more_than_it_has_room_for() {
    // What waits in the lane for long goes back, and makes room for others.
    let app = App::with("room", |c| {
        c.dispatch.hold = Duration::from_secs(30);
        c.deliver.timeout = Duration::from_secs(6);
    })
    .await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::hang());
    let db = postgres(&app.database).await;
    let account = shelve_ten_thousand(&app, &db, &receiver).await;
    set(&app, &account, "state = 'active'").await;
    let before = std::cell::Cell::new(0.0);
    eventually("it pulls no more", PATIENCE, async || {
        // Longer than the longest pause between two steps.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let pulled = app.metric("eventpulse_lane_pulled_total");
        if before.replace(pulled) == pulled && pulled > 0.0 { Ok(()) } else { Err(format!("{pulled}")) }
    })
    .await;
    let left = count(&db, SHELVED).await;
    assert!(left >= 7000, "{left} of 10,000");
    app.stop().await;
}

/// What is pulled and finds no room in `due` is not in its lane either, so the lane's room is as large as before.
#[tokio::test]
async fn what_finds_no_room_in_due_is_pulled_slowly() {
    let app = App::with("no-room", |c| c.retry.due_max = 4000).await;
    let receiver = Receiver::start().await;
    let db = postgres(&app.database).await;
    let account = shelve_ten_thousand(&app, &db, &receiver).await;
    let (mut redis, keys) = app.redis().await;
    let mut far = redis::cmd("ZADD").arg(format!("{keys}due")).clone();
    for n in 0..4000 {
        far.arg(1e15).arg(format!("{n}:0"));
    }
    let () = far.query_async(&mut redis).await.unwrap();
    let begin = std::time::Instant::now();
    set(&app, &account, "state = 'active'").await;
    eventually("it pulls", PATIENCE, async || {
        let pulled = app.metric("eventpulse_lane_pulled_total");
        if pulled > 0.0 { Ok(()) } else { Err(format!("{pulled}")) }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Five hundred in each second that it took, where it was all of them in half of one.
    let left = count(&db, SHELVED).await;
    let steps = 2 + i64::try_from(begin.elapsed().as_secs()).unwrap();
    assert!(10_000 - left <= steps * 500, "{left} of 10,000 after {steps} steps");
    eventually("it goes on", PATIENCE, async || {
        let now = count(&db, SHELVED).await;
        if now < left { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
    app.stop().await;
}

const SHELVED: &str = "SELECT count(*) FROM scheduled WHERE reason = 'paused'";

/// A paused webhook with ten thousand deliveries.
async fn shelve_ten_thousand(app: &App, db: &tokio_postgres::Client, receiver: &Receiver) -> Account {
    let account = app.register(&receiver.url("/")).await;
    set(app, &account, "state = 'paused'").await;
    app.send_at_once(&account, 10_000).await;
    eventually("all is on the shelf", PATIENCE, async || {
        let shelved = count(db, SHELVED).await;
        if shelved == 10_000 { Ok(()) } else { Err(format!("{shelved}")) }
    })
    .await;
    account
}

#[tokio::test]
async fn a_rate_limit_spreads_requests_over_time() {
    let app = App::with("rate", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    set(&app, &account, "rate_limit = 40").await;
    let began = std::time::Instant::now();
    for n in 0..120 {
        app.send(&account.key, "t", json!(n)).await;
    }
    received(&receiver, 120).await;
    // A slow machine makes it later, and never sooner.
    assert!(began.elapsed() >= Duration::from_millis(120 * 25 - 100), "{:?}", began.elapsed());
    app.settled().await;
    assert_eq!(receiver.count(), 120);
    app.stop().await;
}

#[tokio::test]
async fn what_two_dispatchers_may_send_at_once_is_shared_between_them() {
    let app = App::with("shared-limit", |c| {
        c.dispatch.beat = Duration::from_millis(50);
        c.dispatch.dead_after = Duration::from_secs(5);
    })
    .await;
    let config = eventpulse::config::Config {
        dispatch: eventpulse::config::Dispatch {
            beat: Duration::from_millis(50),
            dead_after: Duration::from_secs(5),
            ..Default::default()
        },
        ..crate::harness::config(&app.database)
    };
    let other = App::of(config, eventpulse::config::Roles::Dispatcher).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(20)));
    let account = app.register(&receiver.url("/")).await;
    set(&app, &account, "in_flight_max = 4").await;
    eventually("they know of each other", PATIENCE, async || {
        let peers = [&app, &other].map(|a| a.metric("eventpulse_dispatch_peers"));
        if peers == [2.0, 2.0] { Ok(()) } else { Err(format!("{peers:?}")) }
    })
    .await;
    for n in 0..200 {
        app.send(&account.key, "t", json!(n)).await;
    }
    received(&receiver, 200).await;
    assert!(receiver.concurrency_max() <= 4, "{}", receiver.concurrency_max());
    other.stop().await;
    app.stop().await;
}
