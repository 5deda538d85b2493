//! Whose key a request comes with, answered from memory: what each request pays before its body is read.

use std::{cell::LazyCell, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eventpulse::{
    ingest::keys::{Form, Keys},
    metrics::Metrics,
    store::{
        manage::Change,
        webhooks::{New, NewKey},
    },
};
use eventpulse_bench::{
    fixtures::{KEY, KEY_SECRET, SECRET},
    servers,
};
use sha2::{Digest as _, Sha256};
use tokio::{runtime::Runtime, sync::watch, time::timeout};

/// The keys in memory, with ours among them. The task that reads them from Postgres has no part in a hit.
struct Known {
    keys: Keys,
    runtime: Runtime,
    _stop: watch::Sender<bool>,
}

impl Known {
    fn new() -> Known {
        let runtime = servers::runtime();
        let (keys, stop) = runtime.block_on(async {
            let store = servers::store("keys").await;
            let hash: [u8; 32] = Sha256::digest(KEY).into();
            let webhook = New {
                name: "bench",
                url: "http://127.0.0.1:9/",
                secret: SECRET,
                event_types: None,
                settings: &Change::default(),
            };
            let key = NewKey { hash: &hash, prefix: &KEY[..14] };
            store.register(&webhook, &key).await.expect("registered");
            let (keys, lookup) = Keys::new(Form::new(KEY_SECRET), store, 1000, Arc::new(Metrics::new()));
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(lookup.run(stopped));
            // The first poll empties the cache, so look until the answer has come twice with a poll between them.
            for _ in 0..2 {
                let owner = timeout(Duration::from_secs(30), keys.owner(KEY.as_bytes())).await;
                owner.expect("an answer in time").expect("a key that is known");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            (keys, stop)
        });
        Known { keys, runtime, _stop: stop }
    }
}

fn key_lookup(criterion: &mut Criterion) {
    // Made with the first bench that runs: a filter that leaves this one out starts no server.
    let known = LazyCell::new(Known::new);
    let mut group = criterion.benchmark_group("key_lookup");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hit", |bencher| {
        let Known { keys, runtime, .. } = &*known;
        bencher.iter_custom(|n| {
            runtime.block_on(async {
                let start = std::time::Instant::now();
                for _ in 0..n {
                    std::hint::black_box(keys.owner(KEY.as_bytes()).await).expect("a key that is known");
                }
                start.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, key_lookup);
criterion_main!(benches);
