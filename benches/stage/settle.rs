//! The recorder's statement: outcomes of deliveries, on a Postgres of our own with `fsync` on.

use std::{
    cell::{LazyCell, RefCell},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use eventpulse::{
    model::{AccountId, EventId, Try, WebhookId},
    store::{
        Link,
        events::BLOCK,
        settle::{Attempt, Later, Origin, Record, Status},
    },
};
use eventpulse_bench::servers;
use tokio::runtime::Runtime;

/// Longest wait for one statement.
const PATIENCE: Duration = Duration::from_secs(30);

/// The recorder's connection, and the id of the next event that is settled.
struct Recorder {
    runtime: Runtime,
    link: Link,
    next: i64,
}

impl Recorder {
    fn new() -> Recorder {
        let runtime = servers::runtime();
        let link = runtime.block_on(async {
            let store = servers::store("settle").await;
            let mut link = Link::new(store.address().clone(), PATIENCE);
            link.settle(&[]).await.expect("a connection");
            link
        });
        Recorder { runtime, link, next: BLOCK }
    }

    /// The time of `rounds` statements. Only the events differ between them.
    fn settle(&mut self, rounds: u64, records: &mut [Record]) -> Duration {
        let Recorder { runtime, link, next, .. } = self;
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..rounds {
                for record in &mut *records {
                    record.event = EventId(*next);
                    *next += 1;
                }
                let repeats = link.settle(records).await.expect("settled");
                assert_eq!(repeats, [], "each event is new");
            }
            start.elapsed()
        })
    }
}

fn delivered() -> Record {
    Record {
        event: EventId(0),
        webhook: WebhookId(1),
        account: AccountId(1),
        tried: Try::FIRST,
        was_scheduled: false,
        origin: Origin::Entry,
        attempt: Some(Attempt {
            status: Status::Success,
            code: Some(200),
            body: Some("ok".to_owned()),
            error: None,
            reason_code: "delivered",
            duration_ms: 3,
            transform: None,
        }),
        later: None,
        dead: None,
    }
}

/// A first attempt that failed: its row, and one in the schedule.
fn to_be_tried_again() -> Record {
    let mut record = delivered();
    if let Some(attempt) = &mut record.attempt {
        (attempt.status, attempt.code, attempt.reason_code) = (Status::Failed, Some(503), "http_status");
        attempt.error = Some("the endpoint refused (HTTP 503)".to_owned());
    }
    let (delay_ms, expires_ms) = (5000, 100_000_000);
    record.later =
        Some(Later { next_attempt: 2, delay_ms, expires_ms, reason: "retry", pin: None, existing: false });
    record
}

fn settle(criterion: &mut Criterion) {
    // Made with the first bench that runs: a filter that leaves all of them out starts no server.
    let recorder = LazyCell::new(|| RefCell::new(Recorder::new()));
    let mut group = criterion.benchmark_group("settle");
    for (name, record, outcomes) in [
        ("delivered", delivered(), 1),
        ("delivered", delivered(), 16),
        ("delivered", delivered(), 128),
        ("retry", to_be_tried_again(), 128),
    ] {
        group.throughput(Throughput::Elements(outcomes as u64));
        group.bench_function(BenchmarkId::new(name, outcomes), |bencher| {
            let mut records = vec![record.clone(); outcomes];
            bencher.iter_custom(|rounds| recorder.borrow_mut().settle(rounds, &mut records));
        });
    }
    group.finish();
}

criterion_group!(benches, settle);
criterion_main!(benches);
