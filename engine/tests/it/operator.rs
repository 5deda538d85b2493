//! What the operator is told beyond the usual: which webhooks are the worst, by what window repeats came, how much is parked.

use std::time::Duration;

use eventpulse::config::{
    Config, Roles,
    value::{Maybe, Secret},
};
use eventpulse_testkit::{Receiver, eventually, private_redis, receiver::Reply};
use serde_json::{Value, json};

use crate::harness::{Account, App, PATIENCE, config, database, postgres};

/// Registers one more webhook for events of a type with its name; returns its id.
async fn more(app: &App, account: &Account, receiver: &Receiver, name: &str) -> i64 {
    let retry = json!({ "schedule": ["1h"] });
    let url = receiver.url(&format!("/{name}"));
    let body = json!({ "name": name, "url": url, "eventTypes": [name], "retry": retry });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key);
    let answer: Value = request.json(&body).send().await.expect("an answer").json().await.expect("JSON");
    answer["webhook"]["id"].as_i64().unwrap_or_else(|| panic!("{answer}"))
}

fn with_a_port_of_its_own(config: &mut Config) {
    config.admin.address = Maybe(Some("127.0.0.1:0".parse().expect("an address")));
}

async fn get(app: &App, url: String) -> (u16, Value) {
    let response = app.client.get(url).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn the_worst_webhooks_are_listed_for_the_operator_alone() {
    let app = App::with("worst", with_a_port_of_its_own).await;
    let receiver = Receiver::start().await;
    receiver.script(|request| match request.path.as_str() {
        "/failing" | "/waiting" => Reply::status(500),
        "/slow" => Reply::ok().with_delay(Duration::from_millis(300)),
        _ => Reply::ok(),
    });
    let account = app.register(&receiver.url("/")).await;
    let mut ids = Vec::new();
    for name in ["failing", "slow", "waiting"] {
        ids.push(more(&app, &account, &receiver, name).await);
    }
    for (name, n) in [("failing", 3), ("slow", 1), ("waiting", 1)] {
        for n in 0..n {
            app.send(&account.key, name, json!(n)).await;
        }
    }
    let db = postgres(&app.database).await;
    eventually("all is recorded", PATIENCE, async || {
        let rows = db.query_one("SELECT count(*) FROM delivery_attempts", &[]).await.expect("a count");
        // Five events, each for its own webhook and for the account's first.
        match rows.get::<_, i64>(0) {
            10 => Ok(()),
            n => Err(format!("{n} attempts")),
        }
    })
    .await;
    // One has failed once, and has the longest backlog.
    let sql = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
               SELECT 1000000 + n, $1, 1, 1, now() + interval '1 day', now() + interval '2 days', 'backlog'
               FROM generate_series(1, 20) AS n";
    db.execute(sql, &[&ids[2]]).await.expect("a backlog");

    let admin = app.engine.admin.expect("an address");
    let list = format!("http://{admin}/admin/worst-webhooks");
    let first = async |query: &str| {
        let (status, body) = get(&app, format!("{list}?{query}")).await;
        assert_eq!(status, 200, "{body}");
        body["webhooks"][0].clone()
    };
    let worst = first("by=failures").await;
    assert_eq!((worst["webhookId"].as_i64(), worst["failed"].as_i64()), (Some(ids[0]), Some(3)), "{worst}");
    assert_eq!(
        (&worst["name"], &worst["state"], &worst["waitsFor"]),
        (&json!("failing"), &json!("active"), &json!("retry"))
    );
    assert!(worst["accountId"].is_i64(), "{worst}");
    let worst = first("by=latency").await;
    assert_eq!(worst["webhookId"].as_i64(), Some(ids[1]), "{worst}");
    assert!(worst["meanMs"].as_f64().expect("a number") >= 300.0, "{worst}");
    let worst = first("by=backlog&limit=1").await;
    assert_eq!((worst["webhookId"].as_i64(), worst["waiting"].as_i64()), (Some(ids[2]), Some(21)), "{worst}");

    let (_, body) = get(&app, list.clone()).await;
    let names: Vec<&str> =
        body["webhooks"].as_array().expect("a list").iter().filter_map(|w| w["name"].as_str()).collect();
    assert_eq!(names, ["failing", "waiting"], "who has no failure is not among them");
    for query in ["by=name", "limit=51", "sort=failures"] {
        assert_eq!(get(&app, format!("{list}?{query}")).await.0, 400, "{query}");
    }
    let posted = app.client.post(&list).send().await.expect("an answer");
    assert_eq!(posted.status(), 405);
    assert_eq!(app.get(&account.key, "/admin/worst-webhooks").await.0, 404, "it is not for accounts");
    app.stop().await;
}

#[tokio::test]
async fn metrics_name_the_worst_webhooks_where_that_is_asked_for() {
    let database = database("worst-metric").await;
    let silent = App::of(config(&database), Roles::Api).await;
    let mut settings = config(&database);
    settings.metrics.worst_webhooks = 1;
    settings.recover.sweep_every = Duration::from_millis(100);
    let app = App::of(settings, Roles::Both).await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let account = app.register(&receiver.url("/")).await;
    let (one, other) =
        (more(&app, &account, &receiver, "one").await, more(&app, &account, &receiver, "other").await);
    app.set_state(&account, "disabled").await;
    let names = async |app: &App, webhook: i64| {
        eventually("the worst webhook is named, and no other", PATIENCE, async || {
            let text = app.engine.metrics.render();
            let named: Vec<&str> = text.lines().filter(|line| line.contains("{webhook=")).collect();
            let label = format!("{{webhook=\"{webhook}\"}} ");
            match named.len() == 3 && named.iter().all(|line| line.contains(&label)) {
                true => Ok(()),
                false => Err(format!("{named:?}")),
            }
        })
        .await;
    };
    app.send(&account.key, "one", json!(1)).await;
    names(&app, one).await;
    for n in 0..2 {
        app.send(&account.key, "other", json!(n)).await;
    }
    names(&app, other).await;
    assert!(!silent.engine.metrics.render().contains("{webhook="), "without the setting nobody is named");
    silent.stop().await;
    app.stop().await;
}

/// 1. Somebody records an attempt of a delivery that is owed. 2. A dispatcher makes it again, by a new entry, by one that it
///    checks, or by the schedule. 3. The metric says which.
#[tokio::test]
async fn repeats_are_counted_by_how_they_came_into_hand() {
    let redis = private_redis().await;
    let mut settings = config(&database("origins").await);
    settings.redis_url = Secret::new(redis.url());
    let gateway = App::of(settings.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let db = postgres(&gateway.database).await;
    let tried = async |event: i64| {
        let sql = "INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, reason_code, duration_ms, created_at)
                   VALUES ($1, $2, 1, 1, 'failed', 'timeout', 1, now() - interval '1 second')";
        db.execute(sql, &[&event, &account.webhook]).await.expect("an attempt");
    };
    let counted = async |app: &App, wanted: [f64; 3]| {
        eventually("the repeat is counted", PATIENCE, async || {
            let of = |way| app.metric(&format!("eventpulse_deliver_repeats_total{{came_by=\"{way}\"}}"));
            let found = ["entry", "check", "schedule"].map(of);
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };

    // What came before the index was in order is checked by whoever reads it.
    eventually("the index is in order", PATIENCE, async || {
        let order = gateway.metric("eventpulse_recover_redis_in_order");
        if order == 1.0 { Ok(()) } else { Err(order.to_string()) }
    })
    .await;
    tried(gateway.send(&account.key, "t", json!(1)).await).await;
    let dispatcher = App::of(settings.clone(), Roles::Dispatcher).await;
    counted(&dispatcher, [1.0, 0.0, 0.0]).await;

    gateway.set_state(&account, "paused").await;
    let paused = gateway.send(&account.key, "t", json!(2)).await;
    eventually("it waits for the end of the pause", PATIENCE, async || {
        let sql = "SELECT reason FROM scheduled WHERE event_id = $1";
        let row = db.query_opt(sql, &[&paused]).await.expect("a query");
        if row.is_some() { Ok(()) } else { Err("nothing is scheduled".to_owned()) }
    })
    .await;
    tried(paused).await;
    gateway.set_state(&account, "active").await;
    counted(&dispatcher, [1.0, 0.0, 1.0]).await;
    // Two came by entries, however often they were taken in hand.
    assert_eq!(dispatcher.metric("eventpulse_dispatch_deliveries_total"), 2.0);
    assert!(dispatcher.metric("eventpulse_lane_shelved_total{reason=\"paused\"}") >= 1.0);
    dispatcher.stop().await;

    tried(gateway.send(&account.key, "t", json!(3)).await).await;
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.expect("wiped");
    eventually("the index is made again", PATIENCE, async || {
        let made = gateway.metric("eventpulse_recover_restreamed_total");
        if made >= 1.0 { Ok(()) } else { Err(made.to_string()) }
    })
    .await;
    let dispatcher = App::of(settings, Roles::Dispatcher).await;
    counted(&dispatcher, [0.0, 1.0, 0.0]).await;
    dispatcher.stop().await;
    gateway.stop().await;
}
