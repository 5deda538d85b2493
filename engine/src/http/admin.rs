//! The operator's own port: what is not for those who reach the gateway.

use std::sync::Arc;

use hyper::{Method, Request, Response, body::Incoming};

use super::{
    ApiError, Connection, Readiness, Service,
    reply::{self, Body},
    request_id::RequestId,
    worst,
};
use crate::{metrics::Metrics, store::Store};

/// Metrics, the worst webhooks, and health, so that a check of the process needs no certificate.
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    /// With a pool of one connection: however many ask, Postgres has one question at a time.
    pub store: Store,
}

impl Service for Admin {
    async fn call(self: Arc<Self>, _: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        match (request.uri().path(), request.method()) {
            ("/health", &Method::GET) => reply::health("api-gateway"),
            ("/metrics", &Method::GET) => reply::metrics(&self.metrics),
            ("/livez", &Method::GET) => self.readiness.live(),
            ("/readyz", &Method::GET) => self.readiness.ready().await,
            ("/admin/worst-webhooks", &Method::GET) => self.worst(&request).await,
            ("/health" | "/metrics" | "/livez" | "/readyz" | "/admin/worst-webhooks", _) => {
                ApiError::method("GET").into_response()
            }
            _ => ApiError::no_such_path().into_response(),
        }
    }
}

impl Admin {
    async fn worst(&self, request: &Request<Incoming>) -> Response<Body> {
        let mut id = RequestId::of(request.headers());
        let mut response = worst::list(&self.store, request.uri().query()).await.unwrap_or_else(|error| {
            id.or_made();
            error.log(&id);
            error.into_response()
        });
        id.tell(response.headers_mut());
        response
    }
}
