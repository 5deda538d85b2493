//! The HTTP client: one call, from choosing a connection to the end of the reply.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, Uri, Version,
    body::{Body, Incoming},
    client::conn::TrySendError,
    header::{CONNECTION, DATE, HOST, HeaderValue, RETRY_AFTER},
    http::uri::PathAndQuery,
};
use tokio::time::{Instant, Sleep};

use super::{
    conn::H1,
    connect::{Connector, Opened},
    origin::Origin,
    outcome::{Call, Failure, Reply, retry_after},
    pool::{Checkout, Limits, Pool, Stream},
};
use crate::{config, metrics::Metrics, model::Timestamp};

/// Connections that one request is tried on while none takes a byte of it: one that was idle and two new ones. An
/// endpoint that closes each connection as it is opened has failed.
const CONNECTIONS_MAX: usize = 3;

/// Sends requests and reads replies, within the time and the bytes that the settings allow.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<Pool>,
    connector: Connector,
    reply_bytes_max: usize,
    retry_after_max: Duration,
    metrics: Arc<Metrics>,
}

impl Client {
    /// # Errors
    /// On a proxy or a file of certificates that cannot be used.
    pub fn new(
        settings: &config::Deliver,
        retry_after_max: Duration,
        targets: &config::Targets,
        metrics: Arc<Metrics>,
    ) -> Result<Client, config::Error> {
        let limits = Limits { idle: settings.idle, age_max: settings.age_max, idle_max: settings.idle_max };
        Ok(Client {
            inner: Arc::new(Inner {
                pool: Pool::new(limits, metrics.clone()),
                connector: Connector::new(settings, targets.clone(), metrics.clone())?,
                reply_bytes_max: settings.reply_bytes_max,
                retry_after_max,
                metrics,
            }),
        })
    }

    /// Makes one call. Always ends within the time-out.
    ///
    /// # Cancel safety
    /// A dropped call may have reached the endpoint. Its connection is closed, or its stream reset.
    pub async fn call(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Call {
        let inner = &*self.inner;
        let start = Instant::now();
        let in_flight = InFlight::new(&inner.metrics);
        // One timer for the whole call.
        let mut over = pin!(tokio::time::sleep_until(start + timeout));
        let result = match within(over.as_mut(), inner.answer(request)).await {
            Some(Ok((response, used))) => Ok(inner.reply(response, used, over).await),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::TimedOut),
        };
        drop(in_flight);
        let took = start.elapsed();
        inner.metrics.deliver.seconds.record(took.as_secs_f64());
        Call { result, took }
    }
}

/// Counts a call for as long as it lives, dropped ones too.
struct InFlight<'a>(&'a Metrics);

impl InFlight<'_> {
    fn new(metrics: &Metrics) -> InFlight<'_> {
        metrics.deliver.in_flight.increment(1.0);
        InFlight(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.deliver.in_flight.decrement(1.0);
    }
}

/// Runs `future` until the timer is over. What is ready at that moment still counts.
async fn within<F: Future>(mut over: Pin<&mut Sleep>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => over.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// A connection with a request on it.
enum Used {
    H1(Origin, H1),
    H2(Stream),
}

type Sent = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

impl Used {
    /// Sends a request in the form that the connection's protocol has for it.
    async fn send(&mut self, mut request: Request<Full<Bytes>>, uri: &Uri) -> Sent {
        match self {
            Used::H1(origin, h1) => {
                if let Some(host) = host(origin) {
                    request.headers_mut().insert(HOST, host);
                }
                *request.uri_mut() = path(uri);
                h1.sender.try_send_request(request).await
            }
            Used::H2(stream) => {
                request.headers_mut().remove(HOST);
                *request.uri_mut() = uri.clone();
                let sent = stream.conn.sender().try_send_request(request).await;
                stream.settled = true;
                stream.conn.answered();
                sent
            }
        }
    }

    /// Gives the connection back after a reply that was read to its end.
    fn done(self, pool: &Arc<Pool>, version: Version, headers: &HeaderMap) {
        // A shared connection is there already; dropping its stream gives the place back.
        if let Used::H1(origin, h1) = self
            && version == Version::HTTP_11
            && !has_token(headers, "close")
        {
            pool.put(&origin, h1, keep_alive(headers));
        }
    }
}

impl Inner {
    /// Sends a request and waits for the head of its reply. A connection that ended before it took a byte gives the
    /// request back, which then goes on a new one.
    async fn answer(&self, mut request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Used), Failure> {
        let origin =
            Origin::of(request.uri()).ok_or_else(|| Failure::Connect("the URL has no host".into()))?;
        let uri = request.uri().clone();
        let mut tried = 0;
        loop {
            let mut used = self.connection(&origin, tried > 0).await?;
            let mut error = match used.send(request, &uri).await {
                Ok(response) => return Ok((response, used)),
                Err(error) => error,
            };
            tried += 1;
            match error.take_message() {
                Some(unsent) if tried < CONNECTIONS_MAX => request = unsent,
                // From the first byte on, the endpoint may have all of it.
                _ => return Err(Failure::Broken(error.into_error().into())),
            }
        }
    }

    async fn connection(&self, origin: &Origin, fresh: bool) -> Result<Used, Failure> {
        let mut may_wait = true;
        let opening = loop {
            match self.pool.checkout(origin, fresh, may_wait) {
                Checkout::H1(h1) => return Ok(Used::H1(origin.clone(), h1)),
                Checkout::H2(stream) => return Ok(Used::H2(stream)),
                // A connection that cannot be shared, or none: everybody opens one of their own.
                Checkout::Wait(waiter) => may_wait = waiter.wait().await,
                Checkout::Open(opening) => break opening,
            }
        };
        let used = match self.connector.open(origin, &self.pool).await? {
            Opened::H1(h1) => Used::H1(origin.clone(), h1),
            Opened::H2(conn) => Used::H2(self.pool.share(origin, conn)),
        };
        drop(opening);
        Ok(used)
    }

    /// Reads the body up to the cap. What is left unread closes the connection.
    async fn reply(&self, response: Response<Incoming>, used: Used, mut over: Pin<&mut Sleep>) -> Reply {
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        // Most replies are empty, and then there is nothing to wait for.
        let mut ended = incoming.is_end_stream();
        while !ended && body.len() <= self.reply_bytes_max {
            match within(over.as_mut(), incoming.frame()).await {
                Some(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        let room = self.reply_bytes_max + 1 - body.len();
                        body.extend_from_slice(&data[..data.len().min(room)]);
                    }
                }
                Some(None) => ended = true,
                // The head has decided; a body that is too slow or breaks off takes nothing away from it.
                Some(Some(Err(_))) | None => break,
            }
            // A peer that always has more ready must not keep this thread from everybody else.
            tokio::task::consume_budget().await;
        }
        body.truncate(self.reply_bytes_max);
        if ended {
            used.done(&self.pool, head.version, &head.headers);
        }
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let wait = |value| retry_after(value, text(DATE), Timestamp::now().into(), self.retry_after_max);
        Reply { status: head.status, body, retry_after: text(RETRY_AFTER).and_then(wait) }
    }
}

/// The `Host` of an origin, whose port is left out where the scheme says it.
fn host(origin: &Origin) -> Option<HeaderValue> {
    let usual = if origin.https { 443 } else { 80 };
    let text = if origin.port == usual { origin.authority.host() } else { origin.authority.as_str() };
    HeaderValue::from_str(text).ok()
}

/// The path and query alone, as a request line has them.
fn path(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")).into()
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// How long we keep a connection that the peer says it keeps for `timeout` seconds: a second less, as our request takes
/// its time to arrive.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse::<u64>().ok())?
    })?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_keep_alive_is_read() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", HeaderValue::from_str(value).unwrap());
            keep_alive(&headers).map(|d| d.as_secs())
        };
        assert_eq!(read("timeout=5"), Some(4));
        assert_eq!(read("max=100, Timeout = 2"), Some(1));
        assert_eq!(read("timeout=1"), Some(0));
        assert_eq!(read("timeout=0"), Some(0));
        assert_eq!(read("max=100"), None);
        assert_eq!(read("timeout=soon"), None);
    }

    #[test]
    fn a_host_is_named_as_the_scheme_asks() {
        for (uri, expected) in [
            ("http://example.com/a", "example.com"),
            ("http://example.com:80/a", "example.com"),
            ("https://example.com:80/a", "example.com:80"),
            ("https://example.com:443", "example.com"),
            ("http://[::1]:8080/", "[::1]:8080"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(host(&Origin::of(&uri).unwrap()).unwrap(), expected);
        }
        let uri: Uri = "http://example.com?x=1".parse().unwrap();
        assert_eq!(path(&uri), "/?x=1");
    }
}
