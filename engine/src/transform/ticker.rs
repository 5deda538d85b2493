//! The tick by which running modules notice how long they have run. It sleeps when nothing runs, so that an idle process is
//! never woken.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use wasmtime::Engine;

/// The most by which a module runs past its deadline.
const TICK: Duration = Duration::from_millis(5);

/// Ticks without a running call after which the thread parks. Calls take microseconds, so it is woken for the first of many
/// and not for each.
const IDLE_TICKS: u32 = 20;

struct Shared {
    engines: [Engine; 2],
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// A running call; ticks are made until it is dropped.
pub(super) struct Running<'a>(&'a Ticker);

impl Ticker {
    pub(super) fn start(engines: [Engine; 2]) -> io::Result<Ticker> {
        let shared = Arc::new(Shared {
            engines,
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let thread = thread::Builder::new().name("transform-tick".to_owned()).spawn({
            let shared = shared.clone();
            move || tick(&shared)
        })?;
        Ok(Ticker { shared, thread })
    }

    pub(super) fn enter(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, SeqCst);
        // Either this sees that the thread parks, or the thread sees this call before it does.
        if self.shared.parked.load(SeqCst) {
            self.thread.thread().unpark();
        }
        Running(self)
    }

    #[cfg(test)]
    fn parked(&self) -> bool {
        self.shared.parked.load(SeqCst)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.thread.thread().unpark();
    }
}

fn tick(shared: &Shared) {
    let mut idle = 0;
    while !shared.stop.load(SeqCst) {
        thread::sleep(TICK);
        if shared.running.load(SeqCst) > 0 {
            idle = 0;
            shared.engines.iter().for_each(Engine::increment_epoch);
            continue;
        }
        idle += 1;
        if idle < IDLE_TICKS {
            continue;
        }
        shared.parked.store(true, SeqCst);
        while shared.running.load(SeqCst) == 0 && !shared.stop.load(SeqCst) {
            thread::park();
        }
        shared.parked.store(false, SeqCst);
        idle = 0;
    }
}
