//! The two HTTP servers: the gateway, which is the API, and the dispatcher's small one.
//!
//! A crash here loses nothing that was answered with a 2xx: those events are committed.

mod admin;
mod answer;
mod api_keys;
mod asked;
mod body;
mod connection;
mod deliveries;
mod dlq;
mod error;
mod events;
mod gateway;
mod head;
mod manage;
mod pacer;
mod query;
mod ready;
mod replay;
mod reply;
mod request_id;
mod resend;
mod rotate_secret;
mod server;
mod settings;
mod test_event;
mod tls;
mod traces;
mod transform;
mod webhooks;
mod whole;
mod worst;

use std::sync::Arc;

use hyper::{Method, Request, Response, body::Incoming};

pub use self::{
    admin::Admin,
    connection::Connection,
    gateway::Gateway,
    pacer::Pacer,
    ready::Readiness,
    server::Server,
    test_event::TestCalls,
    tls::{Tls, Watch},
    transform::Turns,
};
use self::{error::ApiError, reply::Body};
use crate::metrics::Metrics;

/// Answers requests. One for each server.
pub trait Service: Send + Sync + 'static {
    fn call(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// The dispatcher's server: health and metrics.
pub struct Dispatcher {
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
}

impl Service for Dispatcher {
    async fn call(self: Arc<Self>, _: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        match (request.uri().path(), request.method()) {
            ("/health", &Method::GET) => reply::health("dispatcher-worker"),
            ("/livez", &Method::GET) => self.readiness.live(),
            ("/readyz", &Method::GET) => self.readiness.ready().await,
            ("/metrics", &Method::GET) => reply::metrics(&self.metrics),
            ("/health" | "/livez" | "/readyz" | "/metrics", _) => ApiError::method("GET").into_response(),
            _ => ApiError::no_such_path().into_response(),
        }
    }
}
