//! An engine in this process, on free ports, with a database of its own, and what a test asks of it.

pub(crate) mod certificates;
pub(crate) mod process;

use std::{collections::HashSet, time::Duration};

use eventpulse::{
    config::{Config, Roles, value::Secret},
    engine::Engine,
    store::{Address, migrate},
};
use eventpulse_testkit::{Receiver, eventually, receiver::Recorded, stack};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio_postgres::NoTls;

/// Long enough for a busy machine, and for a lease whose answer was lost to end (47 s); only ever used up by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(75);

/// An engine under test.
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) base: String,
    pub(crate) database: String,
    pub(crate) client: reqwest::Client,
}

/// A registered account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) key: String,
    pub(crate) webhook: i64,
    pub(crate) secret: String,
}

/// Settings for tests: private targets, quick retries, quick beats.
pub(crate) fn config(database: &str) -> Config {
    let mut config = Config {
        database_url: Secret::new(database),
        redis_url: Secret::new(stack().redis_url()),
        ..Config::default()
    };
    config.http.port = 0;
    config.http.dispatcher_port = 0;
    config.targets.allow_private = true;
    config.retry.schedule = "200ms,400ms".parse().expect("a schedule");
    config.recover.sweep_every = Duration::from_millis(500);
    // These tests are another program than the one that compiles.
    config.transform.compiler = Some(env!("CARGO_BIN_EXE_eventpulse").into());
    config.transform.cache_folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/transforms").to_owned();
    config
}

/// A fresh, migrated database. Its name becomes the engine's own Redis keys by the id in it.
pub(crate) async fn database(hint: &str) -> String {
    let url = eventpulse_testkit::database(hint).await;
    migrate::migrate(&Address::parse(&url).expect("a URL")).await.expect("migrated");
    url
}

/// A connection to look at the tables with.
pub(crate) async fn postgres(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres answers");
    tokio::spawn(connection);
    client
}

/// One number from the database.
pub(crate) async fn count(client: &tokio_postgres::Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("the query runs").get(0)
}

/// The events of the requests that a receiver got, in their order.
pub(crate) fn ids(receiver: &Receiver) -> Vec<i64> {
    let id = |r: &Recorded| r.headers["x-eventpulse-event-id"].to_str().unwrap().parse().unwrap();
    receiver.requests().iter().map(id).collect()
}

impl App {
    pub(crate) async fn start(hint: &str) -> App {
        App::with(hint, |_| {}).await
    }

    /// Both roles on a database of their own, with settings changed by `change`.
    pub(crate) async fn with(hint: &str, change: impl FnOnce(&mut Config)) -> App {
        let database = database(hint).await;
        let mut config = config(&database);
        change(&mut config);
        App::of(config, Roles::Both).await
    }

    pub(crate) async fn of(config: Config, roles: Roles) -> App {
        let database = config.database_url.reveal().to_owned();
        let engine = Engine::start(config, roles).await.expect("the engine starts");
        let address = engine.gateway.or(engine.dispatcher).expect("a role listens");
        App {
            engine,
            base: format!("http://{address}"),
            database,
            client: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client"),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Registers a new account whose webhook points to `url`.
    pub(crate) async fn register(&self, url: &str) -> Account {
        let body = json!({ "name": "test", "url": url });
        let response =
            self.client.post(self.url("/register-webhook")).json(&body).send().await.expect("an answer");
        assert_eq!(response.status(), 201);
        let body: Value = response.json().await.expect("JSON");
        Account {
            key: body["apiKey"].as_str().expect("a key").to_owned(),
            webhook: body["webhook"]["id"].as_i64().expect("an id"),
            secret: body["webhook"]["secret"].as_str().expect("a secret").to_owned(),
        }
    }

    /// Sends an event that must be accepted; returns its id.
    pub(crate) async fn send(&self, key: &str, kind: &str, payload: Value) -> i64 {
        let (status, body) =
            self.try_send(key, &json!({ "type": kind, "payload": payload }).to_string()).await;
        assert_eq!(status, 201, "{body}");
        body["event"]["id"].as_i64().expect("an id")
    }

    /// Sends events in one request, so in one batch. Returns their ids.
    pub(crate) async fn send_at_once(&self, account: &Account, n: usize) -> HashSet<i64> {
        let events: Vec<_> = (0..n).map(|n| json!({ "type": "t", "payload": n })).collect();
        let request = self.client.post(self.url("/send-events")).header("x-api-key", &account.key);
        let response = request.json(&events).send().await.expect("an answer");
        assert_eq!(response.status(), 201);
        let body: Value = response.json().await.expect("JSON");
        let events = body["events"].as_array().expect("events");
        events.iter().map(|event| event["id"].as_i64().expect("an id")).collect()
    }

    /// Sends a body as it is.
    pub(crate) async fn try_send(&self, key: &str, body: &str) -> (u16, Value) {
        let request = self.client.post(self.url("/send-event")).header("x-api-key", key);
        let request = request.header("content-type", "application/json").body(body.to_owned());
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    pub(crate) async fn get(&self, key: &str, path: &str) -> (u16, Value) {
        let response =
            self.client.get(self.url(path)).header("x-api-key", key).send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    pub(crate) async fn post(&self, key: &str, path: &str) -> (u16, Value) {
        let response =
            self.client.post(self.url(path)).header("x-api-key", key).send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Changes the state of an account's webhook, as the account does.
    pub(crate) async fn set_state(&self, account: &Account, state: &str) {
        let url = self.url(&format!("/webhooks/{}", account.webhook));
        let request = self.client.patch(url).header("x-api-key", &account.key);
        let response = request.json(&json!({ "state": state })).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
    }

    /// Waits until nothing is owed any more: no batch row, nothing scheduled. Needs a short `sweep_after`.
    pub(crate) async fn settled(&self) {
        let db = postgres(&self.database).await;
        eventually("everything is accounted for", PATIENCE, async || {
            let owed =
                count(&db, "SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM scheduled)").await;
            if owed == 0 { Ok(()) } else { Err(format!("{owed} rows are owed")) }
        })
        .await;
    }

    /// A connection to Redis, and what this engine's keys there begin with.
    pub(crate) async fn redis(&self) -> (MultiplexedConnection, String) {
        let db = postgres(&self.database).await;
        let engine: String = db.query_one("SELECT id FROM engine_state", &[]).await.expect("migrated").get(0);
        let client = redis::Client::open(stack().redis_url()).expect("a URL");
        let connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
        (connection, format!("eventpulse:{engine}:{{0}}:"))
    }

    /// The value of a metric, by its name with labels as it is rendered.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.engine.metrics.render();
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(n, _)| n == name));
        line.and_then(|l| l.rsplit_once(' ')).map_or(0.0, |(_, value)| value.parse().expect("a number"))
    }

    pub(crate) async fn stop(self) {
        self.engine.shutdown().await.expect("a clean stop");
    }
}

/// Settings with which batches are swept soon.
pub(crate) fn swept_soon(config: &mut Config) {
    config.dispatch.hold = Duration::from_millis(800);
    config.recover.sweep_after = Duration::from_secs(1);
}
