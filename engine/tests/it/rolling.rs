//! Rolling restarts: each process is replaced by a new one under load, as an orchestrator does it, behind a balancer. Also by a
//! newer version: `scripts/upgrade` builds an older one and names it in `EVENTPULSE_UPGRADE_FROM`.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    PATIENCE, count, ids, postgres,
    process::{self, Process},
};

/// Where requests may go. Each holder of a base URL has a request on its way there.
#[derive(Clone, Default)]
struct Balancer {
    known: Arc<Mutex<Vec<Arc<str>>>>,
    ready: Arc<Mutex<Vec<Arc<str>>>>,
    turn: Arc<AtomicUsize>,
}

impl Balancer {
    fn add(&self, base: &str) {
        self.known.lock().unwrap().push(base.into());
    }

    /// Sends nothing there any more, and waits until nothing is on its way.
    async fn remove(&self, base: &str) {
        let gone: Arc<str> = {
            let mut known = self.known.lock().unwrap();
            let at = known.iter().position(|known| &**known == base).expect("it was added");
            known.remove(at)
        };
        eventually("no request is on its way", PATIENCE, async || match Arc::strong_count(&gone) {
            1 => Ok(()),
            n => Err(format!("{} holders", n - 1)),
        })
        .await;
    }

    /// Waits until a gateway has been found not to be ready.
    async fn has_left(&self, base: &str) {
        eventually("the balancer notices", PATIENCE, async || {
            let there = self.ready.lock().unwrap().iter().any(|ready| &**ready == base);
            if there { Err("it is in use".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// Asks each gateway, over and over. Versions without `/readyz` answer 404 to it, and are taken as ready.
    async fn probe(self) {
        let client = client();
        loop {
            let known = self.known.lock().unwrap().clone();
            let mut ready = Vec::new();
            for base in known {
                let answer = client.get(format!("{base}/readyz")).send().await;
                if answer.is_ok_and(|response| matches!(response.status().as_u16(), 200 | 404)) {
                    ready.push(base);
                }
            }
            *self.ready.lock().unwrap() = ready;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A plain loop, because a future that borrows an async closure cannot be spawned.
    async fn pick(&self) -> Arc<str> {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            {
                let ready = self.ready.lock().unwrap();
                let n = self.turn.fetch_add(1, Relaxed);
                if let Some(base) = ready.get(n % ready.len().max(1)) {
                    return base.clone();
                }
            }
            assert!(tokio::time::Instant::now() < until, "no gateway is ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client")
}

/// Sends until told to stop, each request once. Returns the ids, and what went wrong.
async fn send(balancer: Balancer, key: String, stop: Arc<AtomicBool>) -> (Vec<i64>, Vec<String>) {
    let client = client();
    let (mut promised, mut failed) = (Vec::new(), Vec::new());
    let body = json!({ "type": "t", "payload": "rolling" });
    while !stop.load(Relaxed) {
        let base = balancer.pick().await;
        let request = client.post(format!("{base}/send-event")).header("x-api-key", &key).json(&body);
        match request.send().await {
            Ok(response) if response.status() == 201 => {
                let body: Value = response.json().await.expect("JSON");
                promised.push(body["event"]["id"].as_i64().expect("an id"));
            }
            Ok(response) => failed.push(format!("{base}: {}", response.status())),
            Err(error) => failed.push(format!("{base}: {error:?}")),
        }
    }
    (promised, failed)
}

/// Two gateways and two dispatchers, and load through them.
struct Fleet {
    database: String,
    /// For gateways; none is for versions without that setting.
    delay: Option<&'static str>,
    balancer: Balancer,
    gateways: Vec<(Process, String)>,
    dispatchers: Vec<Process>,
    receiver: Receiver,
    stop: Arc<AtomicBool>,
    senders: Vec<tokio::task::JoinHandle<(Vec<i64>, Vec<String>)>>,
}

/// The same command, of another build.
fn of(program: &Path, command: &Command) -> Process {
    let mut other = Command::new(program);
    other.args(command.get_args()).env_clear().current_dir(std::env::temp_dir());
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Process::spawn(other)
}

impl Fleet {
    /// Starts `program` on a database that it has migrated itself.
    async fn start(hint: &str, program: &Path, delay: Option<&'static str>) -> Fleet {
        let database = eventpulse_testkit::database(hint).await;
        let mut migrate = process::command("migrate");
        let mut migrated = of(program, migrate.env("DATABASE_URL", &database));
        assert!(migrated.exit().await.success(), "{}", migrated.output());
        let mut fleet = Fleet {
            database,
            delay,
            balancer: Balancer::default(),
            gateways: Vec::new(),
            dispatchers: Vec::new(),
            receiver: Receiver::start().await,
            stop: Arc::default(),
            senders: Vec::new(),
        };
        tokio::spawn(fleet.balancer.clone().probe());
        for _ in 0..2 {
            fleet.add_gateway(program).await;
            fleet.add_dispatcher(program).await;
        }
        // Some fail at first, so that the schedule has work in flight, too.
        fleet.receiver.script(|request| {
            let first = request.headers["x-eventpulse-attempt"] == "1";
            if first && request.n % 16 == 5 { Reply::status(503) } else { Reply::ok() }
        });
        let body = json!({ "name": "fleet", "url": fleet.receiver.url("/") });
        let url = format!("{}/register-webhook", fleet.gateways[0].1);
        let response = client().post(url).json(&body).send().await.expect("an answer");
        assert_eq!(response.status(), 201);
        let body: Value = response.json().await.expect("JSON");
        let key = body["apiKey"].as_str().expect("a key").to_owned();
        let sender = |_| tokio::spawn(send(fleet.balancer.clone(), key.clone(), fleet.stop.clone()));
        fleet.senders = (0..8).map(sender).collect();
        fleet.goes_on("load").await;
        fleet
    }

    async fn add_gateway(&mut self, program: &Path) {
        let mut serve = process::serve(&self.database, "--role api --migrate");
        serve.envs(self.delay.map(|delay| ("EVENTPULSE_SHUTDOWN__DELAY", delay)));
        let process = of(program, &serve);
        let base = process.ready().await;
        self.balancer.add(&base);
        self.gateways.push((process, base));
    }

    async fn add_dispatcher(&mut self, program: &Path) {
        let mut serve = process::serve(&self.database, "--role dispatcher");
        // Failures are made on purpose, and a breaker would only slow the test down.
        serve.env("EVENTPULSE_LANE__BREAKER_FAILURES", "0");
        let process = of(program, &serve);
        process.ready().await;
        self.dispatchers.push(process);
    }

    async fn goes_on(&self, what: &str) {
        let before = self.receiver.count();
        eventually(what, PATIENCE, async || {
            let more = self.receiver.count() - before;
            if more > 100 { Ok(()) } else { Err(format!("{more} more deliveries")) }
        })
        .await;
    }

    /// Ends the oldest gateway. With a delay the balancer has to find out by itself, and without one it is told.
    async fn end_gateway(&mut self) {
        let (process, base) = self.gateways.remove(0);
        if self.delay.is_some() {
            process.signal(Signal::TERM);
            self.balancer.has_left(&base).await;
            // However slow this machine is: a second signal ends the delay, which is longer than any test.
        }
        self.balancer.remove(&base).await;
        ends(process).await;
        self.goes_on("load after a gateway's end").await;
    }

    async fn end_dispatcher(&mut self) {
        ends(self.dispatchers.remove(0)).await;
        self.goes_on("load after a dispatcher's end").await;
    }

    /// Ends the load, and holds what was answered against what arrived. Returns events and repeats.
    async fn account(self) -> (usize, usize) {
        self.stop.store(true, Relaxed);
        let (mut promised, mut failed) = (HashSet::new(), Vec::new());
        for sender in self.senders {
            let (ids, problems) = sender.await.expect("no sender panics");
            promised.extend(ids);
            failed.extend(problems);
        }
        assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), promised.len());
        let db = postgres(&self.database).await;
        let succeeded = "SELECT count(DISTINCT event_id) FROM delivery_attempts WHERE status = 'success'";
        eventually("everything promised is delivered", PATIENCE, async || {
            let missing = promised.len() as i64 - count(&db, succeeded).await;
            if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} missing", promised.len())) }
        })
        .await;
        let got: HashSet<i64> = ids(&self.receiver).into_iter().collect();
        assert_eq!(promised.difference(&got).count(), 0, "the receiver says the same");
        assert_eq!(count(&db, "SELECT count(*) FROM events").await, promised.len() as i64);
        // Each request is an attempt of its own, but for those whose attempt was made before.
        let attempts = count(&db, "SELECT count(*) FROM delivery_attempts").await;
        let repeats = self.receiver.count() - usize::try_from(attempts).expect("a count");
        (promised.len(), repeats)
    }
}

async fn ends(mut process: Process) {
    process.signal(Signal::TERM);
    let status = process.exit().await;
    assert!(status.success(), "{status}: {}", process.output());
}

fn this() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_eventpulse"))
}

#[tokio::test]
async fn a_rolling_restart_fails_no_request_and_loses_and_repeats_nothing() {
    let mut fleet = Fleet::start("rolling", this(), Some("5m")).await;
    for _ in 0..2 {
        fleet.add_gateway(this()).await;
        fleet.end_gateway().await;
        fleet.add_dispatcher(this()).await;
        fleet.end_dispatcher().await;
    }
    assert_eq!(fleet.account().await.1, 0, "repeats");
}

/// Both versions work on the same tables and the same stream for a while, in either order.
#[tokio::test]
async fn an_upgrade_under_load_loses_nothing() {
    let from = std::env::var_os("EVENTPULSE_UPGRADE_FROM").map_or_else(|| this().to_owned(), PathBuf::from);
    let mut fleet = Fleet::start("upgrade", &from, None).await;
    // New events for old dispatchers, then old events for new ones.
    fleet.add_gateway(this()).await;
    fleet.end_gateway().await;
    fleet.add_dispatcher(this()).await;
    fleet.goes_on("load with one of each").await;
    fleet.end_dispatcher().await;
    fleet.add_dispatcher(this()).await;
    fleet.end_dispatcher().await;
    fleet.add_gateway(this()).await;
    fleet.end_gateway().await;
    let (events, repeats) = fleet.account().await;
    println!("{events} events over an upgrade: none lost, {repeats} requests repeated");
    assert_eq!(repeats, 0);
}
