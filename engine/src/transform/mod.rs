//! Webhooks' own WASM modules: checked, compiled, and called within limits.
//!
//! A call gets facts and bytes and gives bytes back; it has no clock, no randomness, no network and no files. It ends within
//! its limits of CPU time, memory and output, and what it does wrong is its own delivery's failure and nobody else's. A crash
//! loses nothing of this stage: modules stand in Postgres, and compiled ones can be made again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};

use crate::{
    config,
    metrics::Metrics,
    model::{Event, WebhookId},
};

/// SHA-256 of a module's bytes as they were uploaded.
pub type Hash = [u8; 32];

/// What a module wants done with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Unchanged,
    /// Valid JSON in place of the payload.
    Payload(Bytes),
    Body(HttpBody),
    /// Nothing is sent, for this reason.
    Drop(String),
}

/// A whole HTTP body in place of the envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpBody {
    pub content_type: HeaderValue,
    pub bytes: Bytes,
    /// Further headers, all of them allowed ones.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Trap,
    /// It took more CPU time than it may.
    Deadline,
    Memory,
    /// It said so itself.
    Error,
    /// What it gave back is too large.
    TooLarge,
    /// A payload that is no JSON, or a header that is not allowed.
    BadOutput,
}

impl Kind {
    /// As attempts have it.
    pub fn reason_code(self) -> &'static str {
        match self {
            Kind::Trap => "transform_trap",
            Kind::Deadline => "transform_deadline",
            Kind::Memory => "transform_memory",
            Kind::Error => "transform_error",
            Kind::TooLarge => "transform_too_large",
            Kind::BadOutput => "transform_bad_output",
        }
    }
}

/// A failed call. The message is valid text without NUL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

/// A line of a module's log: valid text without NUL, cut to the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    pub text: String,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Called {
    pub result: Result<Outcome, Failure>,
    pub log: Vec<Line>,
    /// Of the thread that ran it.
    pub cpu: Duration,
    /// Linear memory at the end, in bytes.
    pub memory: usize,
}

/// What a call is given.
pub struct Input {
    pub event: Arc<Event>,
    pub webhook: WebhookId,
    /// Names the version, so that instances are never shared between two.
    pub version: i32,
    pub config: Arc<Vec<(String, String)>>,
}

/// Why a module is not taken. The message is for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// `not_wasm`, `no_transform_export`, `forbidden_import`, `memory_over_limit`, `too_complex` or `does_not_compile`.
    pub code: &'static str,
    pub message: String,
}

/// Why a module could not be compiled, for now or for good.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Not the module's fault: it may be tried again.
    #[error("the module could not be compiled: {0}")]
    Failed(String),
}

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
#[error("transforms cannot be run: {0}")]
pub struct Error(String);

/// A compiled module in memory, ready to be called.
pub struct Module {}

/// Everything a process needs to run modules: engines, threads, and the cache of compiled ones. Threads are started with the
/// first call.
pub struct Host {}

impl Host {
    /// # Errors
    /// When the cache folder is not ours alone, or this machine refuses the address space.
    pub fn new(_settings: &config::Transform, _metrics: Arc<Metrics>) -> Result<Host, Error> {
        Ok(Host {})
    }

    /// A compiled module, from memory or from the cache on disk. None when it has to be compiled here first.
    pub async fn load(&self, _hash: &Hash) -> Option<Arc<Module>> {
        None
    }

    /// Checks a module's bytes, compiles them in a process with limits of its own, and puts the result into the cache. One
    /// module at a time; others wait for their turn, and for the same module there is one compilation.
    ///
    /// # Cancel safety
    /// A dropped compilation ends its process and leaves nothing behind.
    pub async fn compile(&self, _wasm: Bytes) -> Result<Arc<Module>, CompileError> {
        Err(CompileError::Failed("not built".to_owned()))
    }

    /// Calls a module on one of the threads, and waits for a place as long as all are taken.
    ///
    /// # Cancel safety
    /// A dropped call that has begun runs to its end unseen.
    pub async fn call(&self, _module: &Arc<Module>, _input: Input) -> Called {
        unimplemented!()
    }

    /// Calls a second that a webhook's CPU share is enough for, by what its calls took of late. None when it has made none.
    pub fn rate(&self, _webhook: WebhookId) -> Option<f64> {
        None
    }
}
