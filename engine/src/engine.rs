//! Builds every part in order, and takes them down in order. The only file that knows all stages.
//!
//! Each role has a thread of its own with a single-threaded runtime, the dispatcher one for each of its workers, and the beats
//! have another, so that a busy role never looks dead. Between them there is the ring of recent commits and nothing else.

mod background;
mod dispatchers;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, Semaphore, oneshot, watch};

use crate::{
    config::{self, Config, Roles},
    dispatch,
    http::{self, Server},
    ingest::{
        Batcher, Bounds, Commits, Counter, Queue, Ring, Room,
        keys::{Form, Keys},
    },
    metrics::Metrics,
    retry::schedule::Policy,
    store::{
        self, Store,
        migrate::{self, Identity},
    },
    stream::{self, Producer, Redis, breaker::Breakers, consumer::Claims, due::Due},
    transform::{self, Host},
};

/// How long a start waits for Postgres to come up.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(60);

/// How long it waits for Redis before it goes on without: events are accepted all the same.
const REDIS_PATIENCE: Duration = Duration::from_secs(5);

/// How long a drain tries to bring committed batches into Redis. Afterwards another process does.
const STREAM_PATIENCE: Duration = Duration::from_secs(2);

/// How long a beat may take before its connection counts as dead: others count ten beats.
const BEAT_PATIENCE: Duration = Duration::from_secs(3);

/// Large bodies parsed at a time, beside the thread that serves.
const PARSERS: usize = 2;

/// Connections of each role's pool.
const POOL: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Config(#[from] config::Error),
    #[error("port {port} is not to be had: {source}; choose another")]
    Bind { port: u16, source: io::Error },
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error(transparent)]
    Dispatch(#[from] dispatch::Error),
    #[error(transparent)]
    Transform(#[from] transform::Error),
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

/// A running engine.
pub struct Engine {
    /// Where the gateway listens, if this process has that role.
    pub gateway: Option<SocketAddr>,
    /// Where the dispatcher's health and metrics are, likewise.
    pub dispatcher: Option<SocketAddr>,
    pub metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    hurry: Arc<Notify>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

/// Where the roles listen.
type Addresses = (Option<SocketAddr>, Option<SocketAddr>);

impl Engine {
    /// Starts `roles` and returns once they serve.
    ///
    /// # Errors
    /// On a configuration that is not valid, a port in use, or a Postgres that does not come up or is not
    /// migrated.
    pub async fn start(config: Config, roles: Roles) -> Result<Engine, Error> {
        config.validate(roles)?;
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        let (stop, stopped) = watch::channel(false);
        let (ready, started) = oneshot::channel();
        let hurry = Arc::new(Notify::new());
        let run = {
            let (config, metrics, hurry) = (config.clone(), metrics.clone(), hurry.clone());
            move || run(config, roles, metrics, ready, stopped, hurry)
        };
        let ended = thread("eventpulse-keeper", run)?;
        match started.await {
            Ok((gateway, dispatcher)) => Ok(Engine { gateway, dispatcher, metrics, stop, hurry, ended }),
            // It ended before it was ready, and says why.
            Err(_) => Err(match ended.await {
                Ok(Err(error)) => error,
                _ => Error::Ended("start"),
            }),
        }
    }

    /// Waits until the engine ends by itself, which it only does on a fault.
    pub async fn ended(&mut self) -> Error {
        match (&mut self.ended).await {
            Ok(Err(error)) => error,
            _ => Error::Ended("engine"),
        }
    }

    /// Ends the delay of a [`shutdown`](Engine::shutdown), now or later.
    pub fn hurry(&self) -> Arc<Notify> {
        self.hurry.clone()
    }

    /// Waits for `shutdown.delay`, stops accepting, finishes what was accepted, records it, and returns.
    pub async fn shutdown(self) -> Result<(), Error> {
        self.stop.send_replace(true);
        self.ended.await.unwrap_or(Err(Error::Ended("engine")))
    }
}

/// Runs a future on a thread and a runtime of its own. The receiver fails if the thread panics.
fn thread<F, T>(
    name: &'static str,
    future: impl FnOnce() -> F + Send + 'static,
) -> Result<oneshot::Receiver<T>, Error>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    let (done, ended) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let outcome = runtime.block_on(future());
            // Nobody waits any more when the engine was dropped.
            let _ = done.send(outcome);
        })
        .map_err(Error::Thread)?;
    Ok(ended)
}

/// What the parts share.
#[derive(Clone)]
struct Common {
    config: Arc<Config>,
    identity: Identity,
    instance: i64,
    redis: Redis,
    keys: stream::Keys,
    /// Set as soon as this process is to end, before anything is stopped.
    stopping: watch::Receiver<bool>,
    ring: Option<Arc<Ring>>,
    transforms: Arc<Host>,
    metrics: Arc<Metrics>,
}

impl Common {
    fn store(&self) -> Result<Store, Error> {
        Ok(Store::new(self.config.database_url.reveal(), POOL)?)
    }

    /// What a role looks at to say whether it is ready. For the runtime that calls it.
    fn readiness(&self, service: &'static str, needs_redis: bool) -> Result<http::Readiness, Error> {
        let store = Store::new(self.config.database_url.reveal(), 1)?;
        let redis = Claims::new(self.redis.commands()?, self.keys.clone(), "readiness".to_owned());
        Ok(http::Readiness::new(service, store, redis, needs_redis, self.stopping.clone()))
    }
}

/// The keeper's thread: starts the roles, keeps the instance alive, and ends everything in order.
async fn run(
    config: Arc<Config>,
    roles: Roles,
    metrics: Arc<Metrics>,
    ready: oneshot::Sender<Addresses>,
    mut stopped: watch::Receiver<bool>,
    hurry: Arc<Notify>,
) -> Result<(), Error> {
    let store = Store::new(config.database_url.reveal(), POOL)?;
    let redis = Redis::new(config.redis_url.reveal(), config.stream.reply_timeout)?;
    migrate::wait_for(&store, POSTGRES_PATIENCE).await?;
    let identity = store.identity().await?;
    store.check_schema().await?;
    if let Err(error) = redis.wait_for(REDIS_PATIENCE).await {
        if error.is_setting() {
            return Err(error.into());
        }
        tracing::warn!(
            error = crate::chain(&error),
            "started without Redis: events are accepted and wait for it"
        );
    }
    let instance = store.join(roles.name()).await?;
    let common = Common {
        ring: (roles == Roles::Both)
            .then(|| Arc::new(Ring::new(config.ingest.ring_events_max, config.ingest.ring_bytes_max))),
        keys: stream::Keys::new(&identity.engine, stream::keys::SHARD),
        transforms: Arc::new(Host::new(&config.transform, metrics.clone())?),
        stopping: stopped.clone(),
        config: config.clone(),
        identity,
        instance,
        redis,
        metrics: metrics.clone(),
    };
    let (stream, producer) = Producer::new(common.keys.clone(), config.stream.unsent_max, metrics.clone());
    let keeper_stop = watch::Sender::new(false);
    let background = background::start(&common, &store, &stream, roles, &keeper_stop)?;

    // The producer runs beside the batcher where there is one.
    let (api_stop, dispatch_stop) = (watch::Sender::new(false), watch::Sender::new(false));
    let (api, producer) = if roles.api() {
        let role = Api { common: common.clone(), stream: stream.clone(), producer };
        (Some(start("gateway", api_stop.subscribe(), |stop, ready| role.run(stop, ready)).await?), None)
    } else {
        (None, Some(producer))
    };
    let producer = match producer {
        Some(producer) => {
            Some(tokio::spawn(producer.run(common.redis.commands()?, api_stop.subscribe(), STREAM_PATIENCE)))
        }
        None => None,
    };
    let dispatcher = if roles.dispatcher() {
        let (common, stream) = (common.clone(), stream.clone());
        let role = |stop, ready| dispatchers::run(common, stream, stop, ready);
        Some(start("dispatcher", dispatch_stop.subscribe(), role).await?)
    } else {
        None
    };
    let addresses = (api.as_ref().map(|r| r.address), dispatcher.as_ref().map(|r| r.address));
    if ready.send(addresses).is_err() {
        return Ok(());
    }
    let (mut api, mut dispatcher) = (api, dispatcher);
    let mut fault = tokio::select! {
        () = crate::stopped(&mut stopped) => None,
        error = ended(&mut api) => Some(error),
        error = ended(&mut dispatcher) => Some(error),
    };

    let start = Instant::now();
    // Who balances the load has to notice that this gateway is not ready any more, and to send its requests elsewhere.
    if fault.is_none() && api.is_some() && !config.shutdown.delay.is_zero() {
        tracing::info!(delay = ?config.shutdown.delay, "stopping soon");
        let _ = tokio::time::timeout(config.shutdown.delay, hurry.notified()).await;
    }
    api_stop.send_replace(true);
    fault = fault.or(finish(api).await);
    if let Some(producer) = producer {
        let _ = producer.await;
    }
    dispatch_stop.send_replace(true);
    fault = fault.or(finish(dispatcher).await);
    keeper_stop.send_replace(true);
    for task in background {
        let _ = task.await;
    }
    if let Err(error) = store.leave(instance).await {
        tracing::debug!(error = crate::chain(&error), "instance not removed; others will find it dead");
    }
    tracing::info!(seconds = start.elapsed().as_secs_f32(), "stopped");
    fault.map_or(Ok(()), Err)
}

/// A role that serves.
struct Role {
    name: &'static str,
    address: SocketAddr,
    ended: oneshot::Receiver<Result<(), Error>>,
}

type Ready = oneshot::Sender<SocketAddr>;

/// Starts a role on a thread of its own and waits until it serves.
async fn start<F>(
    name: &'static str,
    stop: watch::Receiver<bool>,
    role: impl FnOnce(watch::Receiver<bool>, Ready) -> F + Send + 'static,
) -> Result<Role, Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let (ready, address) = oneshot::channel();
    let ended = thread(name, move || role(stop, ready))?;
    match address.await {
        Ok(address) => Ok(Role { name, address, ended }),
        Err(_) => Err(ended.await.unwrap_or(Err(Error::Ended(name))).err().unwrap_or(Error::Ended(name))),
    }
}

/// Ends when a role does, which it should not.
async fn ended(role: &mut Option<Role>) -> Error {
    match role {
        Some(running) => {
            let name = running.name;
            let outcome = (&mut running.ended).await;
            *role = None;
            outcome.unwrap_or(Err(Error::Ended(name))).err().unwrap_or(Error::Ended(name))
        }
        None => std::future::pending().await,
    }
}

async fn finish(role: Option<Role>) -> Option<Error> {
    let role = role?;
    role.ended.await.unwrap_or(Err(Error::Ended(role.name))).err()
}

/// The gateway's role: server, key look-ups, batcher, producer.
struct Api {
    common: Common,
    stream: stream::Handle,
    producer: Producer,
}

impl Api {
    async fn run(self, stop: watch::Receiver<bool>, ready: Ready) -> Result<(), Error> {
        let Api { common, stream, producer } = self;
        let (config, metrics) = (&common.config, &common.metrics);
        let port = config.http.port;
        let server = bind(&common, port, metrics.http.connections.clone()).await?;
        let store = common.store()?;
        // The first request should not pay for the first connection.
        store.ping().await?;
        // Connections of their own: slow lists of one tenant must not turn others' keys into refusals.
        let lookups = Store::new(config.database_url.reveal(), 2)?;
        lookups.ping().await?;
        let form = Form::new(&common.identity.key_secret);
        let (keys, lookup) = Keys::new(form, lookups, config.ingest.keys_max, metrics.clone());
        let bounds = Bounds {
            events_max: config.ingest.queue_events_max,
            bytes_max: config.ingest.queue_bytes_max,
            standing_events_max: config.ingest.standing_events_max,
        };
        let queue = Queue::new(bounds, metrics.clone());
        let commits = Commits {
            address: store.address().clone(),
            stream,
            ring: common.ring.clone(),
            owner: common.instance,
            timeout: config.ingest.commit_timeout,
            metrics: metrics.clone(),
        };
        let batcher = Batcher {
            queue: queue.clone(),
            commits: commits.clone(),
            commits_max: config.ingest.commits_max,
            stagger: config.ingest.commit_stagger,
            batch_events_max: config.ingest.batch_events_max,
            batch_bytes_max: config.ingest.batch_bytes_max,
            metrics: metrics.clone(),
        };
        let (counter, carriers) = Counter::open(config, &commits);
        let gateway = http::Gateway {
            config: config.clone(),
            store,
            keys,
            queue: queue.clone(),
            counter: counter.clone(),
            room: Room::new(config.http.held_bytes_max, metrics.clone()),
            parsers: Semaphore::new(PARSERS),
            due: Due::new(common.redis.commands()?, common.keys.clone(), config.retry.due_max),
            claims: Claims::new(common.redis.commands()?, common.keys.clone(), "api".to_owned()),
            breakers: Breakers::new(common.redis.commands()?, common.keys.clone()),
            tests: http::TestCalls::new(config, metrics.clone())?,
            transforms: common.transforms.clone(),
            uploads: http::Turns::uploads(metrics),
            dry_runs: http::Turns::dry_runs(metrics),
            readiness: common.readiness("api-gateway", false)?,
            policy: Policy::new(&config.retry, config.deliver.timeout),
            metrics: metrics.clone(),
        };
        let later = watch::Sender::new(false);
        let lookup = tokio::spawn(lookup.run(later.subscribe()));
        let batcher = tokio::spawn(batcher.run());
        let [small, bulk] = carriers.map(|carrier| tokio::spawn(carrier.run()));
        let producer =
            tokio::spawn(producer.run(common.redis.commands()?, later.subscribe(), STREAM_PATIENCE));
        let _ = ready.send(address(&server, port)?);
        server.run(Arc::new(gateway), stop).await;
        // In this order nothing that was accepted is left behind: commits first, then their entries.
        queue.close();
        counter.close();
        for commits in [batcher, small, bulk] {
            let _ = commits.await;
        }
        later.send_replace(true);
        let _ = producer.await;
        let _ = lookup.await;
        Ok(())
    }
}

async fn bind(common: &Common, port: u16, connections: metrics::Gauge) -> Result<Server, Error> {
    let (http, stopping) = (&common.config.http, common.stopping.clone());
    Server::bind(http, port, connections, stopping).await.map_err(|source| Error::Bind { port, source })
}

fn address(server: &Server, port: u16) -> Result<SocketAddr, Error> {
    server.address().map_err(|source| Error::Bind { port, source })
}
