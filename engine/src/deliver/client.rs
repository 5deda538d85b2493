//! The HTTP client: one call, from choosing a connection to the end of the reply.

use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    Response,
    body::{Body as _, Incoming},
    header::{DATE, RETRY_AFTER},
};
use tokio::time::{Instant, Sleep};

use super::{
    connect::{Connector, Opened},
    h1::{H1, Sending, body::Body, head::Head},
    origin::Origin,
    outcome::{Call, Failure, Reply, retry_after},
    pool::{Checkout, Limits, Pool, Stream},
    post::{Finished, Post},
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
    pub async fn call(&self, post: Post, timeout: Duration) -> Call {
        self.call_by(pin!(tokio::time::sleep(timeout)), post, timeout).await
    }

    /// The same with a timer that may have served other calls: it is moved to a later time at next to no cost, where a new one is put
    /// into the wheel and taken out again.
    pub async fn call_by(&self, mut over: Pin<&mut Sleep>, post: Post, timeout: Duration) -> Call {
        let inner = &*self.inner;
        let start = Instant::now();
        let in_flight = InFlight::new(&inner.metrics);
        // One timer for the whole call.
        over.as_mut().reset(start + timeout);
        let request = post.finish();
        let result = match within(over.as_mut(), inner.answer(&request)).await {
            Some(Ok(answered)) => Ok(inner.reply(&request.endpoint.origin, answered, over).await),
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
        // Also where the future has spent what a task may do in its turn, or a peer that always has more ready would have no end.
        Poll::Pending => pin!(tokio::task::unconstrained(over.as_mut())).poll(cx).map(|()| None),
    })
    .await
}

/// A connection for one request.
enum Conn {
    H1(H1),
    H2(Stream),
}

/// The beginning of a reply, and what the rest of it comes by.
enum Answered<'a> {
    H1(H1, Sending<'a>, Head, Body),
    H2(Stream, Response<Incoming>),
}

impl Inner {
    /// Sends a request and waits for the head of its reply. On a connection that ended before it took a byte the request was
    /// not made, and then it goes on a new one.
    async fn answer<'a>(&self, request: &'a Finished) -> Result<Answered<'a>, Failure> {
        let origin = &request.endpoint.origin;
        let mut tried = 0;
        loop {
            let sent = match self.connection(origin, tried > 0).await? {
                Conn::H1(h1) => over_h1(h1, request).await,
                Conn::H2(stream) => over_h2(stream, request).await,
            };
            tried += 1;
            match sent {
                Ok(answered) => return Ok(answered),
                Err(unsent) if !unsent.begun && tried < CONNECTIONS_MAX => {}
                // From the first byte on, the endpoint may have all of it.
                Err(broken) => return Err(Failure::Broken(broken.error)),
            }
        }
    }

    async fn connection(&self, origin: &Origin, fresh: bool) -> Result<Conn, Failure> {
        let mut may_wait = true;
        let opening = loop {
            match self.pool.checkout(origin, fresh, may_wait) {
                Checkout::H1(h1) => return Ok(Conn::H1(h1)),
                Checkout::H2(stream) => return Ok(Conn::H2(stream)),
                // A connection that cannot be shared, or none: everybody opens one of their own.
                Checkout::Wait(waiter) => may_wait = waiter.wait().await,
                Checkout::Open(opening) => break opening,
            }
        };
        let conn = match self.connector.open(origin, &self.pool).await? {
            Opened::H1(h1) => Conn::H1(h1),
            Opened::H2(conn) => Conn::H2(self.pool.share(origin, conn)),
        };
        drop(opening);
        Ok(conn)
    }

    /// Reads the body up to the cap. What is left unread closes the connection, or resets its stream. The head has decided: a body
    /// that is too slow or breaks off takes nothing away from it.
    async fn reply(&self, origin: &Origin, answered: Answered<'_>, mut over: Pin<&mut Sleep>) -> Reply {
        let (max, mut body) = (self.reply_bytes_max, Vec::new());
        let (status, wish, date) = match answered {
            Answered::H1(mut h1, mut sending, head, mut rest) => {
                let read = h1.read(&mut sending, &mut rest, max, &mut body);
                let ended = matches!(within(over.as_mut(), read).await, Some(Ok(true)));
                // Who takes a request before it was read wants the rest of it.
                if head.status.is_success() && !sending.is_over() {
                    within(over.as_mut(), h1.send_rest(&mut sending)).await;
                }
                if ended && head.keeps && sending.is_over() && h1.is_clean() {
                    self.pool.put(origin, h1, head.idle);
                }
                (head.status, head.retry_after, head.date)
            }
            Answered::H2(_stream, response) => {
                let (head, mut incoming) = response.into_parts();
                // Most replies are empty, and then there is nothing to wait for.
                let mut ended = incoming.is_end_stream();
                while !ended && body.len() <= max {
                    match within(over.as_mut(), incoming.frame()).await {
                        Some(Some(Ok(frame))) => {
                            if let Some(data) = frame.data_ref() {
                                let room = max + 1 - body.len();
                                body.extend_from_slice(&data[..data.len().min(room)]);
                            }
                        }
                        Some(None) => ended = true,
                        Some(Some(Err(_))) | None => break,
                    }
                    // A peer that always has more ready must not keep this thread from everybody else.
                    tokio::task::consume_budget().await;
                }
                let text = |name| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
                (head.status, text(RETRY_AFTER), text(DATE))
            }
        };
        body.truncate(max);
        let now = || Timestamp::now().into();
        let wait = |value: String| retry_after(&value, date.as_deref(), now(), self.retry_after_max);
        Reply { status, body, retry_after: wish.and_then(wait) }
    }
}

/// A request without a reply.
struct Broken {
    error: Box<dyn Error + Send + Sync>,
    /// Whether the endpoint may have any of it.
    begun: bool,
}

async fn over_h1(mut h1: H1, request: &Finished) -> Result<Answered<'_>, Broken> {
    let mut sending = Sending::new(&request.wire);
    match h1.exchange(&mut sending).await {
        Ok((head, body)) => Ok(Answered::H1(h1, sending, head, body)),
        Err(failed) => Err(Broken { error: failed.error.into(), begun: failed.begun }),
    }
}

async fn over_h2(mut stream: Stream, request: &Finished) -> Result<Answered<'_>, Broken> {
    let sent = stream.conn.sender().try_send_request(request.http2()).await;
    stream.settled = true;
    stream.conn.answered();
    match sent {
        Ok(response) => Ok(Answered::H2(stream, response)),
        Err(mut error) => {
            let begun = error.take_message().is_none();
            Err(Broken { error: error.into_error().into(), begun })
        }
    }
}
