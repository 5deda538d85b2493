//! A producer's request: which trace its events belong to, and the span from its beginning to its commit.

use std::time::SystemTime;

use super::{Kind, Span, SpanId, Tracer, Value, nanos, sample};
use crate::model::{EventId, RANDOM, SAMPLED, Trace, Traced};

/// What is known of a request's trace. There is none for most requests.
pub struct Request {
    trace: Trace,
    /// The producer's span; none where the trace is our own.
    caller: Option<SpanId>,
    start: SystemTime,
}

impl Tracer {
    /// Begins with what the producer gave. Without that, and unless this trace of our own is chosen, there is nothing.
    pub fn begin(&self, given: Option<Trace>) -> Option<Box<Request>> {
        if given.is_none() && self.0.is_none() {
            return None;
        }
        let start = SystemTime::now();
        if let Some(trace) = given {
            return Some(Box::new(Request { trace, caller: Some(trace.parent), start }));
        }
        let shared = self.0.as_ref()?;
        let id = shared.ids.trace();
        let trace = Trace { id, parent: [0; 8], flags: SAMPLED | RANDOM, recorded: false };
        sample::is_chosen(&id, shared.ratio).then(|| Box::new(Request { trace, caller: None, start }))
    }
}

impl Request {
    /// Decides over a request with `events` events: what they carry, if anything. A sampled trace is exported as far as
    /// the second's budget goes; of a request with many events that may be some of them. The rest is passed on.
    pub fn decide(&mut self, tracer: &Tracer, events: usize) -> Option<Traced> {
        let mut recorded = 0;
        if let Some(shared) = &tracer.0
            && self.trace.is_sampled()
        {
            recorded = shared.budget.take(events, nanos(self.start) / 1_000_000_000);
            shared.metrics.trace.refused.increment((events - recorded) as u64);
            if recorded > 0 {
                self.trace = Trace { parent: shared.ids.span(), recorded: true, ..self.trace };
            }
        }
        // A trace that nobody exports and nobody asked for is none.
        (recorded > 0 || self.caller.is_some()).then_some(Traced { trace: self.trace, recorded })
    }

    /// Its events are committed, and `first` is the first of them.
    pub fn committed(self, tracer: &Tracer, first: EventId, events: usize) {
        if !self.trace.recorded {
            return;
        }
        tracer.record(Span {
            trace: self.trace.id,
            id: self.trace.parent,
            parent: self.caller,
            flags: self.trace.flags,
            name: "ingest",
            kind: Kind::Producer,
            start: nanos(self.start),
            end: nanos(SystemTime::now()),
            error: None,
            attributes: vec![
                ("eventpulse.event.id", Value::Number(first.0)),
                ("eventpulse.events", Value::Number(i64::try_from(events).unwrap_or(i64::MAX))),
            ],
        });
    }
}
