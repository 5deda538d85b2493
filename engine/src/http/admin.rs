//! The operator's own port: what is not for those who reach the gateway.

use std::sync::Arc;

use hyper::{Method, Request, Response, body::Incoming};

use super::{
    ApiError, Connection, Readiness, Service,
    reply::{self, Body},
};
use crate::metrics::Metrics;

/// Metrics, and health, so that a check of the process needs no certificate.
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
}

impl Service for Admin {
    async fn call(self: Arc<Self>, _: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        match (request.uri().path(), request.method()) {
            ("/health", &Method::GET) => reply::health("api-gateway"),
            ("/metrics", &Method::GET) => reply::metrics(&self.metrics),
            ("/livez", &Method::GET) => self.readiness.live(),
            ("/readyz", &Method::GET) => self.readiness.ready().await,
            ("/health" | "/metrics" | "/livez" | "/readyz", _) => ApiError::method("GET").into_response(),
            _ => ApiError::no_such_path().into_response(),
        }
    }
}
