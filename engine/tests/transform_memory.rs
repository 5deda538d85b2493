//! Calls of modules leave no memory behind: the resident size of this process after many calls is what it was after few.
//!
//! `CALLS=1000000` makes more of them, which takes seconds in a release build.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use eventpulse::{
    config,
    metrics::Metrics,
    model::{AccountId, Event, EventId, Timestamp, WebhookId},
    transform::{Host, Input},
};
use eventpulse_testkit::guests;

/// Enough that a leak of 50 bytes a call shows.
const CALLS: u64 = 50_000;

/// Metrics' buckets, the allocator's own pages, and what the test harness does.
const SLACK_BYTES: u64 = 2 << 20;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is in there");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib << 10
}

#[test]
fn many_calls_take_no_more_memory_than_few() {
    let calls = std::env::var("CALLS").map_or(CALLS, |n| n.parse().expect("a number"));
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("transform-memory-{}", std::process::id()));
    let settings = config::Transform {
        compiler: Some(env!("CARGO_BIN_EXE_eventpulse").into()),
        cache_folder: folder.to_str().expect("a name in UTF-8").to_owned(),
        threads: 2,
        ..config::Transform::default()
    };
    let metrics = Arc::new(Metrics::new());
    let host = Host::new(&settings, metrics.clone()).expect("there is a host");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let modules = [guests::digits(), guests::drop_odd(), guests::log_then_trap(), guests::remember(1)]
        .map(|wasm| runtime.block_on(host.compile(Bytes::from(wasm))).expect("it compiles"));
    let some = |from: u64, to: u64| {
        for n in from..to {
            let event = Event {
                id: EventId(n.cast_signed()),
                account: AccountId(1),
                kind: "order.created".into(),
                payload: Bytes::from(format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(800))),
                created_at: Timestamp(0),
                trace: None,
            };
            let module = &modules[usize::try_from(n % 4).expect("small")];
            // Each has a webhook of its own each time, as many as there can be of them.
            let input = Input {
                event: Arc::new(event),
                webhook: WebhookId((n % 20_000).cast_signed()),
                version: 1,
                config: Arc::default(),
            };
            let _ = runtime.block_on(host.call(module, input));
            if n % 1000 == 0 {
                metrics.upkeep();
            }
        }
        resident()
    };
    // By then every webhook that is remembered is there, and every slot was used.
    let before = some(0, calls / 5);
    let after = some(calls / 5, calls);
    println!("resident after {} calls: {before}, after {calls}: {after}", calls / 5);
    let _ = std::fs::remove_dir_all(folder);
    assert!(after < before + SLACK_BYTES, "{before} bytes became {after}");
}
