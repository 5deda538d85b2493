//! The server under the receiver: accepts, reads whole requests, plays the replies.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::State;
use super::reply::{Answer, Kind};

/// Serves until it is dropped.
pub(super) async fn run(listener: TcpListener, state: Arc<State>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking socket");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&state)));
            }
            // Out of file descriptors, most likely; they come back when connections end.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Ends a connection without a reply.
#[derive(Debug)]
struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("aborted as the script says")
    }
}

impl std::error::Error for Aborted {}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let aborted = AtomicBool::new(false);
    let service = service_fn(|request| async {
        let reply = answer(request, &state).await;
        aborted.store(reply.is_err(), Ordering::Relaxed);
        reply
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = (&mut connection).await;
    if aborted.load(Ordering::Relaxed) {
        // With no time to linger, closing sends a reset instead of an orderly end.
        let stream = connection.into_parts().io.into_inner();
        let _ = stream.set_zero_linger();
    }
}

async fn answer(request: Request<Incoming>, state: &Arc<State>) -> Result<Response<Paced>, Aborted> {
    let open = Open::new(Arc::clone(state));
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Aborted)?.to_bytes();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let reply = state.take(path.to_owned(), parts.headers, body);
    if let Some(delay) = reply.delay {
        sleep(delay).await;
    }
    match reply.kind {
        Kind::Answer(answer) => Ok(response(answer, open)),
        Kind::Reset => Err(Aborted),
        Kind::Hang => std::future::pending().await,
    }
}

fn response(answer: Answer, open: Open) -> Response<Paced> {
    let (chunk, pause) = answer.slow.unwrap_or((usize::MAX, Duration::ZERO));
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    response
        .body(Paced { rest: answer.body, chunk, pause, sleep: None, _open: open })
        .expect("a script's headers are valid")
}

/// Counts an open request for as long as it lives.
struct Open(Arc<State>);

impl Open {
    fn new(state: Arc<State>) -> Open {
        let now = state.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        state.in_flight_max.fetch_max(now, Ordering::Relaxed);
        Open(state)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body in pieces with pauses. Its length is announced, so a caller knows what it is still owed.
struct Paced {
    rest: Bytes,
    chunk: usize,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    _open: Open,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !self.pause.is_zero() {
            let pause = self.pause;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(pause)));
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        let size = self.chunk.min(self.rest.len());
        let piece = self.rest.split_to(size);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
