//! The spans of a dispatcher: how long an event waited for it, and each of its attempts. Events without a trace cost one look at
//! a pointer.

use std::time::SystemTime;

use super::{Context, Delivery};
use crate::{
    deliver::{post::Post, request::TRACEPARENT},
    model::{Batch, Event},
    store::settle::{Record, Status},
    trace::{Kind, Span, SpanId, Tracer, Value, nanos},
};

/// An attempt under way whose span will be exported.
pub(super) struct Attempt {
    id: SpanId,
    start: SystemTime,
}

/// Notes that the events of a batch are in hand: from the commit, by Postgres' clock, until now.
pub(super) fn taken(tracer: &Tracer, batch: &Batch) {
    if !tracer.is_on() {
        return;
    }
    let now = nanos(SystemTime::now());
    for event in &batch.events {
        let Some(trace) = event.trace.as_deref() else { continue };
        let Some(id) = tracer.span(trace) else { continue };
        tracer.record(Span {
            trace: trace.id,
            id,
            parent: Some(trace.parent),
            flags: trace.flags,
            name: "stream",
            kind: Kind::Internal,
            start: nanos(event.created_at.into()),
            end: now,
            error: None,
            attributes: vec![("eventpulse.event.id", Value::Number(event.id.0))],
        });
    }
}

/// Tells the receiver the trace, if the event has one: the attempt's own span is the parent of what the receiver does, or
/// the producer's where no span is exported.
pub(super) fn begin(tracer: &Tracer, event: &Event, request: &mut Post) -> Option<Attempt> {
    let trace = event.trace.as_deref()?;
    let id = tracer.span(trace);
    // Digits and hyphens.
    if let Ok(value) = str::from_utf8(&trace.header(id.unwrap_or(trace.parent))) {
        request.put(TRACEPARENT, |text| text.push_str(value));
    }
    id.map(|id| Attempt { id, start: SystemTime::now() })
}

/// The attempt is over, and this is what will be recorded of it.
pub(super) fn end(context: &Context, span: Attempt, delivery: &Delivery, record: &Record) {
    let (Some(trace), Some(attempt)) = (delivery.event.trace.as_deref(), &record.attempt) else { return };
    let text = |text: &str| Value::Text(text.to_owned());
    let (outcome, failed) = match attempt.status {
        Status::Success => ("success", false),
        Status::Failed => ("failed", true),
        Status::Dead => ("dead", true),
        Status::Filtered => ("filtered", false),
    };
    let mut attributes = vec![
        ("http.request.method", text("POST")),
        ("eventpulse.event.id", Value::Number(delivery.event.id.0)),
        ("eventpulse.webhook.id", Value::Number(delivery.target.webhook.id.0)),
        ("eventpulse.round", Value::Number(delivery.tried.round.into())),
        ("eventpulse.attempt", Value::Number(delivery.tried.attempt.into())),
        ("eventpulse.outcome", text(outcome)),
    ];
    // The URL is not told: there are secrets in the paths of some.
    attributes.push(("server.address", text(delivery.target.host())));
    attributes.extend(attempt.code.map(|code| ("http.response.status_code", Value::Number(code.into()))));
    attributes.extend(failed.then(|| ("error.type", text(attempt.reason_code))));
    context.tracer.record(Span {
        trace: trace.id,
        id: span.id,
        parent: Some(trace.parent),
        flags: trace.flags,
        name: "attempt",
        kind: Kind::Client,
        start: nanos(span.start),
        end: nanos(SystemTime::now()),
        error: failed.then(|| attempt.error.clone().unwrap_or_default()),
        attributes,
    });
}
