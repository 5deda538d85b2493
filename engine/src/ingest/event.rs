//! The body of `POST /send-event`, checked without building a tree of it.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of an event type. It travels in a header and stands in an index-sized column.
const TYPE_BYTES_MAX: usize = 256;

/// What is wrong with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Stable, for programs.
    pub code: &'static str,
    pub message: String,
}

/// A valid event that is not yet anybody's.
#[derive(Debug)]
pub struct Draft {
    pub kind: Box<str>,
    /// The producer's bytes: one JSON value.
    pub payload: Bytes,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type", default)]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Draft {
    /// Reads a body. The payload is checked to be JSON and UTF-8 and is otherwise left as it is: any depth,
    /// any number, any escape.
    ///
    /// # Errors
    /// Says what to change and, where the text stops being JSON, at which line and column.
    pub fn parse(body: &Bytes) -> Result<Draft, Invalid> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(invalid("empty_body", "send a JSON object with `type` and `payload`"));
        }
        if let Err(error) = std::str::from_utf8(body) {
            return Err(invalid(
                "invalid_utf8",
                format!("the body is not UTF-8 at byte {}", error.valid_up_to()),
            ));
        }
        if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            // Still say where it stops being JSON, if it does.
            return Err(match serde_json::from_slice::<&RawValue>(body) {
                Ok(_) => invalid("not_an_object", "the body must be a JSON object with `type` and `payload`"),
                Err(error) => syntax(&error),
            });
        }
        let fields: Fields<'_> = serde_json::from_slice(body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => invalid("duplicate_field", format!("{error}")),
            _ => syntax(&error),
        })?;
        let kind = kind(fields.kind)?;
        // `Option` takes a JSON null for absence, and null is a payload like any other.
        let payload = match fields.payload {
            Some(raw) => own(body, raw.get().as_bytes()),
            None if has_null_payload(body) => Bytes::from_static(b"null"),
            None => {
                return Err(invalid(
                    "missing_payload",
                    "`payload` is missing; any JSON value will do, null too",
                ));
            }
        };
        Ok(Draft { kind, payload })
    }
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

fn kind(raw: Option<&RawValue>) -> Result<Box<str>, Invalid> {
    let Some(raw) = raw else {
        return Err(invalid("missing_type", "`type` is missing; send a string such as \"order.created\""));
    };
    let Ok(kind) = serde_json::from_str::<Cow<'_, str>>(raw.get()) else {
        return Err(invalid("invalid_type", "`type` must be a string such as \"order.created\""));
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
    Ok(kind.into())
}

/// Whether `payload` is there and null; asked only when it was not there as anything else.
fn has_null_payload(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Null {
        #[serde(rename = "payload")]
        _payload: (),
    }
    serde_json::from_slice::<Null>(body).is_ok()
}

fn invalid(code: &'static str, message: impl Into<String>) -> Invalid {
    Invalid { code, message: message.into() }
}

fn syntax(error: &serde_json::Error) -> Invalid {
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
