//! What a run comes to: which fault explains which repeat, a table, and a line of JSON.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::json;

use crate::{check::Findings, fault::Fault, load::Ledger, site::Site};

/// What a fault caused may go on for so long after its cause is gone: until a lease ends and a process counts as dead.
const TAIL_MS: u64 = 20_000;

/// When a fault was injected, and when its cause was gone, in milliseconds since the start.
pub(crate) struct Window {
    pub(crate) fault: Fault,
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
}

pub(crate) struct Report<'a> {
    pub(crate) seed: u64,
    pub(crate) windows: &'a [Window],
    pub(crate) findings: &'a mut Findings,
    pub(crate) ledger: &'a Ledger,
    pub(crate) site: &'a Site,
    pub(crate) settled: Option<Duration>,
    pub(crate) missing: f64,
}

impl Report<'_> {
    /// Prints it, and returns what must not be.
    pub(crate) fn close(self) -> Vec<String> {
        let mut repeats: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, first, again) in std::mem::take(&mut self.findings.repeats) {
            match explain(self.windows, first, again) {
                Some(fault) => *repeats.entry(fault.name()).or_default() += 1,
                None => {
                    let text =
                        format!("{key:?} was made at {first} ms and at {again} ms, and no fault explains it");
                    self.findings.wrong.push(text);
                }
            }
        }
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for window in self.windows {
            *times.entry(window.fault.name()).or_default() += 1;
        }
        println!("\n{:<22} {:>6} {:>8}", "fault", "times", "repeats");
        for (name, times) in &times {
            println!("{name:<22} {times:>6} {:>8}", repeats.get(name).copied().unwrap_or(0));
        }
        let mib = |bytes: u64| bytes / (1 << 20);
        let line = json!({
            "seed": self.seed,
            "seconds": self.site.world().log.now_ms() / 1000,
            "accepted": self.ledger.accepted().len(),
            "events": self.findings.events,
            "deliveries": self.findings.deliveries,
            "filtered": self.findings.filtered,
            "dead": self.findings.dead,
            "requests_received": self.site.world().log.requests(),
            "producers": {
                "requests": self.ledger.requests.load(Relaxed),
                "refused": self.ledger.refused.load(Relaxed),
                "unknown": self.ledger.unknown.load(Relaxed),
                "left_out": self.ledger.left_out.load(Relaxed),
                "given_up": self.ledger.given_up.load(Relaxed),
            },
            "faults": self.windows.len(),
            "late_answers": self.findings.late,
            "repeats": repeats.values().sum::<usize>(),
            "repeats_by_fault": repeats,
            "settled_after_seconds": self.settled.map(|time| time.as_secs()),
            "sweep_missing": self.missing,
            "process_mib_max": mib(self.site.node_memory),
            "redis_mib_max": mib(self.site.redis_memory),
            "wrong": self.findings.wrong.len(),
        });
        println!("{line}");
        std::mem::take(&mut self.findings.wrong)
    }
}

/// The fault that explains a repeat: one that may repeat and was at work at some time between two answers to the delivery. Of
/// several it is the one nearest to the first answer, whose record is what was lost.
fn explain(windows: &[Window], first_ms: u64, again_ms: u64) -> Option<Fault> {
    let at_work = |window: &&Window| window.from_ms <= again_ms && first_ms <= window.to_ms + TAIL_MS;
    let away =
        |window: &&Window| window.from_ms.saturating_sub(first_ms) + first_ms.saturating_sub(window.to_ms);
    let may = windows.iter().filter(|w| w.fault.may_repeat(Duration::from_millis(w.to_ms - w.from_ms)));
    may.filter(at_work).min_by_key(away).map(|window| window.fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_explained_by_what_was_at_work_between() {
        let windows = [
            Window { fault: Fault::ClockAhead, from_ms: 0, to_ms: 90_000 },
            Window { fault: Fault::DispatcherKilled, from_ms: 20_000, to_ms: 21_000 },
            Window { fault: Fault::DiesReplied, from_ms: 24_000, to_ms: 25_000 },
        ];
        assert_eq!(explain(&windows, 19_000, 25_000), Some(Fault::DispatcherKilled));
        assert_eq!(explain(&windows, 30_000, 31_000), Some(Fault::DiesReplied));
        assert_eq!(explain(&windows, 18_000, 19_000), None);
        assert_eq!(explain(&windows, 46_000, 47_000), None);
    }
}
