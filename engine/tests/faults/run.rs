//! One run: load, faults with pauses between, rest, and the ledger.

use std::time::{Duration, Instant};

use crate::{
    check,
    fault::Fault,
    inject::inject,
    load::Load,
    options::{Options, Until},
    report::{Report, Window},
    rng::Rng,
    site::Site,
};

/// Load alone before the first fault, and after the last.
const LEAD: Duration = Duration::from_secs(2);

/// Memory of one process beyond which something grows. A debug build with a transform has about 150 MiB.
const MEMORY_MAX: u64 = 1 << 30;

/// # Panics
/// When a promise was not kept.
pub(crate) fn run(options: &Options) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(play(options));
}

async fn play(options: &Options) {
    let mut site = Site::start(options.seed).await;
    let world = site.world();
    let load = Load::start(options.rate, site.gateways.clone(), world.accounts.clone());
    site.ledger = Some(load.ledger.clone());
    println!("seed {}, logs in {}", options.seed, site.place.logs.display());

    site.rest(LEAD).await;
    let windows = faults(&mut site, options).await;
    site.rest(LEAD).await;
    let ledger = load.stop();
    let settled = check::settled(&mut site).await;
    let mut findings = check::look(&site, &ledger).await;
    let settled = settled.map_err(|left| findings.wrong.push(left)).ok();
    let missing = site.metric("eventpulse_sweep_missing_total").await;
    if windows.is_empty() && missing > 0.0 {
        findings.wrong.push(format!("the sweep found {missing} missing without a fault"));
    }
    if site.node_memory > MEMORY_MAX {
        findings.wrong.push(format!("a process had {} bytes of memory", site.node_memory));
    }
    let report = Report {
        seed: options.seed,
        windows: &windows,
        findings: &mut findings,
        ledger: &ledger,
        site: &site,
        settled,
        missing,
    };
    let wrong = report.close();
    let dir = site.place.logs.display();
    assert!(wrong.is_empty(), "seed {}, logs in {dir}:\n{}", options.seed, wrong.join("\n"));
}

/// Injects one fault after the other. Returns when each was at work.
async fn faults(site: &mut Site, options: &Options) -> Vec<Window> {
    let mut rng = Rng::new(options.seed);
    let begun = Instant::now();
    let mut windows: Vec<Window> = Vec::new();
    let mut hand: Vec<Fault> = Vec::new();
    loop {
        let over = match options.until {
            Until::Count(count) => windows.len() >= count,
            Until::Time(time) => begun.elapsed() >= time,
        };
        if over {
            return windows;
        }
        // All of them, in one order after the other, so that each comes as often as any.
        if hand.is_empty() {
            hand.clone_from(&options.faults);
            rng.shuffle(&mut hand);
        }
        let pause = Duration::from_millis(rng.between(2000, 4000));
        let Some(fault) = hand.pop() else {
            site.rest(pause).await;
            continue;
        };
        let from_ms = site.world().log.now_ms();
        inject(fault, site, &mut rng).await;
        let to_ms = site.world().log.now_ms();
        println!(
            "{:>7.1} s  {} for {:.1} s",
            from_ms as f64 / 1e3,
            fault.name(),
            (to_ms - from_ms) as f64 / 1e3
        );
        windows.push(Window { fault, from_ms, to_ms });
        site.rest(pause).await;
        // A gateway that began anew has another port.
        site.tell_producers(None);
    }
}
