//! What Prometheus knows of every process, by the names that its own libraries use: read when somebody asks, on Linux alone.

use std::fmt::Write as _;

/// Appends the process's metrics in the Prometheus text format. What cannot be read is left out.
#[cfg(target_os = "linux")]
pub(super) fn render(out: &mut String) {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    line(out, "process_cpu_seconds_total", "counter", "CPU time of the process.", cpu);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let help = "Resident memory of the process.";
        optional(out, "process_resident_memory_bytes", help, kilobytes(&status, "VmRSS:"));
        let help = "Virtual memory of the process.";
        optional(out, "process_virtual_memory_bytes", help, kilobytes(&status, "VmSize:"));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder that is being read.
        let open = open.count().saturating_sub(1);
        line(out, "process_open_fds", "gauge", "Open file descriptors of the process.", open as f64);
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    optional(out, "process_max_fds", "Bound on open file descriptors.", most.map(|most| most as f64));
    let help = "When the process started, in seconds since the Unix epoch.";
    optional(out, "process_start_time_seconds", help, started());
}

/// Elsewhere there is nothing to read.
#[cfg(not(target_os = "linux"))]
pub(super) fn render(_: &mut String) {}

#[cfg(target_os = "linux")]
fn line(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    // Writing to a String cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
}

#[cfg(target_os = "linux")]
fn optional(out: &mut String, name: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        line(out, name, "gauge", help, value);
    }
}

/// Reads `VmRSS:     12345 kB` as bytes.
#[cfg(target_os = "linux")]
fn kilobytes(status: &str, name: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes as f64 * 1024.0)
}

/// The machine's start and, in ticks, the time from there to the process's.
#[cfg(target_os = "linux")]
fn started() -> Option<f64> {
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    Some(booted + start_ticks(&own)? / rustix::param::clock_ticks_per_second() as f64)
}

/// Field 22 of `/proc/self/stat`. Field 2, the program's name in brackets, may hold blanks and brackets itself.
#[cfg(target_os = "linux")]
fn start_ticks(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn value(text: &str, name: &str) -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().expect("a number")
    }

    #[test]
    fn this_process_has_plausible_facts() {
        let mut text = String::new();
        render(&mut text);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let started = value(&text, "process_start_time_seconds");
        assert!(started <= now.as_secs_f64() + 1.0, "{started}");
        assert!(started > now.as_secs_f64() - 86_400.0, "{started}");
        assert!(value(&text, "process_resident_memory_bytes") > 1_000_000.0);
        assert!(
            value(&text, "process_virtual_memory_bytes") >= value(&text, "process_resident_memory_bytes")
        );
        assert!(value(&text, "process_open_fds") >= 3.0);
        assert!(value(&text, "process_cpu_seconds_total") >= 0.0);
    }

    #[test]
    fn a_programs_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 8812345 1000 200 18446744073709551615";
        assert_eq!(start_ticks(stat), Some(8_812_345.0));
        assert_eq!(start_ticks("nothing"), None);
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12_288.0));
    }
}
