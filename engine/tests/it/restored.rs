//! A Postgres that comes back from a backup has lost commits that processes and Redis know of. Nothing of what is lost may be
//! mistaken for what comes after it.

use std::{collections::HashSet, path::Path, process::Command};

use eventpulse::store::{Address, Error, Link, Store, migrate};
use eventpulse_embedded::{Postgres, Redis};
use eventpulse_testkit::{Receiver, eventually, private_postgres, private_redis};
use serde_json::{Value, json};

use crate::harness::{
    PATIENCE, count, database, ids, postgres,
    process::{Process, command_of},
};

/// Does something with the server's data while it is down.
async fn while_down(mut server: Postgres, change: impl FnOnce() + Send + 'static) -> Postgres {
    let work = move || {
        server.kill().expect("killed");
        change();
        server.restart().expect("restarted");
        server
    };
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().expect("it runs").success(), "{program} {args:?}");
}

/// A server whose data can be put back, and the engine on it as a process of its own.
struct Stage {
    url: String,
    data: String,
    backup: String,
    redis: Redis,
    process: Process,
    gateway: Gateway,
}

impl Stage {
    async fn start(name: &str) -> (Postgres, Stage) {
        let (server, redis) = (private_postgres().await, private_redis().await);
        let url = server.url("eventpulse");
        migrate::migrate(&Address::parse(&url).unwrap()).await.unwrap();
        let data: String = postgres(&url).await.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
        let backup = format!("{data}.backup");
        // The same port after it has begun anew.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Its file is replaced while it runs, as by an upgrade.
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::hard_link(env!("CARGO_BIN_EXE_eventpulse"), &program).expect("a second name");
        let mut command = command_of(&program, &format!("serve --dispatcher-port 0 --port {port}"));
        command.env("DATABASE_URL", &url).env("REDIS_URL", redis.url()).env("ALLOW_PRIVATE_TARGETS", "true");
        let process = Process::spawn(command);
        process.ready().await;
        std::fs::remove_file(&program).expect("it was there");
        let gateway = Gateway {
            base: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap(),
        };
        (server, Stage { url, data, backup, redis, process, gateway })
    }

    async fn back_up(&self, server: Postgres) -> Postgres {
        let (data, backup) = (self.data.clone(), self.backup.clone());
        while_down(server, move || run("cp", &["-a", &data, &backup])).await
    }

    /// What came after the backup is lost.
    async fn put_back(&self, server: Postgres) -> Postgres {
        let (data, backup) = (self.data.clone(), self.backup.clone());
        let server = while_down(server, move || {
            run("rm", &["-rf", &data]);
            run("mv", &[&backup, &data]);
        })
        .await;
        self.process.says("beginning anew").await;
        server
    }

    fn end(self, server: Postgres) {
        self.process.kill();
        drop((server, self.redis));
    }
}

struct Gateway {
    base: String,
    client: reqwest::Client,
}

impl Gateway {
    async fn post(&self, path: &str, key: Option<&str>, body: Value) -> Option<(u16, Value)> {
        let mut request = self.client.post(format!("{}{path}", self.base)).json(&body);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let response = request.send().await.ok()?;
        Some((response.status().as_u16(), response.json().await.ok()?))
    }

    /// An account's key.
    async fn register(&self, url: &str) -> String {
        let body = json!({ "name": "test", "url": url });
        let (status, body) = self.post("/register-webhook", None, body).await.expect("an answer");
        assert_eq!(status, 201, "{body}");
        body["apiKey"].as_str().expect("a key").to_owned()
    }

    /// Sends until it is accepted.
    async fn send(&self, key: &str) -> i64 {
        eventually("an event is accepted", PATIENCE, async || {
            match self.post("/send-event", Some(key), json!({ "type": "t", "payload": 1 })).await {
                Some((201, body)) => Ok(body["event"]["id"].as_i64().expect("an id")),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }
}

async fn delivered(receiver: &Receiver, sent: &[i64]) {
    eventually("all are delivered", PATIENCE, async || {
        let got: HashSet<i64> = ids(receiver).into_iter().collect();
        let missing = sent.iter().filter(|id| !got.contains(id)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are missing", sent.len())) }
    })
    .await;
}

#[tokio::test]
async fn after_a_restored_backup_no_id_and_no_key_is_taken_for_another() {
    let (server, stage) = Stage::start("restored").await;
    let gateway = &stage.gateway;
    let receivers = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let kept = gateway.register(&receivers[0].url("/")).await;
    let mut sent = vec![gateway.send(&kept).await];
    delivered(&receivers[0], &sent).await;

    let server = stage.back_up(server).await;
    // All of this will be lost: events, and an account with its key.
    let lost = gateway.register(&receivers[1].url("/")).await;
    for _ in 0..20 {
        sent.push(gateway.send(&kept).await);
        gateway.send(&lost).await;
    }
    delivered(&receivers[0], &sent).await;
    let highest = *sent.iter().max().unwrap();

    let server = stage.put_back(server).await;
    let after = gateway.send(&kept).await;
    assert!(after > highest + (1 << 20), "{after} follows {highest}");
    sent.push(after);
    delivered(&receivers[0], &sent).await;

    // A new account may get the number of the one that was lost, and nothing else of it.
    let new = gateway.register(&receivers[2].url("/")).await;
    let (status, body) =
        gateway.post("/send-event", Some(&lost), json!({ "type": "t", "payload": 1 })).await.unwrap();
    assert_eq!(status, 401, "{body}");
    let (others, theirs) = (receivers[1].count(), gateway.send(&new).await);
    delivered(&receivers[2], &[theirs]).await;
    assert_eq!((receivers[1].count(), receivers[2].count()), (others, 1));

    let unique: HashSet<String> = receivers[0]
        .requests()
        .iter()
        .map(|request| request.headers["webhook-id"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(unique.len(), sent.len(), "one id for each event");
    stage.end(server);
}

/// So little that neither the configuration nor Postgres' sequences, which note ahead what they give, show it.
#[tokio::test]
async fn the_loss_of_a_few_moments_is_noticed() {
    let (server, stage) = Stage::start("moments").await;
    let receiver = Receiver::start().await;
    let kept = stage.gateway.register(&receiver.url("/")).await;
    let mut sent = vec![stage.gateway.send(&kept).await];
    delivered(&receiver, &sent).await;

    let server = stage.back_up(server).await;
    let db = postgres(&stage.url).await;
    let beat = async || count(&db, "SELECT max(beat) FROM instances").await;
    let before = beat().await;
    eventually("two beats", PATIENCE, async || match beat().await {
        now if now >= before + 2 => Ok(()),
        now => Err(format!("{before}, {now}")),
    })
    .await;

    let server = stage.put_back(server).await;
    sent.push(stage.gateway.send(&kept).await);
    delivered(&receiver, &sent).await;
    stage.end(server);
}

/// Its connections may be older than that.
#[tokio::test]
async fn who_lost_nothing_notices_with_its_next_beat_that_another_began_anew() {
    let url = database("another_history").await;
    let store = Store::new(&url, 2).expect("a URL");
    let me = store.join("api").await.expect("an instance");
    let mut link = Link::new(store.address().clone(), PATIENCE);
    link.beat(me, "api").await.expect("a beat");
    postgres(&url).await.execute("UPDATE engine_state SET history = history + 1", &[]).await.unwrap();
    let error = link.beat(me, "api").await.expect_err("another history");
    assert!(matches!(error, Error::Rewound), "{error}");
    store.address().history().gone().await;
}
