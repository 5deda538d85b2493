//! `/livez` and `/readyz`: what a supervisor and a balancer are told, and what a gateway does once it is to end.

use eventpulse::config::{Roles, value::Secret};
use eventpulse_testkit::{Receiver, eventually, private_postgres, private_redis};
use serde_json::{Value, json};

use crate::harness::{
    App, PATIENCE, config, database, postgres,
    process::{self, Process},
};

/// Status, and the reason of each check that is not well.
async fn ready(app: &App, base: &str) -> (u16, Vec<String>) {
    let response = app.client.get(format!("{base}/readyz")).send().await.expect("an answer");
    let status = response.status().as_u16();
    let body: Value = response.json().await.expect("JSON");
    let checks = body["checks"].as_array().expect("checks").iter();
    let bad = checks.filter(|check| check["ok"] == false);
    (status, bad.map(|check| check["name"].as_str().expect("a name").to_owned()).collect())
}

async fn until(app: &App, base: &str, status: u16, bad: &[&str]) {
    eventually(&format!("{base} is at {status} with {bad:?}"), PATIENCE, async || {
        let now = ready(app, base).await;
        if now.0 == status && now.1 == bad { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

#[tokio::test]
async fn readiness_follows_the_stores_and_a_gateway_needs_no_redis() {
    let (mut redis, mut server) = (private_redis().await, private_postgres().await);
    let url = server.url("eventpulse");
    let address = eventpulse::store::Address::parse(&url).unwrap();
    eventpulse::store::migrate::migrate(&address).await.unwrap();
    let mut config = config(&url);
    config.redis_url = Secret::new(redis.url());
    let app = App::of(config, Roles::Both).await;
    let (gateway, dispatcher) =
        (app.base.clone(), format!("http://{}", app.engine.dispatcher.expect("it listens")));
    for base in [&gateway, &dispatcher] {
        until(&app, base, 200, &[]).await;
    }
    let redis = tokio::task::spawn_blocking(move || {
        redis.kill().expect("killed");
        redis
    });
    let redis = redis.await.unwrap();
    until(&app, &dispatcher, 503, &["redis"]).await;
    until(&app, &gateway, 200, &["redis"]).await;
    let server = tokio::task::spawn_blocking(move || {
        server.kill().expect("killed");
        server
    });
    let mut server = server.await.unwrap();
    until(&app, &gateway, 503, &["postgres", "migrations", "redis"]).await;
    // Restarting this process would help nobody.
    for base in [&gateway, &dispatcher] {
        for path in ["livez", "health"] {
            let response = app.client.get(format!("{base}/{path}")).send().await.unwrap();
            assert_eq!(response.status(), 200);
        }
    }
    let text = app.client.get(format!("{gateway}/readyz")).send().await.unwrap().text().await.unwrap();
    assert!(!text.contains("127.0.0.1"), "{text}");
    let mut redis = redis;
    let servers = tokio::task::spawn_blocking(move || {
        redis.restart().expect("restarted");
        server.restart().expect("restarted");
        (redis, server)
    });
    let servers = servers.await.unwrap();
    for base in [&gateway, &dispatcher] {
        until(&app, base, 200, &[]).await;
    }
    app.stop().await;
    drop(servers);
}

#[tokio::test]
async fn a_gateway_that_is_to_end_says_so_and_goes_on_for_a_while() {
    let url = database("delay").await;
    let receiver = Receiver::start().await;
    let app = App::of(config(&url), Roles::Dispatcher).await;
    let mut serve = process::serve(&url, "--role api");
    serve.env("EVENTPULSE_SHUTDOWN__DELAY", "5m");
    let mut gateway = Process::spawn(serve);
    let app = App { base: gateway.ready().await, ..app };
    let account = app.register(&receiver.url("/")).await;
    let send = || {
        let request = app.client.post(app.url("/send-event")).header("x-api-key", &account.key);
        request.json(&json!({ "type": "t", "payload": 1 })).send()
    };
    assert!(!send().await.unwrap().headers().contains_key("connection"));
    gateway.signal(rustix::process::Signal::TERM);
    until(&app, &app.base, 503, &["draining"]).await;
    // On a connection that is open already, and on a new one.
    for client in [app.client.clone(), reqwest::Client::builder().no_proxy().build().unwrap()] {
        let request = client.post(app.url("/send-event")).header("x-api-key", &account.key);
        let response = request.json(&json!({ "type": "t", "payload": 2 })).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["connection"]),
            (201, &"close".parse().unwrap())
        );
    }
    // A second signal ends the delay.
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.exit().await.success(), "{}", gateway.output());
    eventually("what was accepted is delivered", PATIENCE, async || {
        if receiver.count() == 3 { Ok(()) } else { Err(receiver.count().to_string()) }
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn a_program_does_not_start_on_a_schema_that_is_older() {
    let url = database("older").await;
    let db = postgres(&url).await;
    let sql = "DELETE FROM refinery_schema_history WHERE version =
               (SELECT max(version) FROM refinery_schema_history)";
    db.execute(sql, &[]).await.unwrap();
    let mut process = Process::spawn(process::serve(&url, ""));
    assert_eq!(process.exit().await.code(), Some(1));
    assert!(process.output().contains("run `eventpulse migrate`"), "{}", process.output());
}

#[tokio::test]
async fn healthcheck_asks_the_url_it_is_given() {
    let app = App::start("checkurl").await;
    let check = |path: &str| {
        let mut command = process::command(&format!("healthcheck --url {}{path}", app.base));
        tokio::task::spawn_blocking(move || command.output().expect("it runs").status.code())
    };
    until(&app, &app.base, 200, &[]).await;
    assert_eq!(check("/readyz").await.unwrap(), Some(0));
    assert_eq!(check("/nowhere").await.unwrap(), Some(1));
    app.stop().await;
}
