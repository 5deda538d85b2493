//! From a stream entry to a settled delivery.
//!
//! [`intake`] turns entries into deliveries, [`work`] makes them, [`retries`] brings back what is due, and
//! [`watch`](mod@watch) keeps this consumer honest: beats, claims, lanes that wait too long. A crash at any point
//! leaves entries pending and members leased; others take both over and compare them with Postgres first.

mod budget;
mod deferred;
mod fence;
mod health;
mod intake;
mod latency;
mod leases;
mod opened;
mod parking;
mod poison;
mod registry;
mod retries;
mod shelf;
mod spans;
mod tally;
mod transforms;
mod watch;
mod work;

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch as signal,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

pub use self::registry::Registry;
use self::{
    budget::{Budget, Permit},
    deferred::Deferred,
    fence::Fence,
    intake::Intake,
    leases::{Lease, Leases},
    opened::Opened,
    transforms::Transforms,
};
use crate::{
    config::{self, Config},
    deliver::{Client, Target, outcome::Kept},
    ingest::Ring,
    lane::{self, Allowed, Lanes},
    metrics::Metrics,
    model::{Event, Key, Pin, Try, Webhook},
    retry::{feeder::Feeder, schedule::Policy},
    settle::{self, Open, Recorder},
    store::{Link, Store, settle::Origin},
    stream::{
        self, Gate, Keys, Redis,
        breaker::Breakers,
        consumer::{Claims, Reader},
        due::Due,
    },
    trace::Tracer,
    transform::Host,
};

/// How long the recorder's statement may take before its connection counts as dead.
const RECORD_PATIENCE: Duration = Duration::from_secs(30);

/// One delivery in hand.
struct Delivery {
    event: Arc<Event>,
    target: Arc<Target>,
    tried: Try,
    /// What it was sent with before.
    pin: Option<Pin>,
    /// From the schedule: a row there moves on with the outcome.
    was_scheduled: bool,
    origin: Origin,
    /// The stream entry it keeps open; none for deliveries from the schedule.
    entry: Option<Arc<Open>>,
    /// A lease of `due` ends then, and with it the right to send.
    lease: Option<Lease>,
    /// The fence's term when it was taken in hand.
    term: u64,
    /// None for one that is to be parked at once.
    permit: Option<Permit>,
    /// Of a probe: when its time on the shelf is up.
    probe_until: Option<tokio::time::Instant>,
}

impl Delivery {
    /// The first try of a delivery that keeps its entry open.
    fn first(event: Arc<Event>, target: Arc<Target>, entry: Arc<Open>, permit: Option<Permit>) -> Delivery {
        Delivery {
            event,
            target,
            tried: Try::FIRST,
            pin: None,
            was_scheduled: false,
            lease: None,
            term: entry.term,
            origin: entry.origin,
            entry: Some(entry),
            permit,
            probe_until: None,
        }
    }
}

/// What all tasks of a dispatcher share.
struct Context {
    store: Store,
    registry: Registry,
    breakers: Breakers,
    /// Dispatchers alive: each has its part of a webhook's limits.
    peers: AtomicUsize,
    lanes: Lanes<Delivery>,
    client: Client,
    tracer: Tracer,
    transforms: Transforms,
    recorder: settle::Handle<Permit>,
    policy: Policy,
    kept: Kept,
    fence: Fence,
    opened: Opened,
    deferred: Deferred,
    leases: Leases,
    /// Closed while Redis is not as it was left: nothing is taken from it.
    gate: Gate,
    /// Where events go that this dispatcher makes itself, and who owns them.
    stream: stream::Handle,
    instance: i64,
    /// Deliveries being made. A drain waits for these and for nothing else.
    workers: Mutex<JoinSet<()>>,
    first_budget: Budget,
    retry_budget: Budget,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
}

/// What is there before the context that holds it.
struct Made {
    store: Store,
    transforms: Arc<Host>,
    tracer: Tracer,
    breakers: Breakers,
    recorder: settle::Handle<Permit>,
    opened: Opened,
    gate: Gate,
    stream: stream::Handle,
    instance: i64,
    metrics: Arc<Metrics>,
}

/// Why a dispatcher did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Stream(#[from] stream::Error),
}

/// What a dispatcher is made of.
pub struct Parts {
    pub config: Arc<Config>,
    pub store: Store,
    pub redis: Redis,
    pub keys: Keys,
    pub gate: Gate,
    pub stream: stream::Handle,
    /// This process's instance id, which names the consumer together with the worker's number.
    pub instance: i64,
    /// Counted from 0.
    pub worker: usize,
    pub ring: Option<Arc<Ring>>,
    /// One for the whole process.
    pub transforms: Arc<Host>,
    pub tracer: Tracer,
    pub metrics: Arc<Metrics>,
}

/// A running dispatcher.
pub struct Dispatcher {
    context: Arc<Context>,
    claims: Claims,
    due: Due,
    beats: (signal::Sender<bool>, JoinHandle<()>),
    loops: Vec<JoinHandle<()>>,
    recorder: JoinHandle<()>,
    grace: Duration,
}

impl Dispatcher {
    /// Starts all loops in the current runtime.
    ///
    /// # Errors
    /// When the Redis URL or a setting of the client cannot be used. An absent Redis is waited for.
    pub fn start(parts: Parts, stop: signal::Receiver<bool>) -> Result<Dispatcher, Error> {
        let Parts {
            config,
            store,
            redis,
            keys,
            gate,
            stream,
            instance,
            worker,
            ring,
            transforms,
            tracer,
            metrics,
        } = parts;
        let opened = Opened::default();
        let closing = opened.clone();
        let (recorder, recorder_loop) = Recorder::new(settle::Parts {
            link: Link::new(store.address().clone(), RECORD_PATIENCE),
            redis: redis.commands()?,
            keys: keys.clone(),
            horizon: config.retry.horizon,
            due_max: config.retry.due_max,
            queue_max: config.dispatch.held_max,
            closed: Box::new(move |entry: &Open| closing.remove(&entry.id)),
            metrics: metrics.clone(),
        });
        let breakers = Breakers::new(redis.commands()?, keys.clone());
        let made = Made {
            store: store.clone(),
            transforms,
            tracer,
            breakers,
            recorder,
            opened,
            gate: gate.clone(),
            stream,
            instance,
            metrics: metrics.clone(),
        };
        let context = Arc::new(Context::new(&config, made)?);
        let consumer = format!("dispatcher-{instance}-{worker}");
        let claims = Claims::new(redis.commands()?, keys.clone(), consumer.clone());
        let due = Due::new(redis.commands()?, keys.clone(), config.retry.due_max);
        let intake = Intake::new(context.clone(), ring);
        let reader = Reader::new(redis.clone(), keys, consumer, gate.clone());
        let feeder = Feeder {
            store,
            due: due.clone(),
            gate,
            horizon: config.retry.horizon,
            spare_ms: context.spare_ms(),
            metrics,
        };
        let mut loops = vec![
            tokio::spawn(intake.clone().run(reader, claims.clone(), stop.clone())),
            tokio::spawn(watch::claims(intake, claims.clone(), stop.clone())),
            tokio::spawn(watch::lanes(context.clone(), stop.clone())),
            tokio::spawn(watch::registry(context.clone(), stop.clone())),
            tokio::spawn(deferred::run(context.clone(), stop.clone())),
            tokio::spawn(health::run(context.clone(), stop.clone())),
            tokio::spawn(tally::run(context.clone(), stop.clone())),
            tokio::spawn(shelf::run(context.clone(), due.clone(), stop.clone())),
            tokio::spawn(retries::run(context.clone(), due.clone(), stop.clone())),
            tokio::spawn(leases::run(context.clone(), due.clone(), stop.clone())),
        ];
        // One for the process; more would ask Postgres for the same.
        if worker == 0 {
            loops.push(tokio::spawn(feeder.run(stop)));
        }
        // Beats go on through the drain: what is in flight is still in hand.
        let beats_stop = signal::Sender::new(false);
        let beats = tokio::spawn(watch::beats(context.clone(), claims.clone(), beats_stop.subscribe()));
        Ok(Dispatcher {
            context,
            claims,
            due,
            beats: (beats_stop, beats),
            loops,
            recorder: tokio::spawn(recorder_loop.run()),
            grace: config.dispatch.grace,
        })
    }

    /// After the stop signal: lets go of what has not begun, waits for what is in flight, records it, and
    /// takes the beat back so that others take over at once.
    pub async fn drain(self) {
        let Dispatcher { context, mut claims, mut due, beats, loops, recorder, grace } = self;
        for mut task in loops {
            // Each ends within a query or so of the signal; one that does not has nothing left to finish.
            if tokio::time::timeout(grace, &mut task).await.is_err() {
                task.abort();
            }
        }
        // What has not begun is others' from here on: its entries are pending, and its retries are given back.
        let queued: Vec<Delivery> = context.lanes.all().iter().flat_map(|(_, lane)| lane.clear()).collect();
        let retries: Vec<Key> =
            queued.iter().filter(|d| d.entry.is_none()).map(|d| (d.event.id, d.target.webhook.id)).collect();
        drop(queued);
        if let Err(error) = due.release(&retries).await {
            tracing::debug!(error = crate::chain(&error), "leases end by themselves");
        }
        let mut workers =
            std::mem::take(&mut *context.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let finished =
            tokio::time::timeout(grace, async { while workers.join_next().await.is_some() {} }).await;
        if finished.is_err() {
            tracing::warn!(in_flight = workers.len(), "grace over, requests abandoned");
        }
        drop(workers);
        let told = async {
            health::tell(&context).await;
            tally::tell(&context).await;
        };
        if tokio::time::timeout(grace, told).await.is_err() {
            tracing::debug!("grace over, successes not told");
        }
        let (beats_stop, beats) = beats;
        beats_stop.send_replace(true);
        let _ = beats.await;
        // The recorder ends with the last handle to it.
        drop(context);
        if tokio::time::timeout(grace, recorder).await.is_err() {
            tracing::warn!("grace over, outcomes not recorded");
        }
        if let Err(error) = claims.leave().await {
            tracing::debug!(error = crate::chain(&error), "beat not taken back");
        }
    }
}

impl Context {
    fn new(config: &Arc<Config>, made: Made) -> Result<Context, config::Error> {
        let Made { store, transforms, tracer, breakers, recorder, opened, gate, stream, instance, metrics } =
            made;
        let (dispatch, deliver) = (&config.dispatch, &config.deliver);
        Ok(Context {
            registry: Registry::new(store.clone()),
            transforms: Transforms::new(transforms, store.clone()),
            tracer,
            breakers,
            peers: AtomicUsize::new(1),
            store,
            lanes: Lanes::new(lane::Limits {
                queue_max: config.lane.queue_max,
                retries_max: dispatch.retries_held_max / 2,
                hold: dispatch.hold,
                idle: config.lane.idle,
                breaker: lane::BreakerSettings {
                    failures: config.lane.breaker_failures,
                    probe_first: config.lane.probe_first,
                    probe_max: config.lane.probe_max,
                },
            }),
            client: Client::new(deliver, config.retry.retry_after_max, &config.targets, metrics.clone())?,
            recorder,
            policy: Policy::new(&config.retry, deliver.timeout),
            kept: Kept { success: deliver.success_bytes_kept, failure: deliver.failure_bytes_kept },
            fence: Fence::new(dispatch.dead_after),
            opened,
            deferred: Deferred::new(config.lane.deferred_max, dispatch.held_bytes_max / 8),
            leases: Leases::default(),
            gate,
            stream,
            instance,
            workers: Mutex::new(JoinSet::new()),
            first_budget: Budget::new(dispatch.held_max, dispatch.held_bytes_max),
            retry_budget: Budget::new(dispatch.retries_held_max, dispatch.held_bytes_max / 4),
            config: config.clone(),
            metrics,
        })
    }

    /// How long a retry is leased: from queue to reply, and time to record it. A lease that ends earlier sends twice.
    fn lease(&self) -> Duration {
        self.config.dispatch.hold + self.config.deliver.timeout + self.config.dispatch.margin
    }

    /// Makes a lease longer by what the webhook's own time-out is longer than the usual one. Its end would come before the
    /// reply, and so nothing would ever be sent.
    async fn lengthen(&self, due: &mut Due, delivery: &mut Delivery) -> Result<(), stream::Error> {
        let own = delivery.target.webhook.own.timeout.unwrap_or(Duration::ZERO);
        let more = own.saturating_sub(self.config.deliver.timeout);
        if more.is_zero() {
            return Ok(());
        }
        let (lease, now) = (self.lease() + more, Instant::now());
        let key = (delivery.event.id, delivery.target.webhook.id);
        due.keep(&[(key, i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))]).await?;
        delivery.lease = Some(self.leases.note(key, now + lease));
        Ok(())
    }

    /// How long, in milliseconds, what waited in a pause has from its end on.
    fn spare_ms(&self) -> i64 {
        i64::try_from(self.policy.expiry().as_millis()).unwrap_or(i64::MAX)
    }

    /// This process's part of a webhook's limits: the others take theirs. Each process has CPU time of its own for a transform,
    /// which is a limit of calls.
    fn allowed(&self, webhook: &Webhook) -> Allowed {
        let own = &webhook.own;
        let peers = self.peers.load(Relaxed).max(1);
        let in_flight_max = own.in_flight_max.unwrap_or(self.config.lane.in_flight_max);
        Allowed {
            in_flight_max: (in_flight_max / peers).max(1),
            rate: own.rate_limit.map(|rate| rate / peers as f64),
            calls: webhook.transform.as_ref().and_then(|_| self.transforms.host.rate(webhook.id)),
            probe_max: self.config.lane.probe_max.min(self.policy.of(own).patience() / 4),
        }
    }
}
