//! The group commit: one statement with its events, the batch row and the mark of the batch before, on a Postgres
//! of our own with `fsync` on.

use std::{
    cell::{LazyCell, RefCell},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eventpulse::store::{
    Link, Text,
    events::{BLOCK, Insert},
};
use eventpulse_bench::{
    fixtures::{LARGE, SMALL, event},
    servers,
};
use tokio::runtime::Runtime;

/// Longest wait for one statement.
const PATIENCE: Duration = Duration::from_secs(30);

/// The batcher's connection, and what it would know.
struct Batcher {
    runtime: Runtime,
    link: Link,
    /// The first id of the next batch.
    next: i64,
    owner: i64,
}

impl Batcher {
    fn new() -> Batcher {
        let runtime = servers::runtime();
        let (link, owner) = runtime.block_on(async {
            let store = servers::store("commit").await;
            let owner = store.join("api").await.expect("an instance");
            let mut link = Link::new(store.address().clone(), PATIENCE);
            link.warm_commit().await.expect("a connection");
            (link, owner)
        });
        Batcher { runtime, link, next: BLOCK, owner }
    }

    /// The time of `rounds` commits. Only the ids differ between them.
    fn commit(&mut self, rounds: u64, insert: &mut Insert) -> Duration {
        let Batcher { runtime, link, next, owner, .. } = self;
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..rounds {
                insert.first = *next;
                link.commit(insert, *owner, false).await.expect("committed");
                *next += i64::from(insert.len());
            }
            start.elapsed()
        })
    }
}

fn insert(events: usize, bytes: usize) -> Insert {
    let event = event(1, bytes);
    Insert {
        first: 0,
        accounts: vec![event.account.0; events],
        kinds: vec![event.kind; events],
        payloads: (0..events).map(|_| Text(event.payload.clone())).collect(),
        traces: Vec::new(),
    }
}

fn group_commit(criterion: &mut Criterion) {
    // Made with the first bench that runs: a filter that leaves all of them out starts no server.
    let batcher = LazyCell::new(|| RefCell::new(Batcher::new()));
    let mut group = criterion.benchmark_group("group_commit");
    for (bytes, events) in [(SMALL, 1), (SMALL, 16), (SMALL, 128), (SMALL, 512), (LARGE, 128)] {
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(BenchmarkId::new(format!("{bytes}B"), events), |bencher| {
            let mut insert = insert(events, bytes);
            bencher.iter_custom(|rounds| batcher.borrow_mut().commit(rounds, &mut insert));
        });
    }
    group.finish();
}

criterion_group!(benches, group_commit);
criterion_main!(benches);
