//! Builds every part in order, and takes them down in order. The only file that knows all stages.
//!
//! Each role has a thread of its own with a single-threaded runtime, the dispatcher one for each of its workers, and the beats
//! have another, so that a busy role never looks dead. Between them there is the ring of recent commits and nothing else.

mod api;
mod background;
mod dispatchers;
mod front;
mod safety;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot, watch};

use self::api::Api;
use crate::{
    config::{self, Config, Roles},
    dispatch,
    http::{self, Server},
    ingest::Ring,
    metrics::Metrics,
    recover::rebuild,
    store::{
        self, Address, Seal, Store, history,
        migrate::{self, Identity},
    },
    stream::{self, Producer, Redis, consumer::Claims, epoch::Epochs},
    trace::Tracer,
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
    #[error("{}; recover.allow_unsafe=true starts all the same", .0.join("; "))]
    Unsafe(Vec<String>),
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

/// A running engine.
pub struct Engine {
    /// Where the gateway listens, if this process has that role.
    pub gateway: Option<SocketAddr>,
    /// Where the operator's own port is, if it has one.
    pub admin: Option<SocketAddr>,
    /// Where the dispatcher's health and metrics are, likewise.
    pub dispatcher: Option<SocketAddr>,
    pub metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    hurry: Arc<Notify>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

/// Where the roles listen: gateway, dispatcher, and the operator's port.
type Addresses = (Option<SocketAddr>, Option<SocketAddr>, Option<SocketAddr>);

impl Error {
    /// Whether Postgres went back in time. All that this process has in memory is of another history: it has to be started again.
    pub fn is_rewound(&self) -> bool {
        matches!(self, Error::Store(store::Error::Rewound))
    }
}

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
            Ok((gateway, dispatcher, admin)) => {
                Ok(Engine { gateway, dispatcher, admin, metrics, stop, hurry, ended })
            }
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
    /// With the history that all connections of this process share.
    address: Address,
    config: Arc<Config>,
    identity: Identity,
    instance: i64,
    redis: Redis,
    keys: stream::Keys,
    gate: stream::Gate,
    /// Set as soon as this process is to end, before anything is stopped.
    stopping: watch::Receiver<bool>,
    ring: Option<Arc<Ring>>,
    transforms: Arc<Host>,
    tracer: Tracer,
    seal: Seal,
    metrics: Arc<Metrics>,
}

impl Common {
    fn store(&self) -> Store {
        Store::at(self.address.clone(), POOL).with_seal(self.seal.clone())
    }

    /// What a role looks at to say whether it is ready. For the runtime that calls it.
    fn readiness(&self, service: &'static str, needs_redis: bool) -> Result<http::Readiness, Error> {
        let store = Store::at(self.address.clone(), 1);
        let redis = Claims::new(self.redis.commands()?, self.keys.clone(), "readiness".to_owned());
        Ok(http::Readiness::new(service, store, redis, needs_redis, self.stopping.clone()))
    }
}

/// The keys for secrets at rest.
fn seal(config: &Config) -> Result<Seal, Error> {
    let keys = config::keys::parse(&config.secrets_key);
    let problem = |problem| config::Error(vec![format!("EVENTPULSE_SECRETS_KEY {problem}")]);
    Ok(Seal::new(&keys.map_err(problem)?))
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
    let seal = seal(&config)?;
    let store = Store::new(config.database_url.reveal(), POOL)?.with_seal(seal.clone());
    let redis = Redis::new(config.redis_url.reveal(), &config.stream.roots, config.stream.reply_timeout)?;
    migrate::wait_for(&store, POSTGRES_PATIENCE).await?;
    let identity = store.identity().await?;
    store.check_schema().await?;
    store.check_secrets().await?;
    let keys = stream::Keys::new(&identity.engine, stream::keys::SHARD);
    if let Err(error) = redis.wait_for(REDIS_PATIENCE).await {
        if error.is_setting() {
            return Err(error.into());
        }
        tracing::warn!(
            error = crate::chain(&error),
            "started without Redis: events are accepted and wait for it"
        );
    }
    let objections = safety::objections(&store, &redis).await?;
    if !objections.is_empty() {
        if !config.recover.allow_unsafe {
            return Err(Error::Unsafe(objections));
        }
        tracing::warn!("started all the same: {}", objections.join("; "));
    }
    let mut epochs = Epochs::new(redis.commands()?, keys.clone(), identity.history);
    if let Err(rebuild::Error::Store(error @ store::Error::Rewound)) =
        rebuild::look_back(&store, &mut epochs).await
    {
        begin_anew(store.address()).await;
        return Err(error.into());
    }
    let instance = store.join(roles.name()).await?;
    let (tracer, exporter) =
        Tracer::open(&config.trace, instance, &metrics).map_err(|problem| config::Error(vec![problem]))?;
    let common = Common {
        tracer,
        ring: (roles == Roles::Both)
            .then(|| Arc::new(Ring::new(config.ingest.ring_events_max, config.ingest.ring_bytes_max))),
        keys,
        gate: stream::Gate::default(),
        transforms: Arc::new(Host::new(&config.transform, metrics.clone())?),
        address: store.address().clone(),
        stopping: stopped.clone(),
        config: config.clone(),
        seal,
        identity,
        instance,
        redis,
        metrics: metrics.clone(),
    };
    let (stream, producer) = Producer::new(common.keys.clone(), config.stream.unsent_max, metrics.clone());
    let keeper_stop = watch::Sender::new(false);
    let mut background = background::start(&common, &store, &stream, roles, &keeper_stop)?;
    if let Some(exporter) = exporter {
        background.push(("traces", tokio::spawn(exporter.run(keeper_stop.subscribe()))));
    }

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
    let admin = api.as_ref().and_then(|role| role.admin);
    let addresses = (api.as_ref().map(|r| r.address), dispatcher.as_ref().map(|r| r.address), admin);
    if ready.send(addresses).is_err() {
        return Ok(());
    }
    let (mut api, mut dispatcher) = (api, dispatcher);
    let mut fault = tokio::select! {
        () = crate::stopped(&mut stopped) => None,
        () = store.address().history().gone() => {
            begin_anew(store.address()).await;
            // Nothing is drained: what is in hand speaks of another history.
            return Err(store::Error::Rewound.into());
        }
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
    for (name, task) in background {
        let _ = task.await;
        tracing::debug!(name, "ended");
    }
    if let Err(error) = store.leave(instance).await {
        tracing::debug!(error = crate::chain(&error), "instance not removed; others will find it dead");
    }
    tracing::info!(seconds = start.elapsed().as_secs_f32(), "stopped");
    fault.map_or(Ok(()), Err)
}

/// Postgres went back in time: numbers go on after all that may have been handed out, whoever is first.
async fn begin_anew(address: &Address) {
    loop {
        match history::begin_anew(address).await {
            Ok(true) => return tracing::error!("Postgres went back in time: ids and versions jump ahead"),
            Ok(false) => return,
            Err(error) => tracing::debug!(error = crate::chain(&error), "ids do not jump yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A role that serves.
struct Role {
    name: &'static str,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

/// Told where a role listens, and where the operator's port is if the role has it.
type Ready = oneshot::Sender<(SocketAddr, Option<SocketAddr>)>;

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
        Ok((address, admin)) => Ok(Role { name, address, admin, ended }),
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

fn bind(
    settings: &config::Http,
    address: SocketAddr,
    connections: metrics::Gauge,
    stopping: watch::Receiver<bool>,
) -> Result<Server, Error> {
    let bound = Server::bind(settings, address, connections, stopping);
    bound.map_err(|source| Error::Bind { port: address.port(), source })
}

fn address(server: &Server, port: u16) -> Result<SocketAddr, Error> {
    server.address().map_err(|source| Error::Bind { port, source })
}
