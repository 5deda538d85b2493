//! Reading a request's body within its bounds of bytes and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request,
    body::{Body as _, Incoming},
    header::{CONTENT_TYPE, EXPECT, HeaderValue},
};

use super::ApiError;
use crate::{
    ingest::{self, Format, Permit, Room},
    model::AccountId,
};

/// What a client may still send of a body that is too large before the connection is closed on it. A client
/// that writes its whole request before it reads would see a reset instead of the 413 otherwise.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Bodies up to this size are bounded by the number of connections alone, and cost one comparison.
const FREE: usize = 16 << 10;

/// How much of a body is read, and for how long.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) max: usize,
    pub(super) timeout: Duration,
    /// Where a large one finds its bytes, and whose they are.
    pub(super) room: &'a Room,
    pub(super) account: AccountId,
}

/// A body that was read.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    /// What it holds of the room, if it is large: to be kept until the answer is written.
    pub(super) permit: Option<Permit>,
}

/// Refuses a body that does not say it is JSON.
pub(super) fn needs_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match format(headers)? {
        Format::Array => Ok(()),
        Format::Lines => Err(ApiError::media_type("send JSON with `Content-Type: application/json`")),
    }
}

/// How the events of a body are written, by what it says of itself. Nothing is taken for JSON.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, ApiError> {
    match headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) {
        None => Ok(Format::Array),
        Some(kind) if is_json(kind) => Ok(Format::Array),
        Some(kind) if is_lines(kind) => Ok(Format::Lines),
        Some(_) => Err(ApiError::media_type(
            "send JSON with `Content-Type: application/json`, or lines of JSON with `application/x-ndjson`",
        )),
    }
}

/// Reads a JSON body.
pub(super) async fn read_json(request: &mut Request<Incoming>, limits: Limits<'_>) -> Result<Body, ApiError> {
    needs_json(request.headers())?;
    read(request, limits).await
}

/// Reads a body, whatever it is.
pub(super) async fn read(request: &mut Request<Incoming>, limits: Limits<'_>) -> Result<Body, ApiError> {
    let waits = request.headers().contains_key(EXPECT);
    let body = request.body_mut();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limits.max {
        if !waits {
            drain(body).await;
        }
        return Err(ApiError::too_large(limits.max));
    }
    let mut permit = match announced {
        ..=FREE => None,
        _ => Some(limits.room.take(limits.account, announced)?),
    };
    match tokio::time::timeout(limits.timeout, collect(body, limits, announced, &mut permit)).await {
        Ok(Ok(bytes)) => Ok(Body { bytes, permit }),
        Ok(Err(Stop::TooLarge)) => {
            drop(permit);
            drain(body).await;
            Err(ApiError::too_large(limits.max))
        }
        Ok(Err(Stop::NoRoom(error))) => Err(error.into()),
        Ok(Err(Stop::Broken)) => Err(ApiError::broken_body()),
        Err(_) => Err(ApiError::body_timeout()),
    }
}

fn is_json(kind: &[u8]) -> bool {
    let kind = media_type(kind);
    kind == b"application/json" || (kind.starts_with(b"application/") && kind.ends_with(b"+json"))
}

fn is_lines(kind: &[u8]) -> bool {
    let kind = media_type(kind);
    [&b"application/x-ndjson"[..], b"application/ndjson", b"application/jsonl"].contains(&&kind[..])
}

pub(super) fn media_type(kind: &[u8]) -> Vec<u8> {
    kind.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase()
}

enum Stop {
    TooLarge,
    NoRoom(ingest::Error),
    Broken,
}

async fn collect(
    body: &mut Incoming,
    limits: Limits<'_>,
    announced: usize,
    permit: &mut Option<Permit>,
) -> Result<Bytes, Stop> {
    // Nearly every body is one frame, and then it is passed on as it came.
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Stop::Broken)?.into_data() else {
            continue;
        };
        let (old, new) = (first.len() + rest.len(), first.len() + rest.len() + data.len());
        if new > limits.max {
            return Err(Stop::TooLarge);
        }
        if new > announced.max(FREE) {
            hold(new, limits, permit).map_err(Stop::NoRoom)?;
        }
        if old == 0 {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(announced);
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        if new > rest.capacity() {
            // Twice as large, but no larger than what is held for it.
            let mut larger = BytesMut::with_capacity((rest.capacity() * 2).min(limits.max).max(new));
            larger.extend_from_slice(&rest);
            rest = larger;
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Takes the room that a body of no announced size needs by now: twice what there was, as its buffer grows.
fn hold(bytes: usize, limits: Limits<'_>, permit: &mut Option<Permit>) -> Result<(), ingest::Error> {
    match permit {
        None => *permit = Some(limits.room.take(limits.account, (bytes * 2).min(limits.max))?),
        Some(permit) if permit.bytes() < bytes => {
            permit.grow((bytes * 2).min(limits.max) - permit.bytes())?;
        }
        Some(_) => {}
    }
    Ok(())
}

/// Reads what a refused request still sends, within bounds. A client that waits for a 100 sends nothing.
pub(super) async fn discard(request: &mut Request<Incoming>) {
    if !request.headers().contains_key(EXPECT) && !request.body().is_end_stream() {
        drain(request.body_mut()).await;
    }
}

async fn drain(body: &mut Incoming) {
    let read = async {
        let mut seen = 0;
        while seen < DRAIN_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            seen += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // In time or not, the connection is closed after the answer.
    let _ = tokio::time::timeout(DRAIN_TIME, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_json_go_by_several_names_too() {
        for kind in ["application/x-ndjson", "Application/NDJSON; charset=utf-8", "application/jsonl"] {
            assert!(is_lines(kind.as_bytes()) && !is_json(kind.as_bytes()), "{kind}");
        }
        assert!(!is_lines(b"application/json") && !is_lines(b"text/plain"));
    }

    #[test]
    fn json_goes_by_several_names() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"] {
            assert!(is_json(kind.as_bytes()), "{kind}");
        }
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "text/json+x"]
        {
            assert!(!is_json(kind.as_bytes()), "{kind}");
        }
    }
}
