//! Responses.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::{Frame, SizeHint},
    header::{CONTENT_TYPE, HeaderValue},
};

use super::answer::Answer;
use crate::{
    ingest::Permit,
    metrics::{Metrics, PROCESS_HEADER},
};

/// The body of a response.
pub enum Body {
    Whole(Full<Bytes>),
    /// Of many events, written as the client reads.
    Events(Box<Answer>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Whole(body) => Pin::new(body).poll_frame(cx),
            Body::Events(answer) => Poll::Ready(answer.piece().map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(body) => body.is_end_stream(),
            Body::Events(answer) => answer.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(body) => body.size_hint(),
            Body::Events(_) => SizeHint::default(),
        }
    }
}

pub(super) fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    with(status, Body::Whole(Full::new(body)))
}

/// JSON that holds what its request held until it is written.
pub(super) fn held(status: StatusCode, body: Vec<u8>, permit: Option<Permit>) -> Response<Body> {
    struct Held(Vec<u8>, #[expect(dead_code, reason = "it is kept to be dropped")] Permit);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    json(
        status,
        match permit {
            Some(permit) => Bytes::from_owner(Held(body, permit)),
            None => body.into(),
        },
    )
}

pub(super) fn with(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The two fields of the contract, and nothing that could fail.
pub(super) fn health(service: &'static str) -> Response<Body> {
    let body = serde_json::json!({ "status": "ok", "service": service });
    json(StatusCode::OK, body.to_string().into())
}

pub(super) fn metrics(metrics: &Metrics) -> Response<Body> {
    let mut response = json(StatusCode::OK, metrics.render().into());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    let process = HeaderValue::try_from(format!("{:016x}", metrics.process)).expect("digits are a value");
    response.headers_mut().insert(PROCESS_HEADER, process);
    response
}
