//! The HTTP client: pooled connections over a connector that checks every address it is about to call.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, Uri, body::Incoming, header::RETRY_AFTER};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{net::TcpStream, time::Instant};

use super::{
    outcome::{Call, Failure, Reply, retry_after},
    target::is_public,
};
use crate::{config, metrics::Metrics};

/// Idle connections to one host. More than a lane has in flight would never be used.
const IDLE_PER_HOST: usize = 128;

/// Bytes of a reply's head. hyper goes through what it has read without a pause, so a flood of interim replies holds the
/// thread for as long as this takes.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Sends requests and reads replies, within the time and the bytes that the settings allow.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpsConnector<Checked>, Full<Bytes>>,
    reply_bytes_max: usize,
    retry_after_max: Duration,
    metrics: Arc<Metrics>,
}

impl Client {
    pub fn new(
        settings: &config::Deliver,
        retry_after_max: Duration,
        allow_private: bool,
        metrics: Arc<Metrics>,
    ) -> Client {
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().wrap_connector(
                Checked { timeout: settings.connect_timeout, allow_private, metrics: metrics.clone() },
            );
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            // Only what never reached the connection is sent again; hyper gives such a request back whole.
            .retry_canceled_requests(true)
            .build(connector);
        Client { inner, reply_bytes_max: settings.reply_bytes_max, retry_after_max, metrics }
    }

    /// Makes one call. Always ends within `timeout`.
    ///
    /// # Cancel safety
    /// A dropped call may have reached the endpoint.
    pub async fn call(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Call {
        let start = Instant::now();
        self.metrics.deliver.in_flight.increment(1.0);
        let deadline = start + timeout;
        let result = match tokio::time::timeout_at(deadline, self.inner.request(request)).await {
            Ok(Ok(response)) => Ok(self.reply(response, deadline).await),
            Ok(Err(error)) => Err(failure(error)),
            Err(_) => Err(Failure::TimedOut),
        };
        self.metrics.deliver.in_flight.decrement(1.0);
        let took = start.elapsed();
        self.metrics.deliver.seconds.record(took.as_secs_f64());
        Call { result, took }
    }

    /// Reads the body up to the cap. What is left unread closes the connection.
    async fn reply(&self, response: Response<Incoming>, deadline: Instant) -> Reply {
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while body.len() < self.reply_bytes_max
            && let Ok(Some(Ok(frame))) = tokio::time::timeout_at(deadline, incoming.frame()).await
        {
            // A peer that always has more ready must not keep this thread from everybody else.
            tokio::task::consume_budget().await;
            if let Some(data) = frame.data_ref() {
                let room = self.reply_bytes_max - body.len();
                body.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        Reply {
            status: head.status,
            body,
            retry_after: head
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| retry_after(value, self.retry_after_max)),
        }
    }
}

/// Finds our own failure among an error's causes; everything else is about the connection.
fn failure(error: legacy::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return match refused {
                Refused::Dns(error) => Failure::Dns(io::Error::new(error.kind(), error.to_string())),
                Refused::Blocked => Failure::Blocked,
                Refused::Connect(error) if is_out_of_files(error) => Failure::OutOfFiles,
                Refused::Connect(error) => {
                    Failure::Connect(io::Error::new(error.kind(), error.to_string()).into())
                }
                Refused::TimedOut => Failure::Connect(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
        }
        cause = error.source();
    }
    if error.is_connect() { Failure::Connect(error.into()) } else { Failure::Broken(error.into()) }
}

/// EMFILE and ENFILE: the fault is ours, not the endpoint's.
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| ours.contains(&code))
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the name could not be resolved")]
    Dns(#[source] io::Error),
    #[error("no address of the name may be called")]
    Blocked,
    #[error("no address answered")]
    Connect(#[source] io::Error),
    #[error("no connection in time")]
    TimedOut,
}

/// Resolves, checks and connects, to the very address that was checked: nothing can be swapped in between.
#[derive(Clone)]
struct Checked {
    timeout: Duration,
    allow_private: bool,
    metrics: Arc<Metrics>,
}

impl Checked {
    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, Refused> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or_else(|| if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(Refused::Dns)?.collect();
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|a| self.allow_private || is_public(a.ip())).collect();
        let mut last = Refused::Blocked;
        let deadline = Instant::now() + self.timeout;
        for (i, address) in allowed.iter().enumerate() {
            // A share of what is left for each, or one address that swallows packets would hide the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(allowed.len() - i).unwrap_or(u32::MAX);
            let connected = tokio::time::timeout(share, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    // A request is written in one go; waiting for more only delays it.
                    stream.set_nodelay(true).map_err(Refused::Connect)?;
                    self.metrics.deliver.opened.increment(1);
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => last = Refused::Connect(error),
            }
        }
        if matches!(last, Refused::Blocked) {
            self.metrics.deliver.blocked.increment(1);
        }
        Err(last)
    }
}

impl tower_service::Service<Uri> for Checked {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let timeout = this.timeout;
            let connected = tokio::time::timeout(timeout, this.connect(uri)).await;
            connected.unwrap_or(Err(Refused::TimedOut)).map_err(Into::into)
        })
    }
}
