//! Traces: spans of what happens to an event, exported by OTLP to a collector.
//!
//! The gateway that takes an event in decides whether its spans are exported, and the decision stands with the event, so
//! that every process that meets it later agrees. Spans go into a bounded queue and one task exports them: whoever makes one never waits,
//! and what finds the queue full is dropped and counted. A crash loses what was not exported yet; no event depends on it.

mod client;
mod exporter;
mod otlp;
mod request;
mod sample;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc;

use self::sample::{Budget, Ids};
pub use self::{client::Endpoint, exporter::Exporter, request::Request};
use crate::{config, metrics::Metrics, model::Trace};

/// Spans that wait for the exporter: a few seconds' of what `trace.events_per_second_max` usually lets through.
const QUEUE: usize = 8192;

/// An id of a span.
pub type SpanId = [u8; 8];

/// What a span says beside its times.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(i64),
    Text(String),
}

/// Which side of a call a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Internal,
    Client,
    Producer,
}

/// Something that took its time and is over.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: SpanId,
    pub parent: Option<SpanId>,
    /// Those of the trace.
    pub flags: u8,
    pub name: &'static str,
    pub kind: Kind,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    pub end: u64,
    /// What went wrong, if it failed.
    pub error: Option<String>,
    pub attributes: Vec<(&'static str, Value)>,
}

/// Where spans are handed in; nothing is done without a collector.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

struct Shared {
    spans: mpsc::Sender<Span>,
    ids: Ids,
    ratio: f64,
    budget: Budget,
    metrics: Arc<Metrics>,
}

impl Tracer {
    /// With the task that exports, which is to be run; none of both where no collector is set.
    ///
    /// # Errors
    /// Says which setting cannot be used.
    pub fn open(
        config: &config::Trace,
        instance: i64,
        metrics: &Arc<Metrics>,
    ) -> Result<(Tracer, Option<Exporter>), String> {
        let Some(endpoint) = Endpoint::of(config)? else { return Ok((Tracer::default(), None)) };
        let (spans, queue) = mpsc::channel(QUEUE);
        let shared = Shared {
            spans,
            ids: Ids::new(),
            ratio: config.sample,
            budget: Budget::new(config.events_per_second_max),
            metrics: metrics.clone(),
        };
        let exporter =
            Exporter::new(queue, endpoint, otlp::Resource::new(&config.service, instance), metrics.clone());
        Ok((Tracer(Some(Arc::new(shared))), Some(exporter)))
    }

    /// Whether any span is exported at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A new span's id if this event's spans are exported.
    pub fn span(&self, trace: &Trace) -> Option<SpanId> {
        self.0.as_ref().filter(|_| trace.recorded).map(|shared| shared.ids.span())
    }

    /// Hands a span in. One for which there is no room is dropped.
    pub fn record(&self, span: Span) {
        if let Some(shared) = &self.0
            && shared.spans.try_send(span).is_err()
        {
            shared.metrics.trace.dropped.increment(1);
        }
    }
}

/// Nanoseconds since the Unix epoch; 0 for a time before it.
pub fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}
