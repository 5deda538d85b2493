//! What a module gives back is foreign: checked before anything of it goes further.

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde::de::IgnoredAny;

use super::{
    Failure, HttpBody, Kind, Outcome,
    state::{cut, without_nul},
};

/// Reasons and error texts stand in rows and logs.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// Enough for a request's own headers; each is a line that the endpoint's server has to hold.
const HEADERS_MAX: usize = 32;

/// Beside these, names that begin with `x-` or `ce-` (CloudEvents) are a module's to set. Those that say how a body
/// is framed, where it goes, who sends it, or that it is genuine are not.
const HEADERS: [&str; 8] = [
    "accept",
    "accept-language",
    "content-language",
    "idempotency-key",
    "link",
    "prefer",
    "traceparent",
    "tracestate",
];

/// Of the names that begin with `x-`: those that receivers trust to be a proxy's, and our own.
const RESERVED_PREFIXES: [&str; 4] = ["x-forwarded-", "x-real-", "x-eventpulse-", "x-webhook-"];

pub(super) fn payload(bytes: Vec<u8>, bytes_max: usize) -> Result<Outcome, Failure> {
    if bytes.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    // The parser that keeps nothing does not look at the letters of strings.
    let text =
        std::str::from_utf8(&bytes).map_err(|error| bad(format!("the payload is no text: {error}")))?;
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| bad(format!("the payload is no JSON: {error}")))?;
    Ok(Outcome::Payload(Bytes::from(bytes)))
}

pub(super) fn body(
    content_type: String,
    bytes: Vec<u8>,
    headers: Vec<(String, String)>,
    bytes_max: usize,
) -> Result<Outcome, Failure> {
    let head: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes.len() + content_type.len() + head > bytes_max {
        return Err(too_large(bytes_max));
    }
    if headers.len() > HEADERS_MAX {
        return Err(bad(format!("{} headers, of which there may be {HEADERS_MAX}", headers.len())));
    }
    let content_type = media_type(&content_type)
        .ok_or_else(|| bad(format!("the content type {} is none", quoted(&content_type))))?;
    let headers =
        headers.iter().map(|(name, value)| header(name, value)).collect::<Result<Vec<_>, Failure>>()?;
    Ok(Outcome::Body(HttpBody { content_type, bytes: Bytes::from(bytes), headers }))
}

fn media_type(text: &str) -> Option<HeaderValue> {
    let essence = text.split(';').next()?.trim_end();
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    let (kind, subtype) = essence.split_once('/')?;
    (token(kind) && token(subtype)).then(|| header_value(text)).flatten()
}

/// Letters beyond ASCII are allowed in no header, and every receiver would read others.
fn header_value(text: &str) -> Option<HeaderValue> {
    text.is_ascii().then(|| HeaderValue::from_str(text).ok()).flatten()
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let refused = || bad(format!("a module may not set the header {}", quoted(name)));
    // Lower case from here on.
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
    let prefixed = name.as_str().starts_with("x-") || name.as_str().starts_with("ce-");
    let reserved = RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
    if reserved || !(prefixed || HEADERS.contains(&name.as_str())) {
        return Err(refused());
    }
    let value = header_value(value).ok_or_else(|| {
        bad(format!("the header {} has a value that is no header's", quoted(name.as_str())))
    })?;
    Ok((name, value))
}

pub(super) fn too_large(bytes_max: usize) -> Failure {
    Failure { kind: Kind::TooLarge, message: format!("it gave more than {bytes_max} bytes at once") }
}

fn bad(message: String) -> Failure {
    Failure { kind: Kind::BadOutput, message: text(&message) }
}

fn quoted(text: &str) -> String {
    format!("{:?}", cut(text, 100))
}

/// A module's text, or one with parts of it, as it may be stored.
pub(super) fn text(text: &str) -> String {
    without_nul(cut(text, TEXT_BYTES_MAX))
}

/// The two checks, for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed {
    use super::{Bytes, HeaderName, HeaderValue, Outcome};

    pub(crate) fn payload(data: &[u8], max: usize) -> Option<Bytes> {
        match super::payload(data.to_vec(), max) {
            Ok(Outcome::Payload(bytes)) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn body(
        content_type: String,
        headers: Vec<(String, String)>,
        max: usize,
    ) -> Option<(HeaderValue, Vec<(HeaderName, HeaderValue)>)> {
        match super::body(content_type, Vec::new(), headers, max) {
            Ok(Outcome::Body(body)) => Some((body.content_type, body.headers)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, value: &str) -> Result<Outcome, Failure> {
        body("text/plain".to_owned(), vec![], vec![(name.to_owned(), value.to_owned())], 1000)
    }

    #[test]
    fn headers_outside_of_the_list_are_refused() {
        for name in [
            "Host",
            "content-length",
            "transfer-encoding",
            "connection",
            "authorization",
            "webhook-signature",
            "X-Forwarded-For",
            "x-real-ip",
            "X-Webhook-Signature",
            "",
            "x a",
            "x-\r\na",
            "x-é",
        ] {
            let failure = named(name, "v").unwrap_err();
            assert_eq!(failure.kind, Kind::BadOutput, "{name:?}");
        }
        for name in ["x-a", "X-Trace", "ce-id", "Idempotency-Key"] {
            assert!(named(name, "v").is_ok(), "{name}");
        }
        for value in ["a\r\nb", "a\nb", "\0", "é"] {
            assert!(named("x-a", value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn content_types_are_types() {
        for text in ["application/json", "text/plain; charset=utf-8", "application/cloudevents+json"] {
            assert!(media_type(text).is_some(), "{text}");
        }
        for text in
            ["", "json", "/", "text/", "/plain", "te xt/plain", "text/plain\r\nx: y", "text/plain/x", "a/é"]
        {
            assert!(media_type(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn payloads_are_json_and_nothing_beside_it() {
        for good in ["{}", " [1] ", "null", r#"{"a":"\u0000"}"#] {
            assert!(payload(good.as_bytes().to_vec(), 100).is_ok(), "{good}");
        }
        for bad in ["", "{", "{}x", "nul", "{\"a\":1,}", "\u{feff}{}", "NaN"] {
            assert_eq!(payload(bad.as_bytes().to_vec(), 100).unwrap_err().kind, Kind::BadOutput, "{bad}");
        }
        assert!(payload(b"\"\xff\"".to_vec(), 100).is_err());
        // A parser that called itself for each level would run out of stack.
        let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
        assert!(payload(deep, 1_000_000).is_ok());
        assert_eq!(payload(vec![b'1'; 101], 100).unwrap_err().kind, Kind::TooLarge);
    }

    #[test]
    fn many_headers_and_large_ones_are_refused() {
        let many = |n: usize, value: &str| {
            let headers = (0..n).map(|i| (format!("x-{i}"), value.to_owned())).collect();
            body("text/plain".to_owned(), vec![], headers, 1000)
        };
        assert!(many(HEADERS_MAX, "v").is_ok());
        assert_eq!(many(HEADERS_MAX + 1, "v").unwrap_err().kind, Kind::BadOutput);
        assert_eq!(many(2, &"v".repeat(600)).unwrap_err().kind, Kind::TooLarge);
    }
}
