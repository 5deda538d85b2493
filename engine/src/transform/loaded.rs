//! Compiled modules in memory, and recent refusals.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use metrics::Gauge;

use super::{Hash, Module, Rejected};

/// Beyond either bound the modules used least recently go. Those that a call still holds live until it ends.
const MODULES_MAX: usize = 1024;
const BYTES_MAX: usize = 512 << 20;

/// Who asked for the same module at the same time gets the same refusal, without another compilation.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(60);
const REFUSALS_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

pub(super) struct Loaded {
    modules: Mutex<Modules>,
    refusals: Mutex<LruCache<Hash, (Rejected, Instant)>>,
    gauge: Gauge,
}

struct Modules {
    by_hash: LruCache<Hash, Arc<Module>>,
    bytes: usize,
}

impl Loaded {
    pub(super) fn new(gauge: Gauge) -> Loaded {
        Loaded {
            modules: Mutex::new(Modules { by_hash: LruCache::unbounded(), bytes: 0 }),
            refusals: Mutex::new(LruCache::new(REFUSALS_MAX)),
            gauge,
        }
    }

    pub(super) fn get(&self, hash: &Hash) -> Option<Arc<Module>> {
        lock(&self.modules).by_hash.get(hash).cloned()
    }

    pub(super) fn put(&self, module: Arc<Module>) {
        let mut modules = lock(&self.modules);
        modules.bytes += module.bytes;
        if let Some(before) = modules.by_hash.put(module.hash, module) {
            modules.bytes -= before.bytes;
        }
        // The newest stays, however large.
        while modules.by_hash.len() > 1
            && (modules.by_hash.len() > MODULES_MAX || modules.bytes > BYTES_MAX)
            && let Some((_, gone)) = modules.by_hash.pop_lru()
        {
            modules.bytes -= gone.bytes;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of at most a thousand")]
        self.gauge.set(modules.by_hash.len() as f64);
    }

    pub(super) fn refusal(&self, hash: &Hash) -> Option<Rejected> {
        let refusals = lock(&self.refusals);
        let (refusal, at) = refusals.peek(hash)?;
        (at.elapsed() < REFUSAL_AGE_MAX).then(|| refusal.clone())
    }

    pub(super) fn refuse(&self, hash: Hash, refusal: Rejected) {
        lock(&self.refusals).put(hash, (refusal, Instant::now()));
    }
}

/// What these hold is valid after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
