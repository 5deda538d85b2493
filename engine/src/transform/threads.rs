//! The threads that run modules, and the bounded queue in front of them. Modules never run on a thread that serves connections.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Called, Failure, Input, Kind, Module, Outcome,
    abi::Instance,
    engines::{Class, Engines, THREAD_STACK_BYTES},
    instances::{IDLE, Instances},
    returns::{Ready, Reply},
    share::Share,
    state::thread_cpu,
    ticker::Ticker,
};
use crate::{config, metrics::Metrics};

/// How far threads that run modules stand back: about a tenth of the time that another thread gets, where both want it. ADR 0009
/// has the figures.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Calls that take longer send their outcome at once: the next one may take as long again.
const QUICK: Duration = Duration::from_micros(200);

pub(super) struct Job {
    pub(super) module: Arc<Module>,
    pub(super) input: Input,
    pub(super) share: Arc<Share>,
    pub(super) reply: Reply,
    /// A place in the queue, until a thread takes the job out of it.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) waiting: Waiting,
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

/// Dropping it lets the threads end when the queue is empty.
pub(super) struct Threads {
    jobs: Arc<Sender<Job>>,
    pub(super) places: Arc<Semaphore>,
    serving: Arc<Serving>,
}

/// What every thread has.
struct Serving {
    settings: config::Transform,
    metrics: Arc<Metrics>,
    ticker: Ticker,
    /// Weak, or the threads would keep themselves.
    jobs: Weak<Sender<Job>>,
    places: Arc<Semaphore>,
}

impl Serving {
    /// Puts a call behind those of others. Gives it back where there is no place: then it runs at once.
    fn queue_behind(&self, mut job: Job) -> Option<Job> {
        let (Some(jobs), Ok(place)) = (self.jobs.upgrade(), self.places.clone().try_acquire_owned()) else {
            return Some(job);
        };
        job.place = Some(place);
        jobs.try_send(job).err().map(TrySendError::into_inner)
    }
}

/// One for every core by default; below two a single webhook could have all, above sixteen they only take each other's time.
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
        let (jobs, queue) = bounded(settings.queue_max);
        let (jobs, places) = (Arc::new(jobs), Arc::new(Semaphore::new(settings.queue_max)));
        let serving = Arc::new(Serving {
            settings: settings.clone(),
            metrics,
            ticker: Ticker::start(engines.all())?,
            jobs: Arc::downgrade(&jobs),
            places: places.clone(),
        });
        for number in 0..count(settings) {
            let thread = thread::Builder::new()
                .name(format!("transform-{number}"))
                .stack_size(THREAD_STACK_BYTES)
                .spawn({
                    let (serving, queue) = (serving.clone(), queue.clone());
                    move || {
                        yield_to_others();
                        serve(&serving, &queue)
                    }
                });
            match thread {
                Ok(_) => {}
                // Fewer are slower and still correct.
                Err(error) if number > 0 => {
                    tracing::warn!(%error, threads = number, "fewer threads for transforms than wanted");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Threads { jobs, places, serving })
    }

    /// On the thread that asks, with an instance of its own whatever the module's class.
    pub(super) fn call_here(&self, module: &Module, input: &Input) -> Called {
        timed(&self.serving, &mut Instances::new(0), module, input, thread_cpu())
    }

    /// Never waits: there are as many permits as places.
    pub(super) fn send(&self, job: Job) {
        // The reply is dropped with the job should the threads be gone, and who waits for it learns of it so.
        let _ = self.jobs.try_send(job);
    }
}

/// Modules may take what is left of the processor: where it is short, others' connections and deliveries go before them.
fn yield_to_others() {
    // A thread has its own on Linux; elsewhere the whole process would be slower.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICE);
}

fn serve(serving: &Serving, queue: &Receiver<Job>) {
    let mut instances = Instances::new(serving.settings.reuse_max);
    loop {
        let job = if instances.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(IDLE)
        };
        match job {
            Ok(job) => run(serving, queue, &mut instances, job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        instances.drop_idle();
    }
}

/// Runs a call, and then those of its webhook that waited for it to end, as long as nobody else's wait.
fn run(serving: &Serving, queue: &Receiver<Job>, instances: &mut Instances<Instance>, first: Job) {
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
        if !queue.is_empty() {
            job = job.and_then(|next| serving.queue_behind(next));
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
