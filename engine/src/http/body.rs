//! Reading a request's body within its bounds of bytes and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    header::{CONTENT_TYPE, EXPECT},
};

use super::ApiError;

/// What a client may still send of a body that is too large before the connection is closed on it. A client
/// that writes its whole request before it reads would see a reset instead of the 413 otherwise.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Reads a JSON body.
pub(super) async fn read_json(
    request: &mut Request<Incoming>,
    max: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    if let Some(kind) = request.headers().get(CONTENT_TYPE)
        && !is_json(kind.as_bytes())
    {
        return Err(ApiError::media_type());
    }
    let waits = request.headers().contains_key(EXPECT);
    let body = request.body_mut();
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        if !waits {
            drain(body).await;
        }
        return Err(ApiError::too_large(max));
    }
    match tokio::time::timeout(timeout, collect(body, max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Stop::TooLarge)) => {
            drain(body).await;
            Err(ApiError::too_large(max))
        }
        Ok(Err(Stop::Broken)) => Err(ApiError::broken_body()),
        Err(_) => Err(ApiError::body_timeout()),
    }
}

fn is_json(kind: &[u8]) -> bool {
    let kind = kind.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    kind == b"application/json" || (kind.starts_with(b"application/") && kind.ends_with(b"+json"))
}

enum Stop {
    TooLarge,
    Broken,
}

async fn collect(body: &mut Incoming, max: usize) -> Result<Bytes, Stop> {
    // Nearly every body is one frame, and then it is passed on as it came.
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Stop::Broken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > max {
            return Err(Stop::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
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
