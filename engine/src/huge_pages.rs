//! Huge pages for the memory that is worked in, small ones for what only lies there.
//!
//! The allocator asks for transparent huge pages, and where the system has them an event costs some 4 % less time (ADR 0007). In
//! return everything between two blocks is resident: ten thousand idle connections, whose buffers are mostly empty, would take half
//! as much again. So a process takes huge pages up to a bound, and small ones as long as it is past it. What it has stays as it is.

#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Bytes of memory of its own up to which a process takes huge pages: with more, no difference in time was to be seen. Below three quarters of it, it
/// takes them again.
#[cfg(target_os = "linux")]
const MOST: u64 = 16 << 20;

/// Whether we switched them off. What somebody else did is left alone.
#[cfg(target_os = "linux")]
static OFF: AtomicBool = AtomicBool::new(false);

/// Looks at the process's memory, and changes what it takes from now on if it has passed the bound. Reads one short file. Where there
/// are no huge pages, or the system keeps them to itself, nothing comes of it.
pub fn adjust() {
    #[cfg(target_os = "linux")]
    if let Some(own) = own_bytes() {
        let past = if OFF.load(Relaxed) { own > MOST / 4 * 3 } else { own > MOST };
        switch(past);
    }
}

/// Takes back what [`adjust`] did: a program that is executed in this process's place would inherit it.
pub fn reset() {
    #[cfg(target_os = "linux")]
    switch(false);
}

/// Two threads that do it at once do the same.
#[cfg(target_os = "linux")]
fn switch(off: bool) {
    if off != OFF.load(Relaxed) && rustix::thread::disable_transparent_huge_pages(off).is_ok() {
        OFF.store(off, Relaxed);
    }
}

/// Resident memory that is not a file's.
#[cfg(target_os = "linux")]
fn own_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
    let (resident, files) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(files) * rustix::param::page_size() as u64)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_what_it_has() {
        let before = own_bytes().expect("statm is read");
        let memory = std::hint::black_box(vec![1u8; 32 << 20]);
        let after = own_bytes().expect("statm is read");
        assert!(after >= before + (16 << 20), "{before} {after} {}", memory.len());
    }
}
