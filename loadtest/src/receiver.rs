//! A receiver that keeps a ledger: which events came, how often, and whether they were signed.
//!
//! | request | |
//! | --- | --- |
//! | `POST /hook/NAME?status=500&delay_ms=100&fail_every=3&hang=true` | a delivery; what is left out is as usual |
//! | `PUT /secrets/NAME` | the webhook's secret, to check signatures with |
//! | `PUT /manner/NAME` with such a query as body | how the hook behaves from now on, whatever is asked for; `atOnce` begins anew |
//! | `GET /ledger`, `DELETE /ledger` | what came so far; forget it |
//! | `GET /counts` | the same of all hooks together and without times, which is little work however many there are |

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::wire;

/// Events remembered of one hook. Past it the ledger says that it overflowed.
const IDS_MAX: usize = 20_000_000;

/// Hooks with a name of their own.
const HOOKS_MAX: usize = 10_000;

/// What came, of one hook or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Requests.
    pub calls: u64,
    /// Events that were answered with 2xx.
    pub unique: u64,
    /// Requests with an event that had been answered with 2xx before.
    pub duplicates: u64,
    pub bad_signatures: u64,
    /// Requests without a signature, or for a hook whose secret is not known.
    pub unsigned: u64,
    /// Most requests at a time.
    pub at_once: u64,
    /// More events came than are remembered: `unique` and `duplicates` mean nothing any more.
    pub overflow: bool,
}

/// The answer to `GET /ledger`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    #[serde(flatten)]
    pub all: Counts,
    pub hooks: HashMap<String, Counts>,
    /// From when its event was due to arrival of what was answered with 2xx, of each hook. Events that do not say when they
    /// were due are left out.
    pub latency: HashMap<String, Latency>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Default)]
struct Hook {
    mac: Option<Hmac<Sha256>>,
    counts: Counts,
    /// In place of what a request asks for.
    manner: Option<Manner>,
    /// Requests that have no answer yet.
    inside: u64,
    delivered: HashSet<u64>,
    late: Option<Histogram<u32>>,
}

/// All hooks.
#[derive(Default)]
pub struct Ledger {
    hooks: Mutex<HashMap<String, Hook>>,
}

/// How a hook behaves, from its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Manner {
    status: u16,
    delay: Duration,
    fail_every: u64,
    hang: bool,
}

impl Manner {
    fn of(query: &str) -> Manner {
        let mut manner = Manner { status: 200, delay: Duration::ZERO, fail_every: 0, hang: false };
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "status" => manner.status = value.parse().unwrap_or(200),
                "delay_ms" => manner.delay = Duration::from_millis(value.parse().unwrap_or(0)),
                "fail_every" => manner.fail_every = value.parse().unwrap_or(0),
                "hang" => manner.hang = value == "true",
                _ => {}
            }
        }
        manner
    }
}

impl Ledger {
    fn hooks(&self) -> MutexGuard<'_, HashMap<String, Hook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, name: &str, secret: &[u8]) {
        if let Some(hook) = hook_of(&mut self.hooks(), name) {
            hook.mac = Hmac::new_from_slice(secret).ok();
        }
    }

    fn behave(&self, name: &str, manner: Manner) {
        if let Some(hook) = hook_of(&mut self.hooks(), name) {
            hook.manner = Some(manner);
            hook.counts.at_once = hook.inside;
        }
    }

    /// Counts a request in until what is returned is dropped, also when its connection ends first.
    fn enter(self: &Arc<Ledger>, name: &str, asked: Manner) -> (Manner, Inside) {
        let mut manner = asked;
        if let Some(hook) = hook_of(&mut self.hooks(), name) {
            hook.inside += 1;
            hook.counts.at_once = hook.counts.at_once.max(hook.inside);
            manner = hook.manner.unwrap_or(asked);
        }
        (manner, Inside { ledger: self.clone(), name: name.to_owned() })
    }

    /// Notes a request; returns the status to answer with.
    fn note(
        &self,
        name: &str,
        manner: Manner,
        event: Option<u64>,
        signature: Option<&[u8]>,
        body: &[u8],
    ) -> u16 {
        let mut hooks = self.hooks();
        let Some(hook) = hook_of(&mut hooks, name) else { return 507 };
        hook.counts.calls += 1;
        match (&hook.mac, signature) {
            (Some(mac), Some(signature)) if !is_signed(mac, signature, body) => {
                hook.counts.bad_signatures += 1
            }
            (Some(_), Some(_)) => {}
            _ => hook.counts.unsigned += 1,
        }
        let fails = manner.fail_every > 0 && hook.counts.calls.is_multiple_of(manner.fail_every);
        let status = if fails { 500 } else { manner.status };
        let Some(event) = event else { return 400 };
        if hook.delivered.contains(&event) {
            hook.counts.duplicates += 1;
        } else if (200..300).contains(&status) {
            hook.counts.overflow |= hook.delivered.len() >= IDS_MAX;
            if !hook.counts.overflow {
                hook.delivered.insert(event);
                hook.counts.unique += 1;
                if let Some(micros) = age(body) {
                    // Up to ten minutes: a histogram without a bound would clamp to what it has room for at first.
                    let new = || Histogram::new_with_bounds(1, 600_000_000, 3).expect("sensible bounds");
                    hook.late.get_or_insert_with(new).saturating_record(micros);
                }
            }
        }
        status
    }

    fn total(&self) -> Counts {
        let mut all = Counts::default();
        for Hook { counts, .. } in self.hooks().values() {
            all.calls += counts.calls;
            all.unique += counts.unique;
            all.duplicates += counts.duplicates;
            all.bad_signatures += counts.bad_signatures;
            all.unsigned += counts.unsigned;
            all.at_once = all.at_once.max(counts.at_once);
            all.overflow |= counts.overflow;
        }
        all
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary { all: self.total(), ..Summary::default() };
        for (name, hook) in self.hooks().iter() {
            summary.hooks.insert(name.clone(), hook.counts.clone());
            if let Some(late) = &hook.late {
                let [p50, p99] = [0.5, 0.99].map(|q| late.value_at_quantile(q) as f64 / 1000.0);
                summary.latency.insert(name.clone(), Latency { p50, p99, max: late.max() as f64 / 1000.0 });
            }
        }
        summary
    }

    fn forget(&self) {
        for hook in self.hooks().values_mut() {
            hook.counts = Counts::default();
            hook.delivered = HashSet::new();
            hook.late = None;
        }
    }
}

/// A request without an answer.
struct Inside {
    ledger: Arc<Ledger>,
    name: String,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(hook) = self.ledger.hooks().get_mut(&self.name) {
            hook.inside -= 1;
        }
    }
}

/// The hook of that name, unless there are too many.
fn hook_of<'a>(hooks: &'a mut HashMap<String, Hook>, name: &str) -> Option<&'a mut Hook> {
    if !hooks.contains_key(name) && hooks.len() < HOOKS_MAX {
        hooks.insert(name.to_owned(), Hook::default());
    }
    hooks.get_mut(name)
}

/// How long ago an event was due, in microseconds, by the clock that both sides share.
fn age(body: &[u8]) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(now.as_micros()).ok()?.checked_sub(wire::stamped(body)?)
}

/// `sha256=` and the MAC of the body in small hexadecimal letters.
fn is_signed(mac: &Hmac<Sha256>, signature: &[u8], body: &[u8]) -> bool {
    let Some(hex) = signature.strip_prefix(b"sha256=").and_then(|hex| std::str::from_utf8(hex).ok()) else {
        return false;
    };
    let bytes: Option<Vec<u8>> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    let mut mac = mac.clone();
    mac.update(body);
    bytes.is_some_and(|bytes| mac.verify_slice(&bytes).is_ok())
}

fn event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("x-eventpulse-event-id")?.to_str().ok()?.parse().ok()
}

async fn answer(ledger: Arc<Ledger>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return reply(400, Bytes::new()),
    };
    let path = head.uri.path();
    match (&head.method, path.strip_prefix("/hook/"), path.strip_prefix("/secrets/")) {
        (&Method::POST, Some(name), _) => {
            let (manner, _inside) = ledger.enter(name, Manner::of(head.uri.query().unwrap_or_default()));
            if manner.hang {
                std::future::pending::<()>().await;
            }
            if !manner.delay.is_zero() {
                tokio::time::sleep(manner.delay).await;
            }
            let signature = head.headers.get("x-eventpulse-signature").map(|value| value.as_bytes());
            reply(ledger.note(name, manner, event_id(&head.headers), signature, &body), Bytes::new())
        }
        (&Method::PUT, _, Some(name)) => {
            ledger.tell(name, &body);
            reply(204, Bytes::new())
        }
        (&Method::PUT, ..) if path.starts_with("/manner/") => {
            ledger.behave(&path["/manner/".len()..], Manner::of(&String::from_utf8_lossy(&body)));
            reply(204, Bytes::new())
        }
        (&Method::GET, ..) if path == "/ledger" => json(&ledger.summary()),
        (&Method::GET, ..) if path == "/counts" => json(&ledger.total()),
        (&Method::DELETE, ..) if path == "/ledger" => {
            ledger.forget();
            reply(204, Bytes::new())
        }
        _ => reply(404, Bytes::new()),
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    serde_json::to_vec(value).map_or_else(|_| reply(500, Bytes::new()), |json| reply(200, json.into()))
}

fn reply(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response
}

/// Serves until dropped; `bound` hears where.
///
/// # Errors
/// When the port cannot be had.
pub async fn serve(port: u16, bound: impl FnOnce(SocketAddr)) -> std::io::Result<()> {
    let listener = crate::listen(port)?;
    bound(listener.local_addr()?);
    let ledger = Arc::new(Ledger::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let ledger = ledger.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let ledger = ledger.clone();
                async move { Ok::<_, Infallible>(answer(ledger, request).await) }
            });
            // A connection that breaks is the engine's to notice.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_no_duplicate_but_a_repeat_is() {
        let ledger = Ledger::default();
        let fails = Manner::of("status=500");
        let works = Manner::of("");
        assert_eq!(ledger.note("a", fails, Some(1), None, b""), 500);
        assert_eq!(ledger.note("a", works, Some(1), None, b""), 200);
        assert_eq!(ledger.summary().all, Counts { calls: 2, unique: 1, unsigned: 2, ..Counts::default() });
        ledger.note("a", works, Some(1), None, b"");
        ledger.note("b", works, Some(1), None, b"");
        let summary = ledger.summary();
        assert_eq!((summary.all.unique, summary.all.duplicates), (2, 1), "hooks are counted apart");
        ledger.forget();
        assert_eq!(ledger.summary().all, Counts::default());
    }

    #[test]
    fn requests_at_a_time_are_counted_and_a_manner_set_holds() {
        let ledger = Arc::new(Ledger::default());
        let works = Manner::of("");
        let (first, second) = (ledger.enter("a", works), ledger.enter("a", works));
        drop(first);
        assert_eq!(ledger.summary().all.at_once, 2);
        ledger.behave("a", Manner::of("status=503"));
        assert_eq!(ledger.summary().all.at_once, 1, "counted anew, with what has no answer yet");
        drop(second);
        let (manner, _inside) = ledger.enter("a", works);
        assert_eq!((manner.status, ledger.summary().all.at_once), (503, 1));
    }

    #[test]
    fn signatures_are_checked() {
        let ledger = Ledger::default();
        ledger.tell("a", b"secret");
        let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
        mac.update(b"body");
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let signature = format!("sha256={hex}");
        let works = Manner::of("");
        ledger.note("a", works, Some(1), Some(signature.as_bytes()), b"body");
        assert_eq!(ledger.summary().all.bad_signatures, 0);
        for (signature, body) in
            [(signature.as_str(), "other"), ("sha256=zz", "body"), ("", "body"), ("sha256=\u{e9}", "body")]
        {
            ledger.note("a", works, Some(2), Some(signature.as_bytes()), body.as_bytes());
        }
        assert_eq!(ledger.summary().all.bad_signatures, 4);
    }

    #[test]
    fn every_third_call_fails() {
        let ledger = Ledger::default();
        let manner = Manner::of("fail_every=3&delay_ms=7&x");
        assert_eq!(manner.delay, Duration::from_millis(7));
        let statuses: Vec<u16> =
            (0..6).map(|event| ledger.note("a", manner, Some(event), None, b"")).collect();
        assert_eq!(statuses, [200, 200, 500, 200, 200, 500]);
    }
}
