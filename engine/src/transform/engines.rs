//! The two wasmtime engines: one for small modules, one for those that bring a language's runtime.
//!
//! Both pools hold as many slots as calls can run at once and no more. Each slot reserves more than 4 GiB of addresses, which
//! lets compiled code do without checks of bounds; only what is touched takes memory.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};
use wasmtime::{Config, Engine, OptLevel, PoolingAllocationConfig};

use crate::config;

/// By size: see `config::Transform::large_from_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Class {
    Small,
    Large,
}

impl Class {
    pub(super) const ALL: [Class; 2] = [Class::Small, Class::Large];

    pub(super) fn of(settings: &config::Transform, module_bytes: usize) -> Class {
        if module_bytes > settings.large_from_bytes { Class::Large } else { Class::Small }
    }

    pub(super) fn memory_bytes_max(self, settings: &config::Transform) -> usize {
        match self {
            Class::Small => settings.memory_bytes_max,
            Class::Large => settings.large_memory_bytes_max,
        }
    }

    pub(super) fn bounds(self) -> &'static Bounds {
        match self {
            Class::Small => &SMALL,
            Class::Large => &LARGE,
        }
    }
}

/// What one instance may consist of, as the pool needs to know it beforehand.
pub(super) struct Bounds {
    /// Core modules in one component: its own, and what adapts it to the component's imports.
    pub(super) core_instances: u32,
    pub(super) memories: u32,
    pub(super) tables: u32,
    pub(super) table_elements: usize,
    /// Bytes of wasmtime's own record of one instance, which grows with functions, globals and imports.
    core_instance_bytes: usize,
    component_instance_bytes: usize,
    /// Stack of a module's calls of itself.
    stack_bytes: usize,
    /// Reset by writing zeros and not by system calls, which take a lock of the whole process. Enough for a guest of the SDK.
    keep_resident_bytes: usize,
}

const SMALL: Bounds = Bounds {
    core_instances: 8,
    memories: 2,
    tables: 4,
    table_elements: 10_000,
    core_instance_bytes: 1 << 20,
    component_instance_bytes: 2 << 20,
    stack_bytes: 512 << 10,
    keep_resident_bytes: 512 << 10,
};

// A Python component is some thirty modules that share a memory and a table.
const LARGE: Bounds = Bounds {
    core_instances: 128,
    memories: 4,
    tables: 64,
    table_elements: 100_000,
    core_instance_bytes: 4 << 20,
    component_instance_bytes: 16 << 20,
    stack_bytes: 1 << 20,
    keep_resident_bytes: 0,
};

/// Stack of a call's thread: the most that a module may take, and the host's own around it.
pub(super) const THREAD_STACK_BYTES: usize = LARGE.stack_bytes + (2 << 20);

/// Live instances of large modules that a thread keeps for the next call.
pub(super) const LIVE_MAX: usize = 2;

pub(super) struct Engines {
    small: Engine,
    large: Engine,
}

impl Engines {
    pub(super) fn new(settings: &config::Transform, threads: usize) -> wasmtime::Result<Engines> {
        let engine = |class: Class, instances: usize| {
            Engine::new(&with_pool(class, settings, u32::try_from(instances).unwrap_or(u32::MAX)))
        };
        Ok(Engines {
            // Threads of either kind run small modules, and only patient ones the others.
            small: engine(Class::Small, threads * 2)?,
            // One more than are kept: the next is made before the oldest goes.
            large: engine(Class::Large, threads * (LIVE_MAX + 1))?,
        })
    }

    pub(super) fn of(&self, class: Class) -> &Engine {
        match class {
            Class::Small => &self.small,
            Class::Large => &self.large,
        }
    }

    pub(super) fn all(&self) -> [Engine; 2] {
        [self.small.clone(), self.large.clone()]
    }
}

/// Differs whenever machine code from one engine is not to be run by another: by wasmtime's version, its settings, and what
/// this processor can do.
pub(super) fn fingerprint(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// What decides the machine code. The process that compiles has no pool, so that it needs none of its addresses.
pub(super) fn for_compiling(class: Class) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(class.bounds().stack_bytes)
        // The bits of a NaN depend on the processor otherwise, and a retry must have the same bytes.
        .cranelift_nan_canonicalization(true)
        // Nobody reads backtraces of addresses: modules are stripped, and say in their log where they panicked.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false);
    match class {
        Class::Small => {
            config
                .cranelift_opt_level(OptLevel::Speed)
                // What no compiler for small modules uses is not there to be attacked.
                .wasm_memory64(false)
                .wasm_multi_memory(false)
                .wasm_relaxed_simd(false)
                .wasm_tail_call(false)
                .wasm_wide_arithmetic(false)
                .wasm_custom_page_sizes(false)
                .wasm_extended_const(false);
        }
        Class::Large => {
            // An interpreter gains nothing visible from optimisation, and takes half as long again to compile.
            config
                .cranelift_opt_level(OptLevel::None)
                .wasm_memory64(false)
                // Python's parts are linked with what the small class does without. Its answers must not depend on the processor.
                .relaxed_simd_deterministic(true);
        }
    }
    config
}

fn with_pool(class: Class, settings: &config::Transform, instances: u32) -> Config {
    let bounds = class.bounds();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .max_component_instance_size(bounds.component_instance_bytes)
        .total_core_instances(instances.saturating_mul(bounds.core_instances))
        .max_core_instance_size(bounds.core_instance_bytes)
        .max_core_instances_per_component(bounds.core_instances)
        .total_memories(instances.saturating_mul(bounds.memories))
        .max_memories_per_component(bounds.memories)
        .max_memory_size(class.memory_bytes_max(settings))
        .total_tables(instances.saturating_mul(bounds.tables))
        .max_tables_per_component(bounds.tables)
        .max_tables_per_module(bounds.tables)
        .table_elements(bounds.table_elements)
        .linear_memory_keep_resident(bounds.keep_resident_bytes)
        .table_keep_resident(bounds.keep_resident_bytes.min(64 << 10));
    // `pagemap_scan` stays off, its default: a page that was dirty when it was swapped out is neither reset nor dropped
    // (wasmtime pull request 14357), and the next instance of that slot would read another tenant's bytes.
    let mut config = for_compiling(class);
    config.allocation_strategy(pool);
    config
}
