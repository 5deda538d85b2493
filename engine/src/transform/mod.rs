//! Webhooks' own WASM modules: checked, compiled, and called within limits.
//!
//! A call gets facts and bytes and gives bytes back; it has no clock, no randomness, no network and no files. It ends within
//! its limits of CPU time, memory and output, and what it does wrong is its own delivery's failure and nobody else's. A crash
//! loses nothing of this stage: modules stand in Postgres, and compiled ones can be made again.

mod abi;
mod cache;
mod check;
mod child;
mod compile;
mod engines;
mod host;
mod instances;
mod loaded;
mod output;
mod queue;
mod returns;
mod share;
mod state;
mod threads;
mod ticker;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};

#[cfg(any(test, fuzzing))]
pub(crate) use self::output::fuzzed;
use self::{abi::World, engines::Class};
pub use self::{compile::compile_in_this_process, host::Host, returns::Returns};
use crate::model::{Event, WebhookId};

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
pub struct Module {
    hash: Hash,
    class: Class,
    engine: wasmtime::Engine,
    world: World,
    /// Of its machine code.
    bytes: usize,
}

impl Module {
    pub fn hash(&self) -> &Hash {
        &self.hash
    }
}
