//! The threads that run modules, and the bounded queues in front of them. Modules never run on a thread that serves connections.
//!
//! There are two kinds. What is not known to be quick runs on patient threads, which stand back for everybody else. Quick calls are
//! part of a delivery like any other work for it: a thread that stood back would keep the whole lane waiting.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use crossbeam_channel::{RecvTimeoutError, TrySendError};
use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Called, Failure, Input, Kind, Module, Outcome,
    abi::Instance,
    engines::{Class, Engines, THREAD_STACK_BYTES},
    instances::{IDLE, Instances},
    queue::{Receiver, Sender, bounded},
    returns::{Ready, Reply},
    share::Share,
    state::thread_cpu,
    ticker::Ticker,
};
use crate::{config, metrics::Metrics};

/// How far patient threads stand back: about a tenth of the time that another thread gets, where both want it. ADR 0009 has the
/// figures.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Calls that take longer are for patient threads. They send their outcome at once: the next one may take as long again.
pub(super) const QUICK: Duration = Duration::from_micros(200);

pub(super) struct Job {
    pub(super) module: Arc<Module>,
    pub(super) input: Input,
    pub(super) share: Arc<Share>,
    pub(super) reply: Reply,
    /// A place in the queue, until a thread takes the job out of it.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) waiting: Waiting,
}

impl Job {
    /// Whether its webhook's calls are quick of late. Those of a language's runtime never count as quick.
    fn is_quick(&self) -> bool {
        self.module.class == Class::Small && self.share.is_quick()
    }
}

/// A call that is counted as waiting until this is dropped.
pub(super) struct Waiting(Gauge);

impl Waiting {
    pub(super) fn new(gauge: &Gauge) -> Waiting {
        gauge.increment(1.0);
        Waiting(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// The ends of the queues where jobs go in.
struct Queues {
    quick: Sender<Job>,
    patient: Sender<Job>,
}

impl Queues {
    /// Never waits: there are as many permits as places in either.
    fn send(&self, job: Job) -> Result<(), TrySendError<Job>> {
        if job.is_quick() { self.quick.try_send(job) } else { self.patient.try_send(job) }
    }
}

/// Dropping it lets the threads end when their queues are empty.
pub(super) struct Threads {
    queues: Arc<Queues>,
    pub(super) places: Arc<Semaphore>,
    serving: Arc<Serving>,
}

/// What every thread has.
struct Serving {
    settings: config::Transform,
    metrics: Arc<Metrics>,
    ticker: Ticker,
    /// Weak, or the threads would keep themselves.
    queues: Weak<Queues>,
    places: Arc<Semaphore>,
}

impl Serving {
    /// Puts a call behind those of others. Gives it back where there is no place: then it runs at once.
    fn queue_behind(&self, mut job: Job) -> Option<Job> {
        let (Some(queues), Ok(place)) = (self.queues.upgrade(), self.places.clone().try_acquire_owned())
        else {
            return Some(job);
        };
        job.place = Some(place);
        queues.send(job).err().map(TrySendError::into_inner)
    }
}

/// What one thread has.
struct Thread {
    serving: Arc<Serving>,
    queue: Receiver<Job>,
    quick: bool,
}

/// Of each kind. One for every core by default; below two a single webhook could have all, above sixteen they only take each
/// other's time.
pub(super) fn count(settings: &config::Transform) -> usize {
    let wanted = match settings.threads {
        0 => thread::available_parallelism().map_or(2, usize::from),
        wanted => wanted,
    };
    wanted.clamp(2, 16)
}

impl Threads {
    /// # Errors
    /// When not even one thread can be started.
    pub(super) fn start(
        settings: &config::Transform,
        metrics: Arc<Metrics>,
        engines: &Engines,
    ) -> io::Result<Threads> {
        let (quick, quick_queue) = bounded(settings.queue_max);
        let (patient, patient_queue) = bounded(settings.queue_max);
        let queues = Arc::new(Queues { quick, patient });
        let places = Arc::new(Semaphore::new(settings.queue_max));
        let serving = Arc::new(Serving {
            settings: settings.clone(),
            metrics,
            ticker: Ticker::start(engines.all())?,
            queues: Arc::downgrade(&queues),
            places: places.clone(),
        });
        for number in 0..count(settings) {
            for (quick, name, queue) in [(false, "patient", &patient_queue), (true, "quick", &quick_queue)] {
                let thread = Thread { serving: serving.clone(), queue: queue.clone(), quick };
                match thread.start(format!("{name}-{number}")) {
                    Ok(()) => {}
                    // Fewer are slower and still correct.
                    Err(error) if number > 0 => {
                        tracing::warn!(%error, threads = number, "fewer threads for transforms than wanted");
                        return Ok(Threads { queues, places, serving });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Threads { queues, places, serving })
    }

    /// On the thread that asks, with an instance of its own whatever the module's class.
    pub(super) fn call_here(&self, module: &Module, input: &Input) -> Called {
        timed(&self.serving, &mut Instances::new(0), module, input, thread_cpu())
    }

    /// Never waits: there are as many permits as places.
    pub(super) fn send(&self, job: Job) {
        // The reply is dropped with the job should the threads be gone, and who waits for it learns of it so.
        let _ = self.queues.send(job);
    }
}

/// Modules may take what is left of the processor: where it is short, others' connections and deliveries go before them.
fn yield_to_others() {
    // A thread has its own on Linux; elsewhere the whole process would be slower.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICE);
}

impl Thread {
    fn start(self, name: String) -> io::Result<()> {
        let thread = thread::Builder::new().name(format!("wasm-{name}")).stack_size(THREAD_STACK_BYTES);
        thread.spawn(move || {
            if !self.quick {
                yield_to_others();
            }
            self.serve();
        })?;
        Ok(())
    }

    fn serve(&self) {
        let mut instances = Instances::new(self.serving.settings.reuse_max);
        loop {
            let patience = (!instances.is_empty()).then_some(IDLE);
            match self.queue.recv(patience) {
                Ok(job) => self.run(&mut instances, job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            instances.drop_idle();
        }
    }

    /// Runs a call, and then those of its webhook that waited for it to end, as long as nobody else's wait and this is the thread
    /// for them.
    fn run(&self, instances: &mut Instances<Instance>, first: Job) {
        let serving = &self.serving;
        let mut job = Some(first);
        let mut ready = Ready::default();
        // Between two calls the clock is read once: it is a system call.
        let mut begin = thread_cpu();
        while let Some(Job { module, input, share, reply, place, waiting }) = job {
            drop((place, waiting));
            // Unless nobody waits for it any more.
            if !reply.is_closed() {
                let called = timed(serving, instances, &module, &input, begin);
                begin += called.cpu;
                share.took(called.cpu);
                let quick = called.cpu < QUICK;
                ready.push(reply, called);
                if !quick || ready.is_full() {
                    ready.send();
                }
            }
            job = share.next();
            let moves = job.as_ref().is_some_and(|next| next.is_quick() != self.quick);
            if moves || !self.queue.is_empty() {
                job = job.and_then(|next| serving.queue_behind(next));
            }
        }
    }
}

/// A call that began at `begin` of this thread's CPU time.
fn timed(
    serving: &Serving,
    instances: &mut Instances<Instance>,
    module: &Module,
    input: &Input,
    begin: Duration,
) -> Called {
    let mut called = guarded(|| call(serving, instances, module, input, begin));
    called.cpu = thread_cpu().saturating_sub(begin);
    count_call(&serving.metrics, &called);
    called
}

/// A panic here is a bug of the host, and the hook prints it. The instance is lost with it, and everything else is whole: calls
/// share nothing but counters. The thread and the reply must not be lost: who waits for it would for ever.
fn guarded(call: impl FnOnce() -> Called) -> Called {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| broken("the host failed while it ran the module".to_owned()))
}

fn call(
    serving: &Serving,
    instances: &mut Instances<Instance>,
    module: &Module,
    input: &Input,
    begin: Duration,
) -> Called {
    let settings = &serving.settings;
    let _running = serving.ticker.enter();
    let reused = module.class == Class::Large;
    let owner = (input.webhook, input.version, module.hash);
    let kept = if reused { instances.take(&owner) } else { None };
    let (mut instance, calls) =
        kept.unwrap_or_else(|| (Instance::new(&module.engine, module.class, settings), 0));
    instance.state().begin(begin, settings);
    let result = instance.call(&module.world, input, settings);
    let state = instance.state();
    let (log, memory) = (state.log.take(), state.memory);
    if state.log.cut {
        serving.metrics.transform.log_cut.increment(1);
    }
    if reused && result.is_ok() {
        instances.keep(owner, instance, calls + 1);
    }
    Called { result, log, cpu: Duration::ZERO, memory }
}

fn count_call(metrics: &Metrics, called: &Called) {
    let metrics = &metrics.transform;
    metrics.seconds.record(called.cpu.as_secs_f64());
    let counter = match &called.result {
        Ok(Outcome::Unchanged) => &metrics.unchanged,
        Ok(Outcome::Payload(_)) => &metrics.payload,
        Ok(Outcome::Body(_)) => &metrics.body,
        Ok(Outcome::Drop(_)) => &metrics.dropped,
        Err(failure) => match failure.kind {
            Kind::Trap => &metrics.trap,
            Kind::Deadline => &metrics.deadline,
            Kind::Memory => &metrics.memory,
            Kind::Error => &metrics.error,
            Kind::TooLarge => &metrics.too_large,
            Kind::BadOutput => &metrics.bad_output,
        },
    };
    counter.increment(1);
}

/// A call that the host could not make.
pub(super) fn broken(message: String) -> Called {
    Called {
        result: Err(Failure { kind: Kind::Trap, message }),
        log: Vec::new(),
        cpu: Duration::ZERO,
        memory: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failed_call() {
        let called = guarded(|| panic!("a bug"));
        assert_eq!(called.result.unwrap_err().kind, Kind::Trap);
    }
}
