//! `GET /livez` and `GET /readyz`: whether to restart this process, and whether to send it requests.
//!
//! Anybody may ask, and often: what is found holds for a second, and reasons are words of ours, never an error's text
//! with an address in it.

use std::time::Duration;

use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use super::reply::{self, Body};
use crate::{store::Store, stream::consumer::Claims};

/// How long a look holds. A balancer that asks ten times a second costs no more than one that asks once.
const HOLDS: Duration = Duration::from_secs(1);

/// A store that takes longer has not answered. Long enough for a busy machine, and for the first connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one role looks at.
pub struct Readiness {
    service: &'static str,
    /// With a pool of its own: waiting for a connection behind others' queries would look like an outage.
    store: Store,
    redis: Claims,
    /// A gateway accepts events without Redis, so it must not be taken out of service for that.
    needs_redis: bool,
    stopping: watch::Receiver<bool>,
    last: Mutex<Option<(Instant, Seen)>>,
}

/// What was found out; none where all is well.
#[derive(Clone, Copy)]
struct Seen {
    postgres: Option<&'static str>,
    redis: Option<&'static str>,
    migrations: Option<&'static str>,
}

impl Readiness {
    pub fn new(
        service: &'static str,
        store: Store,
        redis: Claims,
        needs_redis: bool,
        stopping: watch::Receiver<bool>,
    ) -> Readiness {
        Readiness { service, store, redis, needs_redis, stopping, last: Mutex::new(None) }
    }

    /// That it answers is the answer.
    pub(super) fn live(&self) -> Response<Body> {
        reply::json(StatusCode::OK, json!({ "status": "live", "service": self.service }).to_string().into())
    }

    /// 200 when requests or work may come, and else 503; each check with its reason.
    pub(super) async fn ready(&self) -> Response<Body> {
        let seen = self.seen().await;
        let stopping = self.stopping.borrow().then_some("this process is about to end");
        let checks = [
            ("postgres", seen.postgres, true),
            ("migrations", seen.migrations, true),
            ("redis", seen.redis, self.needs_redis),
            ("draining", stopping, true),
        ];
        let ready = checks.iter().all(|(_, reason, needed)| reason.is_none() || !needed);
        let check = |(name, reason, needed): &(&str, Option<&str>, bool)| {
            let mut check = json!({ "name": name, "ok": reason.is_none(), "needed": needed });
            if let Some(reason) = reason {
                check["reason"] = Value::from(*reason);
            }
            check
        };
        let body = json!({
            "status": if ready { "ready" } else { "not ready" },
            "service": self.service,
            "checks": checks.iter().map(check).collect::<Vec<_>>(),
        });
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        reply::json(status, body.to_string().into())
    }

    /// Of many who ask at once one looks, and the others wait for it.
    async fn seen(&self) -> Seen {
        let mut last = self.last.lock().await;
        match *last {
            Some((at, seen)) if at.elapsed() < HOLDS => seen,
            _ => {
                let seen = self.look().await;
                *last = Some((Instant::now(), seen));
                seen
            }
        }
    }

    async fn look(&self) -> Seen {
        let mut redis = self.redis.clone();
        let (schema, length) =
            tokio::join!(timeout(PATIENCE, self.store.schema()), timeout(PATIENCE, redis.stream_length()));
        let (postgres, migrations) = match schema {
            Ok(Ok(schema)) if schema.is_old() => (None, Some("the schema is older than this program")),
            Ok(Ok(_)) => (None, None),
            Ok(Err(_)) => (Some("it does not answer"), Some("not known without Postgres")),
            Err(_) => (Some("no answer in time"), Some("not known without Postgres")),
        };
        let redis = match length {
            Ok(Ok(_)) => None,
            Ok(Err(_)) => Some("it does not answer"),
            Err(_) => Some("no answer in time"),
        };
        Seen { postgres, redis, migrations }
    }
}
