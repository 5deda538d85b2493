//! The gateway: which path and method is which call.

use std::{sync::Arc, time::Duration};

use hyper::{Method, Request, Response, body::Incoming};
use tokio::sync::Semaphore;

use super::{
    ApiError, Connection, Pacer, Readiness, Service, api_keys, body, deliveries, dlq, events, manage, replay,
    reply::{self, Body},
    request_id::RequestId,
    resend, rotate_secret, test_event,
    transform::{self, Turns},
    webhooks, whole,
};
use crate::{
    config::Config,
    ingest::{Counter, Pending, Queue, Room, keys::Keys},
    metrics::Metrics,
    model::{AccountId, Own},
    retry::schedule::Policy,
    store::Store,
    stream::{breaker::Breakers, consumer::Claims, due::Due},
    trace::Tracer,
    transform::Host,
};

/// What the gateway's calls need.
pub struct Gateway {
    pub config: Arc<Config>,
    pub store: Store,
    pub keys: Keys,
    pub queue: Queue<Pending>,
    /// For requests that are accepted whole.
    pub counter: Counter,
    /// Of refusals.
    pub pacer: Pacer,
    /// For large bodies and their answers.
    pub room: Room,
    /// How many large bodies are parsed at a time.
    pub parsers: Semaphore,
    pub due: Due,
    /// Only looked at, to say who holds an entry.
    pub claims: Claims,
    /// Likewise, to say which are open.
    pub breakers: Breakers,
    /// Calls that an account asks for, to try its endpoint.
    pub tests: test_event::TestCalls,
    /// Checks, compiles and tries webhooks' own modules.
    pub transforms: Arc<Host>,
    pub uploads: Turns,
    pub dry_runs: Turns,
    pub readiness: Readiness,
    /// How long a new round may take.
    pub policy: Policy,
    pub tracer: Tracer,
    pub metrics: Arc<Metrics>,
}

impl Service for Gateway {
    async fn call(
        self: Arc<Self>,
        connection: Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let mut id = RequestId::of(request.headers());
        // The one hot path is taken before anything is made of the rest: a request carries the future of every
        // call it may become, so the others are boxed.
        let routed = match (request.uri().path(), request.method()) {
            ("/send-event", &Method::POST) => events::send(&self, &connection, &mut request).await,
            _ => Box::pin(self.bounded(&connection, &mut request)).await,
        };
        let mut response = match routed {
            Ok(response) => response,
            Err(error) => {
                id.or_made();
                error.log(&id);
                // A client that writes its whole request before it reads would see a reset, not this answer.
                if !error.closes() {
                    Box::pin(body::discard(&mut request)).await;
                }
                error.into_response()
            }
        };
        let http = &self.metrics.http;
        match response.status().as_u16() {
            ..400 => http.ok.increment(1),
            400..500 => http.refused.increment(1),
            _ => http.failed.increment(1),
        }
        id.tell(response.headers_mut());
        response
    }
}

impl Gateway {
    /// Beyond every time-out within a call: only a Postgres that stalls in a query takes longer.
    fn patience(&self) -> Duration {
        self.config.http.body_timeout + self.config.ingest.commit_timeout * 2 + Duration::from_secs(5)
    }

    async fn bounded(
        &self,
        connection: &Connection,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let mut patience = self.patience();
        let path = request.uri().path();
        if path.ends_with("/test") {
            patience += self.tests.patience();
        } else if path.contains("/transform") {
            patience += transform::patience(self, path);
        }
        let routed = tokio::time::timeout(patience, self.route(connection, request)).await;
        routed.unwrap_or_else(|_| Err(ApiError::unavailable().caused_by("it took too long".to_owned())))
    }

    /// How long after now a delivery to a webhook is given up, in milliseconds.
    pub(super) fn expiry_ms(&self, own: &Own) -> i64 {
        i64::try_from(self.policy.of(own).expiry().as_millis()).unwrap_or(i64::MAX)
    }

    /// The bounds of a body with one event or form.
    pub(super) fn limits(&self, account: AccountId) -> body::Limits<'_> {
        let http = &self.config.http;
        body::Limits { max: http.body_bytes_max, timeout: http.body_timeout, room: &self.room, account }
    }

    /// Every path but `POST /send-event`.
    async fn route(
        &self,
        connection: &Connection,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let path = request.uri().path().to_owned();
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(&path).split('/').collect();
        let (get, post) = (request.method() == Method::GET, request.method() == Method::POST);
        match segments[..] {
            ["send-events"] if post => whole::send_many(self, connection, request).await,
            ["events"] if get => events::list(self, request).await,
            ["events", id] if get => deliveries::event(self, request, id).await,
            ["events", id, "attempts"] if get => deliveries::attempts(self, request, id).await,
            ["events", id, "resend"] if post => resend::resend(self, request, id).await,
            ["register-webhook"] if post => webhooks::register(self, request).await,
            ["api-keys"] if post => api_keys::make(self, request).await,
            ["api-keys"] if get => api_keys::list(self, request).await,
            ["api-keys", id] if request.method() == Method::DELETE => {
                api_keys::revoke(self, request, id).await
            }
            ["dlq"] if get => dlq::list(self, request).await,
            ["dlq", "retry"] if post => dlq::retry_many(self, request).await,
            ["dlq", id, "retry"] if post => dlq::retry(self, request, id).await,
            ["webhooks"] if get => manage::list(self, request).await,
            ["webhooks", id] if get => manage::show(self, request, id).await,
            ["webhooks", id] if request.method() == Method::PATCH => manage::change(self, request, id).await,
            ["webhooks", id] if request.method() == Method::DELETE => manage::delete(self, request, id).await,
            ["webhooks", id, "test"] if post => test_event::test(self, request, id).await,
            ["webhooks", id, "rotate-secret"] if post => rotate_secret::rotate(self, request, id).await,
            ["webhooks", id, "replay"] if post => replay::replay(self, request, id).await,
            ["webhooks", id, "transform", ref rest @ ..] => transform::route(self, request, id, rest).await,
            ["health"] if get => Ok(reply::health("api-gateway")),
            // With a port of its own it is nowhere else.
            ["metrics"] if self.config.admin.address.0.is_some() => Err(ApiError::no_such_path()),
            ["livez"] if get => Ok(self.readiness.live()),
            ["readyz"] if get => Ok(self.readiness.ready().await),
            ["metrics"] if get => Ok(reply::metrics(&self.metrics)),
            ["send-event" | "send-events" | "register-webhook"]
            | ["dlq", "retry"]
            | ["dlq", _, "retry"]
            | ["events", _, "resend"]
            | ["webhooks", _, "test" | "replay" | "rotate-secret"] => Err(ApiError::method("POST")),
            ["api-keys"] => Err(ApiError::method("GET, POST")),
            ["api-keys", _] => Err(ApiError::method("DELETE")),
            ["webhooks", _] => Err(ApiError::method("GET, PATCH, DELETE")),
            ["events" | "dlq" | "webhooks" | "health" | "livez" | "readyz" | "metrics"]
            | ["events", _]
            | ["events", _, "attempts"] => Err(ApiError::method("GET")),
            _ => Err(ApiError::no_such_path()),
        }
    }
}
