//! What the process costs, by the names that Prometheus's own libraries use. Read when it is asked for: nothing counts it.

use std::fmt::Write as _;

use rustix::time::{ClockId, clock_gettime};

/// Appends it in the text format. Memory is known on Linux only.
pub(super) fn append(text: &mut String) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "\n# HELP process_cpu_seconds_total User and system CPU time of this process.\n\
         # TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {seconds}\n"
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(bytes) = resident(&status) {
        let _ = write!(
            text,
            "\n# HELP process_resident_memory_bytes Memory of this process that is in RAM.\n\
             # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}\n"
        );
    }
}

/// Of proc(5)'s `status`: `VmRSS:     1234 kB`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_told_where_the_system_has_them() {
        let mut text = String::new();
        append(&mut text);
        assert!(text.contains("\nprocess_cpu_seconds_total "), "{text}");
        assert_eq!(text.contains("\nprocess_resident_memory_bytes "), cfg!(target_os = "linux"));
        assert_eq!(resident("Name:\ta\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1_263_616));
        assert_eq!(resident("VmRSS:\tmuch\n"), None);
    }
}
