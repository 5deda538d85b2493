//! A collector of traces: a receiver whose requests are read with OpenTelemetry's own definitions.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::span::SpanKind,
};
use prost::Message;

use crate::Receiver;

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub kind: SpanKind,
    /// In hex, as `traceparent` has it.
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub start: u64,
    pub end: u64,
    /// The message of its status, if that is an error.
    pub error: Option<String>,
    /// Names and values as text, in their order.
    pub attributes: Vec<(String, String)>,
}

impl Span {
    /// An attribute as text; empty when there is none.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// What a receiver got at `/v1/traces`, in the order of its arrival.
///
/// # Panics
/// When a request is no export in protocol buffers.
pub fn spans(receiver: &Receiver) -> Vec<Span> {
    receiver
        .requests()
        .iter()
        .flat_map(|request| {
            assert_eq!(request.path, "/v1/traces");
            assert_eq!(request.headers["content-type"], "application/x-protobuf");
            let export = ExportTraceServiceRequest::decode(&request.body[..]).expect("an export");
            export.resource_spans
        })
        .flat_map(|resource| {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = read(&attributes).into_iter().find(|(key, _)| key == "service.name");
            let service = service.expect("a service's name").1;
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| of(&service, &span)).collect::<Vec<_>>()
        })
        .collect()
}

fn of(service: &str, span: &opentelemetry_proto::tonic::trace::v1::Span) -> Span {
    Span {
        service: service.to_owned(),
        name: span.name.clone(),
        kind: span.kind(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        error: span.status.as_ref().filter(|status| status.code == 2).map(|status| status.message.clone()),
        attributes: read(&span.attributes),
    }
}

fn read(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{} is {other:?}", attribute.key),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
