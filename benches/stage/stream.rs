//! The producer: from a committed batch to its mark, by pipelined XADDs to a Redis of our own.

use std::{
    cell::{LazyCell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eventpulse::{
    metrics::Metrics,
    model::{EventId, Span},
    stream::{Connection, Handle, Keys, Producer, Redis},
};
use eventpulse_bench::servers;
use tokio::{runtime::Runtime, sync::watch};

/// Longest wait for one round.
const PATIENCE: Duration = Duration::from_secs(30);

/// The engine's producer, on this thread as in the gateway.
struct Stream {
    runtime: Runtime,
    handle: Handle,
    connection: Connection,
    keys: Keys,
    /// The first id of the next batch.
    next: i64,
    _stop: watch::Sender<bool>,
    _server: eventpulse_testkit::Redis,
}

impl Stream {
    fn new() -> Stream {
        let runtime = servers::runtime();
        let keys = Keys::new("bench", 0);
        let (handle, producer) = Producer::new(keys.clone(), 65_536, Arc::new(Metrics::new()));
        let (stop, stopped) = watch::channel(false);
        let (server, connection) = runtime.block_on(async {
            let server = eventpulse_testkit::private_redis().await;
            let redis = Redis::new(&server.url(), "", Duration::from_secs(2)).expect("a URL");
            tokio::spawn(producer.run(redis.commands().expect("a client"), stopped, Duration::ZERO));
            (server, redis.commands().expect("a client"))
        });
        Stream { runtime, handle, connection, keys, next: 1, _stop: stop, _server: server }
    }

    /// The time of `rounds` rounds of `batches` batches, and an empty stream after it.
    fn send(&mut self, rounds: u64, batches: usize) -> Duration {
        let Stream { runtime, handle, connection, keys, next, .. } = self;
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..rounds {
                let round = tokio::time::timeout(PATIENCE, send_round(handle, next, batches));
                round.await.expect("the stream takes them");
            }
            let took = start.elapsed();
            redis::cmd("DEL").arg(&keys.events).query_async::<()>(connection).await.expect("deleted");
            took
        })
    }
}

/// Sends batches and waits until each is in the stream.
async fn send_round(handle: &Handle, next: &mut i64, batches: usize) {
    for _ in 0..batches {
        assert!(handle.send(Span { first: EventId(*next), n: 128, version: 42 }, false), "there is room");
        *next += 128;
    }
    let mut marked = 0;
    while marked < batches {
        let marks = handle.take_marks(batches);
        handle.marked(&marks);
        marked += marks.len();
        // The producer runs on this thread, and so does its socket.
        tokio::task::yield_now().await;
    }
}

fn stream(criterion: &mut Criterion) {
    // Made with the first bench that runs: a filter that leaves all of them out starts no server.
    let stream = LazyCell::new(|| RefCell::new(Stream::new()));
    let mut group = criterion.benchmark_group("xadd");
    for batches in [1, 16, 128, 256] {
        group.throughput(Throughput::Elements(batches as u64));
        group.bench_function(BenchmarkId::from_parameter(batches), |bencher| {
            bencher.iter_custom(|rounds| stream.borrow_mut().send(rounds, batches));
        });
    }
    group.finish();
}

criterion_group!(benches, stream);
criterion_main!(benches);
