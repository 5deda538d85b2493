//! The whole way: from `POST /send-event` to the receiver, through an engine in this process with its own Postgres
//! and Redis. Load and receiver share the machine with it, so this compares one tree with another and is no figure
//! for a machine; `loadtest/` is.

use std::{
    cell::{OnceCell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use eventpulse::{
    config::{Config, Roles, value::Secret},
    engine::Engine,
};
use eventpulse_bench::{
    client::Connection,
    fixtures::{LARGE, SMALL, body},
    servers,
};
use eventpulse_testkit::{Receiver, Reply, stack};
use tokio::{runtime::Runtime, sync::watch, time::timeout};

/// Longest wait for one round. Only a fault uses it up.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine with one account, whose webhook points to the receiver.
struct App {
    runtime: Runtime,
    engine: Engine,
    receiver: Receiver,
    /// How many requests the receiver has seen since it was last cleared.
    seen: watch::Sender<usize>,
    connections: Vec<Connection>,
    key: String,
}

impl App {
    fn start() -> App {
        let runtime = servers::runtime();
        let (engine, receiver, seen) = runtime.block_on(async {
            let database = servers::migrated("pipeline").await;
            let mut config = Config {
                database_url: Secret::new(&database),
                redis_url: Secret::new(stack().redis_url()),
                ..Config::default()
            };
            config.http.port = 0;
            config.http.dispatcher_port = 0;
            config.targets.allow_private = true;
            let engine = Engine::start(config, Roles::Both).await.expect("the engine starts");
            let receiver = Receiver::start().await;
            receiver.keep_bodies(false);
            let seen = watch::Sender::new(0);
            let tell = seen.clone();
            receiver.script(move |request| {
                tell.send_replace(request.n + 1);
                Reply::ok()
            });
            (engine, receiver, seen)
        });
        let key = runtime.block_on(register(&engine, &receiver));
        App { runtime, engine, receiver, seen, connections: Vec::new(), key }
    }

    /// The time from the first request until the receiver has `events` more, over `connections` connections, in
    /// each of which one request is open at a time.
    fn round(&mut self, connections: usize, events: usize, bytes: usize) -> Duration {
        let App { runtime, engine, receiver, seen, connections: pool, key } = self;
        let address = engine.gateway.expect("the gateway listens");
        let request: Arc<Bytes> = Arc::new(Connection::request("/send-event", Some(key), &body(bytes)));
        receiver.clear();
        seen.send_replace(0);
        runtime.block_on(async {
            while pool.len() < connections {
                pool.push(Connection::open(address).await);
            }
            let senders = pool.drain(..).take(connections).enumerate();
            let senders: Vec<_> =
                senders.map(|(i, c)| (c, request.clone(), share(events, connections, i))).collect();
            let start = Instant::now();
            let tasks: Vec<_> = senders.into_iter().map(|(c, r, n)| tokio::spawn(send(c, r, n))).collect();
            for task in tasks {
                pool.push(timeout(PATIENCE, task).await.expect("answers in time").expect("a sender"));
            }
            let all = timeout(PATIENCE, seen.subscribe().wait_for(|seen| *seen >= events))
                .await
                .map(|r| r.map(drop));
            all.expect("all delivered in time").expect("the receiver runs");
            start.elapsed()
        })
    }

    fn stop(self) {
        drop(self.connections);
        self.runtime.block_on(self.engine.shutdown()).expect("a clean stop");
    }
}

/// How many of `events` the `i`th of `connections` sends.
fn share(events: usize, connections: usize, i: usize) -> usize {
    events / connections + usize::from(i < events % connections)
}

async fn send(mut connection: Connection, request: Arc<Bytes>, n: usize) -> Connection {
    for _ in 0..n {
        let (status, _) = connection.call(&request).await;
        assert_eq!(status, 201);
    }
    connection
}

/// Makes an account; gives its key.
async fn register(engine: &Engine, receiver: &Receiver) -> String {
    let form = serde_json::json!({ "name": "bench", "url": receiver.url("/") }).to_string();
    let mut connection = Connection::open(engine.gateway.expect("the gateway listens")).await;
    let (status, answer) =
        connection.call(&Connection::request("/register-webhook", None, form.as_bytes())).await;
    assert_eq!(status, 201);
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    answer["apiKey"].as_str().expect("a key").to_owned()
}

fn post_to_receiver(criterion: &mut Criterion) {
    // Made with the first bench that runs: a filter that leaves all of them out starts no server.
    let app = OnceCell::new();
    let mut group = criterion.benchmark_group("post_to_receiver");
    // A round is long, and rounds are alike: ten say enough.
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for (connections, events, bytes) in [(1, 1, SMALL), (64, 2048, SMALL), (64, 2048, LARGE)] {
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(BenchmarkId::new(format!("{bytes}B"), format!("c{connections}")), |bencher| {
            let mut app = app.get_or_init(|| RefCell::new(App::start())).borrow_mut();
            bencher.iter_custom(|n| (0..n).map(|_| app.round(connections, events, bytes)).sum());
        });
    }
    group.finish();
    if let Some(app) = app.into_inner() {
        app.into_inner().stop();
    }
}

criterion_group!(benches, post_to_receiver);
criterion_main!(benches);
