//! Responses.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};

use crate::metrics::Metrics;

pub(super) type Body = Full<Bytes>;

pub(super) fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body));
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
    let mut response = Response::new(Full::new(metrics.render().into()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
