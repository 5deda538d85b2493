//! What a call of a webhook's module costs: a fresh instance each, by itself and through the host's threads.
//!
//! The modules are written by hand as WebAssembly text, so that what is timed is the host: one that answers `unchanged`, one that
//! drops every other event, one that changes each digit of the payload.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use eventpulse::{
    config,
    metrics::Metrics,
    model::WebhookId,
    transform::{Host, Input, Module, Returns, compile_in_this_process},
};
use eventpulse_bench::{fixtures, servers};
use eventpulse_testkit::guests;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

/// Bytes of the request whose payload is given to the modules; the payload is 820 of them.
const BODY: usize = 855;

/// Calls in hand at a time when they go through the queue: enough that no thread waits for the next.
const IN_HAND: u64 = 32;

struct Cache(PathBuf);

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn host(cache: &Cache) -> Host {
    let settings = config::Transform {
        cache_folder: cache.0.to_str().expect("a name in UTF-8").to_owned(),
        threads: 2,
        ..config::Transform::default()
    };
    Host::new(&settings, Arc::new(Metrics::new())).expect("there is a host")
}

fn input(webhook: u64) -> Input {
    Input {
        event: Arc::new(fixtures::event(48_151_622, BODY)),
        webhook: WebhookId(webhook.cast_signed()),
        version: 1,
        config: Arc::default(),
    }
}

fn transform(criterion: &mut Criterion) {
    let cache = Cache(std::env::temp_dir().join(format!("eventpulse-bench-{}", std::process::id())));
    let host = Arc::new(host(&cache));
    let runtime = servers::runtime();
    let modules = [("echo", guests::echo()), ("filter", guests::drop_odd()), ("change", guests::digits())]
        .map(|(name, wasm)| (name, runtime.block_on(host.compile(Bytes::from(wasm))).expect("it compiles")));

    let mut group = criterion.benchmark_group("transform_call");
    group.throughput(Throughput::Elements(1));
    for (name, module) in &modules {
        for threads in [1, 2] {
            group.bench_function(format!("{name}/{threads}"), |bencher| {
                bencher.iter_custom(|calls| on_threads(&host, module, threads, calls));
            });
        }
        for webhooks in [1, 2] {
            group.bench_function(format!("{name}/queue/{webhooks}"), |bencher| {
                bencher.iter_custom(|calls| runtime.block_on(queued(&host, module, webhooks, calls)));
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("transform_module");
    group.sample_size(10);
    let mut seed = 0;
    group.bench_function("compile", |bencher| {
        bencher.iter(|| {
            // Another one each time, or it would be found in the cache.
            seed += 1;
            let wasm = guests::padded(guests::digits(), 0, seed);
            runtime.block_on(host.compile(Bytes::from(wasm))).expect("it compiles")
        });
    });
    let hash = Sha256::digest(guests::digits()).into();
    group.bench_function("load", |bencher| {
        // A host without it in memory each time.
        bencher.iter_custom(|loads| {
            (0..loads)
                .map(|_| {
                    let host = self::host(&cache);
                    let begin = Instant::now();
                    runtime.block_on(host.load(&hash)).expect("it is on disk");
                    begin.elapsed()
                })
                .sum()
        });
    });
    group.finish();
}

/// Without the host's threads and queue.
fn on_threads(host: &Host, module: &Module, threads: u64, calls: u64) -> Duration {
    let begin = Instant::now();
    thread::scope(|scope| {
        for webhook in 0..threads {
            let calls = calls / threads + u64::from(webhook < calls % threads);
            scope.spawn(move || {
                let input = input(webhook);
                for _ in 0..calls {
                    host.call_here(module, &input).result.expect("it answers");
                }
            });
        }
    });
    begin.elapsed()
}

/// As deliveries come: many at a time, from one webhook, which has half of the two threads, or from two.
async fn queued(host: &Arc<Host>, module: &Arc<Module>, webhooks: u64, calls: u64) -> Duration {
    let begin = Instant::now();
    let mut in_hand = JoinSet::new();
    let returns = Returns::start();
    for number in 0..IN_HAND {
        let (host, module, returns) = (host.clone(), module.clone(), returns.clone());
        in_hand.spawn(async move {
            for _ in 0..calls / IN_HAND + u64::from(number < calls % IN_HAND) {
                let called = host.call_by(&module, input(number % webhooks), &returns).await;
                called.result.expect("it answers");
            }
        });
    }
    while let Some(ended) = in_hand.join_next().await {
        ended.expect("no panic");
    }
    begin.elapsed()
}

criterion_group!(benches, transform);

/// The host starts this very program to compile a module.
fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-transform") {
        return compile_in_this_process();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    ExitCode::SUCCESS
}
