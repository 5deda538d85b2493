//! Spans in the protocol buffers of OTLP 1 (opentelemetry-proto, `trace/v1/trace.proto` and what it needs). Of each message
//! only the fields that are sent: the tests' collector reads them with OpenTelemetry's own definitions.

use prost::Message;

use super::{Kind, Span, Value};

/// Who exports.
#[derive(Clone)]
pub(super) struct Resource(ResourceMessage);

impl Resource {
    pub(super) fn new(service: &str, instance: i64) -> Resource {
        let text = |key: &str, text: String| attribute(key, Value::Text(text));
        Resource(ResourceMessage {
            attributes: vec![
                text("service.name", service.to_owned()),
                text("service.version", env!("CARGO_PKG_VERSION").to_owned()),
                text("service.instance.id", instance.to_string()),
            ],
        })
    }
}

/// The body of an export.
pub(super) fn encode(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let scope = Scope { name: "eventpulse".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scoped = ScopeSpans { scope: Some(scope), spans: spans.iter().map(message).collect() };
    let all = ResourceSpans { resource: Some(resource.0.clone()), scope_spans: vec![scoped] };
    Export { resource_spans: vec![all] }.encode_to_vec()
}

/// Spans that a collector refused although it took the export.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let partial = ExportAnswer::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.and_then(|partial| u64::try_from(partial.rejected_spans).ok()).unwrap_or(0)
}

fn message(span: &Span) -> SpanMessage {
    SpanMessage {
        trace_id: span.trace.to_vec(),
        span_id: span.id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name.to_owned(),
        kind: match span.kind {
            Kind::Internal => 1,
            Kind::Client => 3,
            Kind::Producer => 4,
        },
        start: span.start,
        end: span.end.max(span.start),
        attributes: span.attributes.iter().map(|(key, value)| attribute(key, value.clone())).collect(),
        // 0 is unset, 2 an error.
        status: span.error.clone().map(|message| Status { message, code: 2 }),
        flags: u32::from(span.flags),
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Number(n) => AnyValue { text: None, number: Some(n) },
        Value::Text(text) => AnyValue { text: Some(text), number: None },
    };
    KeyValue { key: key.to_owned(), value: Some(value) }
}

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<ResourceMessage>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMessage {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

/// One of both: the two that we send of a choice of seven.
#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportAnswer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
}
