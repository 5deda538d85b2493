//! Threads, shares, instances that are used again, and what one module could see of another.

use std::{sync::Arc, time::Duration};

use eventpulse::{
    model::WebhookId,
    transform::{Input, Kind, Outcome},
};
use eventpulse_testkit::{eventually, guests};

use super::{Hosted, PAYLOAD, input, kind, of_webhook, payload};
use crate::harness::{
    PATIENCE,
    process::{Process, command},
};

/// Threads of a process whose name begins so: the nice value of each, and the clock ticks of processor time of all.
#[cfg(target_os = "linux")]
fn threads(process: &Process, name: &str) -> (Vec<i64>, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    // After the name in brackets, from its state on: proc(5), fields 3, 14, 15 and 19.
    let of = |stat: String| {
        let (head, rest) = stat.split_once(") ")?;
        let numbers: Vec<i64> =
            rest.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        let named = head.split_once('(')?.1.starts_with(name);
        named.then(|| (numbers[15], (numbers[10] + numbers[11]).unsigned_abs()))
    };
    let found: Vec<(i64, u64)> = stats.filter_map(of).collect();
    (found.iter().map(|(nice, _)| *nice).collect(), found.iter().map(|(_, ticks)| ticks).sum())
}

/// Runs a module over and over, and returns the ticks of patient and of quick threads once one of them had many.
#[cfg(target_os = "linux")]
async fn ticks_of(name: &str, wasm: Vec<u8>) -> (u64, u64) {
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("threads-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let (module, event) = (folder.join("module.wasm"), folder.join("event.json"));
    std::fs::write(&module, wasm).unwrap();
    std::fs::write(&event, r#"{"type":"order.created","payload":{"amount":1}}"#).unwrap();
    let line = format!("transform bench {} --event {} --calls 1000000000", module.display(), event.display());
    let process = Process::spawn(command(&line));
    let ticks = eventually("one kind of threads has worked", PATIENCE * 2, async || {
        let (patient, quick) = (threads(&process, "wasm-patient"), threads(&process, "wasm-quick"));
        if patient.1.max(quick.1) < 50 {
            return Err(format!("{patient:?} {quick:?} {}", process.output()));
        }
        assert!(patient.0.iter().all(|nice| *nice >= 10), "they stand back: {patient:?}");
        assert!(quick.0.iter().all(|nice| *nice < 10), "they do not: {quick:?}");
        Ok((patient.1, quick.1))
    })
    .await;
    drop(process);
    let _ = std::fs::remove_dir_all(&folder);
    ticks
}

/// What takes microseconds must not wait behind everybody's connections, and what takes long must.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_quick_modules_run_on_threads_that_do_not_stand_back() {
    let (patient, quick) = ticks_of("quick", guests::echo()).await;
    assert!(patient < 10, "patient {patient}, quick {quick}");
    let (patient, quick) = ticks_of("slow", guests::spin(4_000_000)).await;
    assert!(quick < 10, "patient {patient}, quick {quick}");
}

/// Modules of two webhooks in turn, in the same few places of memory: nobody finds anything of another or of itself.
#[tokio::test]
async fn no_call_sees_what_another_left() {
    let hosted = Hosted::new("isolation");
    // One page is reset by writing zeros, sixteen are more than is kept resident.
    for pages in [1, 16] {
        let one = hosted.compile(guests::padded(guests::remember(pages), 8, 1)).await;
        let two = hosted.compile(guests::padded(guests::remember(pages), 8, 2)).await;
        for id in 0..2_000 {
            let (module, webhook, text) = if id % 2 == 0 { (&one, 1, "\"a\"") } else { (&two, 2, "\"b\"") };
            let called = hosted.host.call(module, of_webhook(WebhookId(webhook), id, text)).await;
            assert_eq!(payload(&called), "true", "call {id} of {pages} pages");
        }
    }
}

/// So small that the limit of a large module can be a kilobyte in the settings.
fn large(wasm: Vec<u8>) -> Vec<u8> {
    guests::padded(wasm, 64 << 10, 0)
}

fn hosted_large(name: &str) -> Hosted {
    Hosted::with(name, |settings| {
        settings.large_from_bytes = 32 << 10;
        settings.reuse_max = 7;
    })
}

#[tokio::test]
async fn instances_of_large_modules_are_used_again_within_bounds() {
    let hosted = hosted_large("reuse");
    let module = hosted.compile(large(guests::count())).await;
    let of = |webhook: i64, version: i32, text: &str| {
        let input = Input { version, ..of_webhook(WebhookId(webhook), 1, text) };
        hosted.host.call(&module, input)
    };
    let mut counts = Vec::new();
    for _ in 0..50 {
        let called = of(1, 1, PAYLOAD).await;
        counts.push(payload(&called).trim_matches('"').parse::<u32>().unwrap());
    }
    assert!(counts.iter().any(|count| *count > 1), "{counts:?}");
    assert!(counts.iter().all(|count| *count <= 7), "{counts:?}");
    // Another version and another webhook begin anew, although the module is the same.
    assert_eq!(payload(&of(1, 2, PAYLOAD).await), "\"001\"");
    assert_eq!(payload(&of(2, 1, PAYLOAD).await), "\"001\"");
    assert_eq!(kind(&of(1, 1, "!").await), Kind::Trap);
    assert!(of(1, 1, PAYLOAD).await.result.is_ok());
}

#[tokio::test]
async fn instances_of_small_modules_are_never_used_again() {
    let hosted = Hosted::new("fresh");
    let module = hosted.compile(guests::count()).await;
    for _ in 0..20 {
        assert_eq!(payload(&hosted.call(&module, PAYLOAD).await), "\"001\"");
    }
}

#[tokio::test]
async fn large_modules_have_limits_too() {
    let hosted = hosted_large("large-hostile");
    let echo = hosted.compile(large(guests::echo())).await;
    for (wasm, expected) in [
        (guests::endless_loop(), Kind::Deadline),
        (guests::memory_bomb(), Kind::Memory),
        (guests::recursion(), Kind::Trap),
        (guests::huge_output(), Kind::TooLarge),
    ] {
        let module = hosted.compile(large(wasm)).await;
        for _ in 0..3 {
            let called = hosted.call(&module, PAYLOAD).await;
            assert_eq!(kind(&called), expected);
            assert_eq!(hosted.call(&echo, PAYLOAD).await.result, Ok(Outcome::Unchanged));
        }
        if expected == Kind::Memory {
            let called = hosted.call(&module, PAYLOAD).await;
            assert!(called.memory > 200 << 20, "{}", called.memory);
        }
    }
}

/// While one webhook's calls take all the time they may, another's are served.
#[tokio::test]
async fn one_webhook_has_at_most_half_of_the_threads() {
    let hosted = Arc::new(Hosted::with("half", |settings| {
        settings.threads = 4;
        settings.deadline = Duration::from_secs(2);
    }));
    let endless = hosted.compile(guests::endless_loop()).await;
    let echo = hosted.compile(guests::echo()).await;
    let greedy: Vec<_> = (0..8)
        .map(|id| {
            let (hosted, endless) = (hosted.clone(), endless.clone());
            tokio::spawn(
                async move { hosted.host.call(&endless, of_webhook(WebhookId(1), id, PAYLOAD)).await },
            )
        })
        .collect();
    // Two run, and six wait.
    eventually("the others wait", PATIENCE, async || {
        let waiting = hosted.count("eventpulse_transform_waiting");
        if waiting == 6.0 { Ok(()) } else { Err(format!("{waiting} wait")) }
    })
    .await;
    for id in 0..20 {
        let called = hosted.host.call(&echo, of_webhook(WebhookId(2), id, PAYLOAD)).await;
        assert_eq!(called.result, Ok(Outcome::Unchanged));
    }
    assert!(greedy.iter().all(|call| !call.is_finished()));
    greedy.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("nobody waits", PATIENCE, async || {
        let waiting = hosted.count("eventpulse_transform_waiting");
        if waiting == 0.0 { Ok(()) } else { Err(format!("{waiting} wait")) }
    })
    .await;
}

#[tokio::test]
async fn who_finds_the_queue_full_waits() {
    let hosted = Arc::new(Hosted::with("queue", |settings| {
        settings.threads = 2;
        settings.queue_max = 1;
    }));
    let module = hosted.compile(guests::spin(2_000_000)).await;
    let calls: Vec<_> = (0..40)
        .map(|webhook| {
            let (hosted, module) = (hosted.clone(), module.clone());
            tokio::spawn(async move {
                hosted.host.call(&module, of_webhook(WebhookId(webhook), 1, PAYLOAD)).await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().result, Ok(Outcome::Unchanged));
    }
    assert!(hosted.count("eventpulse_transform_queue_full_total") > 0.0);
    assert_eq!(hosted.count("eventpulse_transform_waiting"), 0.0);
    assert_eq!(hosted.count("eventpulse_transform_calls_total{outcome=\"unchanged\"}"), 40.0);
}

#[tokio::test]
async fn the_rate_follows_from_what_calls_take() {
    let hosted = Hosted::with("rate", |settings| settings.threads = 2);
    assert_eq!(hosted.host.rate(WebhookId(3)), None);
    let module = hosted.compile(guests::spin(5_000_000)).await;
    let called = hosted.host.call(&module, input(1, PAYLOAD)).await;
    let rate = hosted.host.rate(WebhookId(3)).expect("it made a call");
    // A quarter of two threads.
    let expected = 0.5 / called.cpu.as_secs_f64();
    assert!((rate / expected - 1.0).abs() < 1e-6, "{rate} and not {expected}");
    assert_eq!(hosted.host.rate(WebhookId(4)), None);
}

/// What other processes take of the machine does not count against a module.
#[tokio::test]
async fn only_its_own_time_counts() {
    let hosted = Arc::new(Hosted::with("busy", |settings| {
        settings.threads = 16;
        settings.deadline = Duration::from_millis(400);
    }));
    // More calls at once than cores, each with a good part of its time: by the clock they would be late.
    let module = hosted.compile(guests::spin(80_000_000)).await;
    let alone = hosted.call(&module, PAYLOAD).await;
    assert_eq!(alone.result, Ok(Outcome::Unchanged));
    let calls: Vec<_> = (0..16)
        .map(|webhook| {
            let (hosted, module) = (hosted.clone(), module.clone());
            tokio::spawn(async move {
                hosted.host.call(&module, of_webhook(WebhookId(webhook), 1, PAYLOAD)).await
            })
        })
        .collect();
    for call in calls {
        let called = call.await.unwrap();
        assert_eq!(called.result, Ok(Outcome::Unchanged), "after {:?}", called.cpu);
    }
}
