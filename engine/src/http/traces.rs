//! The producer's `traceparent`. One that is not well formed, or comes twice, counts as none: an event is not refused for it.

use hyper::{HeaderMap, header::HeaderName};

use crate::{
    model::{Trace, Traced},
    trace::{Request, Tracer},
};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Begins a request's trace, if it has one. Costs one look-up where it has none and traces are off.
pub(super) fn begin(tracer: &Tracer, headers: &HeaderMap) -> Option<Box<Request>> {
    tracer.begin(headers.get(&TRACEPARENT).and_then(|_| given(headers)))
}

fn given(headers: &HeaderMap) -> Option<Trace> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(one), None) => Trace::parse(one.as_bytes()),
        _ => None,
    }
}

/// What the events of a request carry.
pub(super) fn decide(request: &mut Option<Box<Request>>, tracer: &Tracer, events: usize) -> Option<Traced> {
    request.as_mut().and_then(|request| request.decide(tracer, events))
}
