//! What belongs to one call while it runs: its limits, what it took of them, and its log.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, StoreContextMut, UpdateDeadline};

use super::{Line, engines::Class};
use crate::config;

/// A call may take this many times its CPU time when the machine is busy. It bounds how long a thread is away.
const WALL_FACTOR: u32 = 20;

/// Bytes that a line takes of a log's limit beside its own: without them a log of empty lines would have no end.
const LINE_OVERHEAD: usize = 16;

pub(super) struct State {
    class: Class,
    memory_max: usize,
    pub(super) memory: usize,
    /// Memory was asked for that is beyond the limit.
    pub(super) memory_refused: bool,
    cpu_end: Duration,
    wall_end: Instant,
    pub(super) log: Log,
}

impl State {
    pub(super) fn new(class: Class, settings: &config::Transform) -> State {
        State {
            class,
            memory_max: class.memory_bytes_max(settings),
            memory: 0,
            memory_refused: false,
            cpu_end: Duration::ZERO,
            wall_end: Instant::now(),
            log: Log::new(settings),
        }
    }

    pub(super) fn memory_max(&self) -> usize {
        self.memory_max
    }

    /// Begins a call that began at `cpu` of this thread's CPU time.
    pub(super) fn begin(&mut self, cpu: Duration, settings: &config::Transform) {
        self.cpu_end = cpu + settings.deadline;
        self.wall_end = Instant::now() + settings.deadline * WALL_FACTOR;
        self.memory_refused = false;
        self.log = Log::new(settings);
    }

    /// Asked at each tick. CPU time counts and not the clock, so that a module is not stopped for what other threads or
    /// processes took.
    pub(super) fn at_tick(state: StoreContextMut<'_, State>) -> wasmtime::Result<UpdateDeadline> {
        let state = state.data();
        if thread_cpu() >= state.cpu_end || Instant::now() >= state.wall_end {
            return Ok(UpdateDeadline::Interrupt);
        }
        Ok(UpdateDeadline::Continue(1))
    }
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let memory = self.memory.saturating_add(desired.saturating_sub(current));
        if memory > self.memory_max {
            // The module may do without. If it cannot, the trap that follows is for this.
            self.memory_refused = true;
            return Ok(false);
        }
        self.memory = memory;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_refused = true;
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.class.bounds().table_elements)
    }

    fn instances(&self) -> usize {
        self.class.bounds().core_instances as usize
    }

    fn tables(&self) -> usize {
        self.class.bounds().tables as usize
    }

    fn memories(&self) -> usize {
        self.class.bounds().memories as usize
    }
}

/// The last lines of a call's log within its limits. The last ones and not the first: they say why it failed.
pub(super) struct Log {
    lines: VecDeque<Line>,
    bytes: usize,
    line_max: usize,
    bytes_max: usize,
    pub(super) cut: bool,
}

impl Log {
    fn new(settings: &config::Transform) -> Log {
        Log {
            lines: VecDeque::new(),
            bytes: 0,
            line_max: settings.log_line_bytes_max,
            bytes_max: settings.log_bytes_max,
            cut: false,
        }
    }

    pub(super) fn push(&mut self, level: &'static str, text: &str) {
        let kept = cut(text, self.line_max);
        self.cut |= kept.len() < text.len();
        let text = without_nul(kept);
        self.bytes += text.len() + LINE_OVERHEAD;
        self.lines.push_back(Line { level, text });
        while self.bytes > self.bytes_max {
            let Some(gone) = self.lines.pop_front() else { break };
            self.bytes -= gone.text.len() + LINE_OVERHEAD;
            self.cut = true;
        }
    }

    pub(super) fn take(&mut self) -> Vec<Line> {
        self.bytes = 0;
        std::mem::take(&mut self.lines).into()
    }
}

/// The longest part of a text from its beginning that is not longer than `bytes_max`.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Postgres takes no NUL in a text.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// CPU time that this thread has had.
pub(super) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
