//! Looks at and signals processes by id.
//!
//! Linux is read from `/proc`, as small images often lack `ps`; elsewhere `ps` answers.
//! An id may have gone to somebody else since it was written down, so nothing is signalled
//! here before [`belongs`] has said that it is the server meant.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Says whether process `pid` runs. A zombie, which only waits to be reaped, counts as gone.
pub fn alive(pid: u32) -> bool {
    matches!(state(pid), Some(state) if state != 'Z' && state != 'X')
}

/// Sends `signal`; a process that is gone already is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    // Zero and "negative" ids would address whole groups.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until `pid` is gone, at most `within`. Says whether it is.
pub(crate) fn wait_gone(pid: u32, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while alive(pid) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Stops a process with `gentle`, and after half a minute with `firm`. Says whether it is gone.
pub(crate) fn stop(pid: u32, gentle: Signal, firm: Signal) -> bool {
    signal(pid, gentle);
    signal(pid, Signal::CONT);
    if wait_gone(pid, Duration::from_secs(30)) {
        return true;
    }
    signal(pid, firm);
    wait_gone(pid, Duration::from_secs(10))
}

/// Reads the process id in the first line of a pid file.
pub(crate) fn from_pid_file(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Says whether `pid` is alive and is one of the `programs` working in `dir` (given without symlinks).
pub(crate) fn belongs(pid: u32, programs: &[&str], dir: &Path) -> bool {
    if !alive(pid) {
        return false;
    }
    let Some(command) = command_line(pid) else {
        return false;
    };
    let program = command.split([' ', '\0']).next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    let named = programs.iter().any(|p| name.starts_with(p));
    named && (works_in(pid, dir) || command.contains(&*dir.to_string_lossy()))
}

#[cfg(target_os = "linux")]
fn stat(pid: u32) -> Option<(char, u32)> {
    // The name in brackets may hold anything, so the fields are counted from the last bracket.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(target_os = "linux")]
fn state(pid: u32) -> Option<char> {
    stat(pid).map(|(state, _)| state)
}

#[cfg(target_os = "linux")]
fn command_line(pid: u32) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(target_os = "linux")]
fn works_in(pid: u32, dir: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
}

#[cfg(target_os = "linux")]
fn all() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Lists the direct children of `parent`.
#[cfg(target_os = "linux")]
pub(crate) fn children(parent: u32) -> Vec<u32> {
    all().filter(|&pid| stat(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// Lists the processes of `programs` that work in `dir`, whoever started them.
#[cfg(target_os = "linux")]
pub(crate) fn working_in(dir: &Path, programs: &[&str]) -> Vec<u32> {
    all().filter(|&pid| works_in(pid, dir) && belongs(pid, programs, dir)).collect()
}

#[cfg(not(target_os = "linux"))]
fn ps(args: &[&str]) -> Option<String> {
    let output = std::process::Command::new("ps").args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(not(target_os = "linux"))]
fn state(pid: u32) -> Option<char> {
    ps(&["-o", "stat=", "-p", &pid.to_string()])?.chars().next()
}

#[cfg(not(target_os = "linux"))]
fn command_line(pid: u32) -> Option<String> {
    ps(&["-ww", "-o", "command=", "-p", &pid.to_string()])
}

#[cfg(not(target_os = "linux"))]
fn works_in(_pid: u32, _dir: &Path) -> bool {
    // Not told by `ps`; the command line of our servers carries the directory.
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let table = ps(&["-A", "-o", "pid=,ppid="]).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            let pid = columns.next()?.parse().ok()?;
            (columns.next()?.parse::<u32>().ok()? == parent).then_some(pid)
        })
        .collect()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn working_in(_dir: &Path, _programs: &[&str]) -> Vec<u32> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_zombie_counts_as_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id();
        assert!(alive(pid));
        assert!(children(std::process::id()).contains(&pid));
        child.kill().expect("kill");
        assert!(wait_gone(pid, Duration::from_secs(5)));
        child.wait().expect("reap");
    }

    #[test]
    fn a_process_belongs_by_name_and_directory() {
        let dir = Path::new("/").canonicalize().expect("root");
        let mut child = Command::new("sleep").arg("60").current_dir(&dir).spawn().expect("sleep");
        let pid = child.id();
        assert!(!belongs(pid, &["postgres"], &dir));
        assert!(!belongs(pid, &["sleep"], Path::new("/nowhere/at/all")));
        // A process that has only just been started has no command line yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        while cfg!(target_os = "linux") && !belongs(pid, &["sleep"], &dir) {
            assert!(Instant::now() < deadline, "not recognised");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("kill");
        child.wait().expect("reap");
        assert!(!belongs(pid, &["sleep"], &dir));
    }
}
