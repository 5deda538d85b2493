//! Processor time by process, from /proc. On a busy machine it is steadier than any rate.

use std::{fs, ops::Sub};

/// The kernel counts in hundredths of a second, whatever its own tick (`USER_HZ`).
const TICK_US: u64 = 10_000;

/// Processor time, user and system, in microseconds, of all that takes part.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub engine: u64,
    pub postgres: u64,
    pub redis: u64,
    /// This process, the generator in it.
    pub own: u64,
    /// The whole machine.
    pub machine: u64,
}

/// Whose time is sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pids {
    pub engine: u32,
    pub postgres: u32,
    pub redis: u32,
}

impl Sample {
    pub fn take(pids: Pids) -> Sample {
        Sample {
            engine: tree(pids.engine),
            postgres: tree(pids.postgres),
            redis: tree(pids.redis),
            own: of(std::process::id()),
            machine: machine(),
        }
    }

    /// What nobody of us used.
    pub fn foreign(self) -> u64 {
        self.machine.saturating_sub(self.engine + self.postgres + self.redis + self.own)
    }
}

impl Sub for Sample {
    type Output = Sample;

    fn sub(self, before: Sample) -> Sample {
        Sample {
            engine: self.engine.saturating_sub(before.engine),
            postgres: self.postgres.saturating_sub(before.postgres),
            redis: self.redis.saturating_sub(before.redis),
            own: self.own.saturating_sub(before.own),
            machine: self.machine.saturating_sub(before.machine),
        }
    }
}

fn tree(pid: u32) -> u64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    of(pid) + children.split_whitespace().filter_map(|child| child.parse().ok()).map(tree).sum::<u64>()
}

/// Of one process alone.
pub fn of(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| ticks(&stat)).unwrap_or(0) * TICK_US
}

/// Fields 14 and 15. The second field is the program's name, which may hold anything, so it is looked for from the end.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// User, nice, system, irq, softirq and steal of the first line.
fn machine() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum::<u64>() * TICK_US
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a ) b (c) S 1 42 42 0 -1 4194560 100 200 0 0 7 5 1 1 20 0 9 0 100 1 1";
        assert_eq!(ticks(stat), Some(12));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn this_process_is_found() {
        assert!(machine() > 0);
        assert!(resident_kib(std::process::id()) > 0);
        assert_eq!(tree(u32::MAX), 0);
    }
}
