//! The host: everything a process needs to load, compile and call modules.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
};
use wasmtime::component::Component;

use super::{
    Called, CompileError, Error, Hash, Input, Module,
    abi::World,
    cache::{Cache, file_name},
    check::{is_wasm, rejected},
    child,
    compile::Order,
    engines::{Class, Engines, fingerprint},
    loaded::Loaded,
    returns::{Reply, Returns},
    share::Shares,
    threads::{self, Job, Threads, Waiting, broken},
};
use crate::{config, metrics::Metrics, model::WebhookId};

/// Everything a process needs to run modules: engines, threads, and the cache of compiled ones. Threads are started with the
/// first call.
pub struct Host {
    shared: Arc<Shared>,
    shares: Shares,
    /// CPU seconds a second that one webhook may have. Kept, because counting the cores reads files.
    share: f64,
    threads: OnceLock<Threads>,
    starting: Mutex<()>,
    /// The program that compiles: this one.
    compiler: PathBuf,
    /// One module at a time.
    compiling: Semaphore,
    loading: Semaphore,
}

/// What work on a thread for blocking calls needs, which outlives a caller that has gone.
struct Shared {
    settings: config::Transform,
    metrics: Arc<Metrics>,
    engines: Engines,
    cache: Cache,
    loaded: Loaded,
}

impl Host {
    /// # Errors
    /// When the cache folder is not ours alone, or this machine refuses the address space.
    pub fn new(settings: &config::Transform, metrics: Arc<Metrics>) -> Result<Host, Error> {
        let threads = threads::count(settings);
        let engines = Engines::new(settings, threads).map_err(|error| {
            Error(format!(
                "there is no address space for their memories, some 4 GiB for each of {threads} threads; is it limited \
                 (ulimit -v)? {error:#}"
            ))
        })?;
        let shared = Shared {
            settings: settings.clone(),
            loaded: Loaded::new(metrics.transform.modules.clone()),
            metrics,
            engines,
            cache: Cache::open(&settings.cache_folder)?,
        };
        Ok(Host {
            shared: Arc::new(shared),
            shares: Shares::new(threads),
            share: f64::from(settings.cpu_share_percent) / 100.0 * threads as f64,
            threads: OnceLock::new(),
            starting: Mutex::new(()),
            compiler: settings.compiler.clone().unwrap_or_else(own_program),
            compiling: Semaphore::new(1),
            loading: Semaphore::new(1),
        })
    }

    /// A compiled module, from memory or from the cache on disk. None when it has to be compiled here first.
    ///
    /// In memory are at most 1,024 modules and 512 MiB of machine code; those used least recently go first.
    pub async fn load(&self, hash: &Hash) -> Option<Arc<Module>> {
        if let Some(module) = self.shared.loaded.get(hash) {
            return Some(module);
        }
        // One at a time, and so each module once.
        let _turn = self.loading.acquire().await.ok()?;
        if let Some(module) = self.shared.loaded.get(hash) {
            return Some(module);
        }
        let (shared, hash) = (self.shared.clone(), *hash);
        spawn_blocking(move || shared.load(&hash)).await.ok().flatten()
    }

    /// Checks a module's bytes, compiles them in a process with limits of its own, and puts the result into the cache. One
    /// module at a time; others wait for their turn, and for the same module there is one compilation.
    ///
    /// # Errors
    /// `Rejected` is the module's fault and for good, `Failed` is not.
    ///
    /// # Cancel safety
    /// A dropped compilation ends its process and leaves nothing behind.
    pub async fn compile(&self, wasm: Bytes) -> Result<Arc<Module>, CompileError> {
        let outcome = self.compiled(wasm).await;
        let metrics = &self.shared.metrics.transform;
        match &outcome {
            Ok(_) => {}
            Err(CompileError::Rejected(_)) => metrics.rejected.increment(1),
            Err(CompileError::Failed(_)) => metrics.compile_failed.increment(1),
        }
        outcome
    }

    async fn compiled(&self, wasm: Bytes) -> Result<Arc<Module>, CompileError> {
        let settings = &self.shared.settings;
        let bytes_max = settings.module_bytes_max;
        if wasm.len() > bytes_max {
            let message = format!("the module has {} bytes, and may have {bytes_max}", wasm.len());
            return Err(rejected("too_complex", message).into());
        }
        is_wasm(&wasm)?;
        let hash = blocking({
            let wasm = wasm.clone();
            move || Hash::from(Sha256::digest(&wasm))
        })
        .await?;
        if let Some(module) = self.load(&hash).await {
            return Ok(module);
        }
        let _turn =
            self.compiling.acquire().await.map_err(|error| CompileError::Failed(error.to_string()))?;
        // Somebody else may have had the turn for the same module.
        if let Some(refusal) = self.shared.loaded.refusal(&hash) {
            return Err(refusal.into());
        }
        if let Some(module) = self.load(&hash).await {
            return Ok(module);
        }
        let class = Class::of(settings, wasm.len());
        let order = Order {
            class,
            memory_bytes_max: class.memory_bytes_max(settings),
            address_bytes_max: settings.compile_bytes_max,
            cpu_seconds: settings.compile_timeout.as_secs().max(1),
        };
        let compiled = match child::compile(&self.compiler, &order, &wasm).await {
            Ok(artefact) => {
                let shared = self.shared.clone();
                blocking(move || shared.admit(hash, class, &artefact)).await?
            }
            Err(error) => Err(error),
        };
        match &compiled {
            Ok(_) => self.shared.metrics.transform.compiled.increment(1),
            Err(CompileError::Rejected(refusal)) => self.shared.loaded.refuse(hash, refusal.clone()),
            Err(CompileError::Failed(_)) => {}
        }
        compiled
    }

    /// Calls a module on one of the threads, and waits for a place as long as all are taken.
    ///
    /// # Cancel safety
    /// A dropped call that has begun runs to its end unseen.
    pub async fn call(&self, module: &Arc<Module>, input: Input) -> Called {
        self.called(module, input, None).await
    }

    /// Likewise, for one who makes many calls: outcomes come back by `returns`.
    ///
    /// # Cancel safety
    /// A dropped call that has begun runs to its end unseen.
    pub async fn call_by(&self, module: &Arc<Module>, input: Input, returns: &Returns) -> Called {
        self.called(module, input, Some(returns.clone())).await
    }

    async fn called(&self, module: &Arc<Module>, input: Input, by: Option<Returns>) -> Called {
        let threads = match self.threads() {
            Ok(threads) => threads,
            Err(error) => return broken(format!("the host could not start a thread: {error}")),
        };
        let metrics = &self.shared.metrics.transform;
        let waiting = Waiting::new(&metrics.waiting);
        let share = self.shares.of(input.webhook);
        let place = match threads.places.clone().try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_) => {
                metrics.queue_full.increment(1);
                threads.places.clone().acquire_owned().await
            }
        };
        let (to, called) = oneshot::channel();
        // The semaphore is never closed.
        let Ok(place) = place else { return broken("the host is gone".to_owned()) };
        let reply = Reply { to, by };
        let job =
            Job { module: module.clone(), input, share: share.clone(), reply, place: Some(place), waiting };
        if let Some(job) = share.begin(job) {
            threads.send(job);
        }
        called.await.unwrap_or_else(|_| broken("the host's threads are gone".to_owned()))
    }

    /// Calls a module on this thread, in a fresh instance, and blocks it for as long: for the command line and for benches. The
    /// thread needs 3 MiB of stack.
    pub fn call_here(&self, module: &Module, input: &Input) -> Called {
        match self.threads() {
            Ok(threads) => threads.call_here(module, input),
            Err(error) => broken(format!("the host could not start a thread: {error}")),
        }
    }

    /// Calls a second that a webhook's CPU share is enough for, by what its calls took of late. None when it has made none.
    pub fn rate(&self, webhook: WebhookId) -> Option<f64> {
        self.shares.cost(webhook).map(|cost| self.share / cost)
    }

    fn threads(&self) -> std::io::Result<&Threads> {
        if let Some(threads) = self.threads.get() {
            return Ok(threads);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = self.threads.get() {
            return Ok(threads);
        }
        let shared = &self.shared;
        let started = Threads::start(&shared.settings, shared.metrics.clone(), &shared.engines)?;
        Ok(self.threads.get_or_init(|| started))
    }
}

impl Shared {
    /// From disk. The class is not known by the hash, so the file of either is looked for.
    fn load(&self, hash: &Hash) -> Option<Arc<Module>> {
        Class::ALL.into_iter().find_map(|class| {
            let name = file_name(hash, fingerprint(self.engines.of(class)));
            let artefact = self.cache.read(&name)?;
            match self.module(*hash, class, &artefact) {
                Ok(module) => Some(self.keep(module)),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "a compiled module on disk is of no use; it is compiled again"
                    );
                    self.cache.remove(&name);
                    None
                }
            }
        })
    }

    /// Takes in what the process compiled.
    fn admit(&self, hash: Hash, class: Class, artefact: &[u8]) -> Result<Arc<Module>, CompileError> {
        let module = self.module(hash, class, artefact)?;
        let name = file_name(&hash, fingerprint(self.engines.of(class)));
        // A full disk costs a compilation after the next start.
        if let Err(error) = self.cache.write(&name, artefact) {
            tracing::warn!(%error, "a compiled module could not be written to the cache");
        }
        Ok(self.keep(module))
    }

    fn keep(&self, module: Module) -> Arc<Module> {
        let module = Arc::new(module);
        self.metrics.transform.loaded.increment(1);
        self.loaded.put(module.clone());
        module
    }

    fn module(&self, hash: Hash, class: Class, artefact: &[u8]) -> Result<Module, super::Rejected> {
        let engine = self.engines.of(class);
        let component = machine_code(engine, artefact).map_err(|error| {
            rejected("too_complex", super::output::text(&format!("the module cannot be loaded: {error:#}")))
        })?;
        let world = World::find(engine, &component).map_err(|error| {
            let message = format!("no transform export found of the type that the contract has: {error:#}");
            rejected("no_transform_export", super::output::text(&message))
        })?;
        Ok(Module { hash, class, engine: engine.clone(), world, bytes: artefact.len() })
    }
}

#[allow(unsafe_code)]
fn machine_code(engine: &wasmtime::Engine, artefact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: it must be what `Engine::precompile_component` gave, unchanged. It comes from nowhere else: from the pipe of
    // a process that runs this program, or from the cache, whose folder nobody else can write to and whose bytes, these
    // very ones, were just compared with their SHA-256. wasmtime itself refuses artefacts of other versions and settings.
    unsafe { Component::deserialize(engine, artefact) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CompileError> {
    spawn_blocking(work).await.map_err(|error| CompileError::Failed(error.to_string()))
}

/// By this name it is found even when its file was replaced by a newer version while it runs.
fn own_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { running } else { std::env::current_exe().unwrap_or(running) }
}
