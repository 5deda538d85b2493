//! The body of `POST /send-event`, and the checks of every event, made without building a tree.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::model::is_operational;

/// Bytes of an event type. It travels in a header and stands in an index-sized column.
const TYPE_BYTES_MAX: usize = 256;

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Stable, for programs.
    pub code: &'static str,
    pub message: String,
    /// Which event is wrong, counted from 0, where there can be several.
    pub index: Option<usize>,
}

/// A valid event that is not yet anybody's.
#[derive(Debug)]
pub struct Draft {
    pub kind: Box<str>,
    /// The producer's bytes: one JSON value.
    pub payload: Bytes,
}

/// The fields of one event as they stand in the text. What else an object has is passed over.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    kind: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    twice: Option<&'static str>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    /// Of an object and nothing else: that is the only error of serde's category "data" that comes from here.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields<'de>, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

struct Object;

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Name {
    Type,
    Payload,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for Object {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields<'de>, M::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key()? {
            let (slot, name) = match name {
                Name::Type => (&mut fields.kind, "type"),
                Name::Payload => (&mut fields.payload, "payload"),
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                fields.twice = Some(name);
            }
        }
        Ok(fields)
    }
}

impl<'a> Fields<'a> {
    /// The type and the payload's text. The payload is known to be JSON and is otherwise left as it is: any depth,
    /// any number, any escape.
    pub(super) fn check(self) -> Result<(Cow<'a, str>, &'a str), Invalid> {
        if let Some(name) = self.twice {
            return Err(invalid("duplicate_field", format!("duplicate field `{name}`")));
        }
        let kind = kind(self.kind)?;
        match self.payload {
            Some(payload) => Ok((kind, payload.get())),
            None => Err(invalid("missing_payload", "`payload` is missing; any JSON value will do, null too")),
        }
    }
}

impl Draft {
    /// Reads a body.
    ///
    /// # Errors
    /// Says what to change and, where the text stops being JSON, at which line and column.
    pub fn parse(body: &Bytes) -> Result<Draft, Invalid> {
        let (kind, payload) = read(body)?;
        Ok(Draft { kind: kind.into(), payload: own(body, payload.as_bytes()) })
    }
}

/// The type and payload in the body of one event.
pub(super) fn read(body: &[u8]) -> Result<(Cow<'_, str>, &str), Invalid> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid("empty_body", "send a JSON object with `type` and `payload`"));
    }
    let text = std::str::from_utf8(body).map_err(not_utf8)?;
    if !text.trim_ascii_start().starts_with('{') {
        // Still say where it stops being JSON, if it does.
        return Err(match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => invalid("not_an_object", "the body must be a JSON object with `type` and `payload`"),
            Err(error) => syntax(&error),
        });
    }
    serde_json::from_str::<Fields<'_>>(text).map_err(|error| syntax(&error))?.check()
}

/// Payloads from this size on may share the request's buffer.
const SHARED_MIN: usize = 16 << 10;

/// The payload's bytes for as long as they are needed. A slice keeps the whole buffer it lies in, which is counted
/// nowhere: so only a large payload that is most of its request is not copied.
fn own(body: &Bytes, payload: &[u8]) -> Bytes {
    if payload.len() >= SHARED_MIN && payload.len() * 2 >= body.len() {
        body.slice_ref(payload)
    } else {
        Bytes::copy_from_slice(payload)
    }
}

fn kind(raw: Option<&RawValue>) -> Result<Cow<'_, str>, Invalid> {
    let Some(raw) = raw.map(RawValue::get).filter(|raw| *raw != "null") else {
        return Err(invalid("missing_type", "`type` is missing; send a string such as \"order.created\""));
    };
    let plain = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).filter(|t| !t.contains('\\'));
    let kind: Cow<'_, str> = match plain {
        Some(text) => text.into(),
        None => match serde_json::from_str::<String>(raw) {
            Ok(text) => text.into(),
            Err(_) => {
                return Err(invalid("invalid_type", "`type` must be a string such as \"order.created\""));
            }
        },
    };
    if kind.is_empty() {
        return Err(invalid("invalid_type", "`type` must not be empty"));
    }
    if kind.len() > TYPE_BYTES_MAX {
        return Err(invalid("invalid_type", format!("`type` must be at most {TYPE_BYTES_MAX} bytes")));
    }
    if kind.chars().any(char::is_control) {
        return Err(invalid("invalid_type", "`type` must not hold control characters"));
    }
    if is_operational(&kind) {
        return Err(invalid(
            "invalid_type",
            "`type` must not begin with `eventpulse.`, which is the engine's own",
        ));
    }
    Ok(kind)
}

pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { code, message: message.into(), index: None }
}

pub(super) fn not_utf8(error: std::str::Utf8Error) -> Invalid {
    invalid("invalid_utf8", format!("the body is not UTF-8 at byte {}", error.valid_up_to()))
}

pub(super) fn syntax(error: &serde_json::Error) -> Invalid {
    invalid("invalid_json", format!("the body is not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<(String, String), &'static str> {
        Draft::parse(&Bytes::copy_from_slice(body.as_bytes()))
            .map(|d| (d.kind.into(), String::from_utf8(d.payload.to_vec()).unwrap()))
            .map_err(|e| e.code)
    }

    #[test]
    fn payloads_are_kept_byte_for_byte() {
        for payload in [
            "null",
            "0",
            "\"\"",
            "[ 1 ,2 ]",
            "{\"b\":1,\"a\":2,\"b\":3}",
            "1e400",
            "-0.10",
            "\"\\u0000\"",
            "\"\\ud800\"",
            "\"é\\u00e9\"",
            "{ }",
        ] {
            let body = format!("{{\"payload\":{payload},\"type\":\"a.b\"}}");
            assert_eq!(parse(&body), Ok(("a.b".into(), payload.into())));
        }
    }

    #[test]
    fn a_deep_payload_costs_no_stack() {
        let payload = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!("{{\"type\":\"deep\",\"payload\":{payload}}}");
        assert_eq!(parse(&body), Ok(("deep".into(), payload)));
    }

    #[test]
    fn wrong_bodies_are_told_apart() {
        let cases = [
            ("", "empty_body"),
            (" \n", "empty_body"),
            ("{", "invalid_json"),
            ("{\"type\":\"a\",\"payload\":1} x", "invalid_json"),
            ("{\"type\":\"a\",\"payload\":{\"b\":}}", "invalid_json"),
            ("{\"type\":\"a\",\"payload\":\"\u{1}\"}", "invalid_json"),
            ("[1]", "not_an_object"),
            ("\"x\"", "not_an_object"),
            ("nonsense", "invalid_json"),
            ("{\"payload\":1}", "missing_type"),
            ("{\"type\":null,\"payload\":1}", "missing_type"),
            ("{\"type\":1,\"payload\":1}", "invalid_type"),
            ("{\"type\":\"\",\"payload\":1}", "invalid_type"),
            ("{\"type\":\"a\\u0000\",\"payload\":1}", "invalid_type"),
            ("{\"type\":\"a\\nb\",\"payload\":1}", "invalid_type"),
            ("{\"type\":\"\\ud800\",\"payload\":1}", "invalid_type"),
            ("{\"type\":\"eventpulse.webhook.disabled\",\"payload\":1}", "invalid_type"),
            ("{\"type\":\"a\"}", "missing_payload"),
            ("{\"type\":\"a\",\"type\":\"b\",\"payload\":1}", "duplicate_field"),
            ("{\"type\":\"a\",\"payload\":1,\"payload\":2}", "duplicate_field"),
        ];
        for (body, code) in cases {
            assert_eq!(parse(body), Err(code), "{body}");
        }
        let long = format!("{{\"type\":\"{}\",\"payload\":1}}", "x".repeat(257));
        assert_eq!(parse(&long), Err("invalid_type"));
        let bytes = Bytes::from_static(b"{\"type\":\"a\",\"payload\":\"\xff\"}");
        assert_eq!(Draft::parse(&bytes).unwrap_err().code, "invalid_utf8");
    }

    /// A slice of the request once kept all of it in memory, counted as the payload alone: a large field that nobody
    /// asked for filled the queue, the ring and the lanes.
    #[test]
    fn a_small_payload_does_not_keep_a_large_request() {
        let within = |body: &Bytes, payload: &Bytes| body.as_ptr_range().contains(&payload.as_ptr());
        let filler = "x".repeat(100_000);
        let body = Bytes::from(format!("{{\"type\":\"a\",\"payload\":{{}},\"x\":\"{filler}\"}}"));
        assert!(!within(&body, &Draft::parse(&body).unwrap().payload));
        let body = Bytes::from(format!("{{\"type\":\"a\",\"payload\":\"{filler}\"}}"));
        assert!(within(&body, &Draft::parse(&body).unwrap().payload), "a large one is not copied");
    }

    #[test]
    fn a_syntax_error_names_its_place() {
        let error = Draft::parse(&Bytes::from_static(b"{\"type\":\"a\",\n\"payload\":}")).unwrap_err();
        assert!(error.message.contains("line 2 column 11"), "{}", error.message);
    }
}
