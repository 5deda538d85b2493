//! Accepting connections, bounding them, and draining them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    header::{CONNECTION, HeaderValue},
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use super::{Connection, Service, Tls};
use crate::{config, huge_pages};

/// Connections after which memory is looked at: thousands may come within the second between two of the usual looks.
const ADJUST_EVERY: u64 = 256;

/// Connections that the kernel keeps until they are accepted, of which Linux takes `net.core.somaxconn` at most. Of one that comes
/// when they are as many the beginning is dropped, and its client tries again after a second. tokio's own is 128: a producer with a
/// pool of 256 connections makes more in the milliseconds that one commit takes.
const BACKLOG: u32 = 4096;

/// A listening server.
pub struct Server {
    listener: TcpListener,
    settings: config::Http,
    connections: metrics::Gauge,
    tls: Option<Arc<Tls>>,
    stopping: watch::Receiver<bool>,
}

impl Server {
    /// Listens on an address. From when `stopping` is set, which is before the end of [`run`](Server::run) is asked for,
    /// each answer is the last one on its connection.
    ///
    /// # Errors
    /// When the address cannot be had, such as a port in use.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn bind(
        settings: &config::Http,
        address: SocketAddr,
        connections: metrics::Gauge,
        stopping: watch::Receiver<bool>,
    ) -> std::io::Result<Server> {
        let listener = listen(address)?;
        Ok(Server { listener, settings: settings.clone(), connections, tls: None, stopping })
    }

    /// Speaks TLS and nothing else.
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Server {
        Server { tls, ..self }
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is set; then stops accepting, lets open requests finish, and closes.
    pub async fn run<S: Service>(self, service: Arc<S>, mut stop: watch::Receiver<bool>) {
        let protocols = Arc::new(Protocols::new(&self.settings, self.stopping));
        let slots = Arc::new(Semaphore::new(self.settings.connections_max));
        let graceful = GracefulShutdown::new();
        let mut accepted_in_all = 0u64;
        loop {
            let accepted = async {
                // Without a free slot new connections wait in the listen queue, at the kernel's cost.
                let slot = slots.clone().acquire_owned().await.expect("the slots are never closed");
                (self.listener.accept().await, slot)
            };
            let (accepted, slot) = tokio::select! {
                biased;
                () = crate::stopped(&mut stop) => break,
                accepted = accepted => accepted,
            };
            let stream: TcpStream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: accepting at once would only spin.
                    crate::logs::warn_seldom!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Answers are written whole; waiting for more to send only delays them.
            let _ = stream.set_nodelay(true);
            limit_unread(&stream, self.settings.header_timeout);
            let served = Served { gauge: self.connections.clone(), _slot: slot };
            let (protocols, service, watcher) = (protocols.clone(), service.clone(), graceful.watcher());
            served.gauge.increment(1.0);
            accepted_in_all += 1;
            if accepted_in_all.is_multiple_of(ADJUST_EVERY) {
                huge_pages::adjust();
            }
            // Apart, so that a plain connection has no room for what TLS needs.
            if let Some(tls) = self.tls.clone() {
                let served = served.during(protocols.serve_tls(tls, stream, service, watcher, stop.clone()));
                tokio::spawn(served);
            } else {
                tokio::spawn(served.during(protocols.serve(stream, service, watcher, stop.clone())));
            }
        }
        drop(self.listener);
        if tokio::time::timeout(self.settings.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("drain time over, connections closed on open requests");
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port is free again at once when its process has ended. Windows means something else by it.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A place among the connections.
struct Served {
    gauge: metrics::Gauge,
    _slot: OwnedSemaphorePermit,
}

impl Served {
    async fn during(self, connection: impl Future<Output = ()>) {
        connection.await;
        self.gauge.decrement(1.0);
    }
}

/// How a connection is spoken to, once it has shown by its first bytes which HTTP it is.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    /// For those first bytes.
    patience: Duration,
    stopping: watch::Receiver<bool>,
}

impl Protocols {
    fn new(settings: &config::Http, stopping: watch::Receiver<bool>) -> Protocols {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            // A client that ends its side after the request still waits for the answer.
            .half_close(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(100)
            .keep_alive_interval(Some(settings.header_timeout / 2));
        Protocols { http1, http2, patience: settings.header_timeout, stopping }
    }

    /// Serves one plain connection until it ends.
    async fn serve<S: Service>(
        self: Arc<Self>,
        stream: TcpStream,
        service: Arc<S>,
        watcher: Watcher,
        mut stop: watch::Receiver<bool>,
    ) {
        let speaks_http2 = tokio::select! {
            speaks = tokio::time::timeout(self.patience, speaks_http2(&stream)) => match speaks {
                Ok(Ok(speaks)) => speaks,
                // Gone before it said anything, or silent for too long.
                Ok(Err(_)) | Err(_) => return,
            },
            // Nothing was asked, so nothing is left unanswered.
            () = crate::stopped(&mut stop) => return,
        };
        self.speak(stream, speaks_http2, service, watcher).await;
    }

    /// The same over TLS, where the handshake says which HTTP it is.
    async fn serve_tls<S: Service>(
        self: Arc<Self>,
        tls: Arc<Tls>,
        stream: TcpStream,
        service: Arc<S>,
        watcher: Watcher,
        mut stop: watch::Receiver<bool>,
    ) {
        let accepted = tokio::select! {
            accepted = tls.accept(stream) => accepted,
            () = crate::stopped(&mut stop) => return,
        };
        if let Some((stream, speaks_http2)) = accepted {
            self.speak(stream, speaks_http2, service, watcher).await;
        }
    }

    async fn speak<S: Service>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        speaks_http2: bool,
        service: Arc<S>,
        watcher: Watcher,
    ) {
        let memory = Arc::new(Connection::new());
        let remembered = memory.clone();
        let stopping = self.stopping.clone();
        let answer = hyper::service::service_fn(move |request| {
            memory.ask();
            let (service, memory, stopping) = (service.clone(), memory.clone(), stopping.clone());
            async move {
                let mut response = service.call(memory, request).await;
                // HTTP/2 has a frame for it instead, which the graceful end sends.
                if !speaks_http2 && *stopping.borrow() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let stream = TokioIo::new(stream);
        // A connection that breaks is its peer's affair; what it asked for was answered or was not.
        if speaks_http2 {
            let connection = watcher.watch(self.http2.serve_connection(stream, answer));
            // hyper has no time-out for a peer that begins HTTP/2 and asks for nothing. Boxed, so that the many that
            // speak HTTP/1 do not carry the room for it.
            let served = async {
                tokio::select! {
                    _ = connection => {}
                    () = remembered.never_asked(self.patience) => {}
                }
            };
            Box::pin(served).await;
        } else {
            let _ = watcher.watch(self.http1.serve_connection(stream, answer)).await;
        }
    }
}

/// Whether a connection begins as HTTP/2 does, which no method of HTTP/1 does. The bytes are left where they are:
/// hyper-util's own detection reads 24 of them first, and hyper then doubles the buffer that each connection keeps,
/// 16 KiB in place of 8.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const BEGIN: &[u8] = b"PRI";
    let mut seen = [0; BEGIN.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if n == BEGIN.len() || seen[..n] != BEGIN[..n] {
            return Ok(seen[..n] == *BEGIN);
        }
        // `P` of a POST, say. Peeking again at once would spin: what is there already counts as readable.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets the kernel end a connection whose peer does not take its answers: nothing above sees that it stalls.
/// Only Linux can; elsewhere `connections_max` is the bound.
fn limit_unread(stream: &TcpStream, longest: Duration) {
    #[cfg(target_os = "linux")]
    {
        let ms = u32::try_from(longest.as_millis()).unwrap_or(u32::MAX);
        // Without it the connection is as it would be elsewhere.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, ms);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, longest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Half of what the kernel lets anybody have.
    fn burst() -> u32 {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
        most.and_then(|most| most.trim().parse().ok()).map_or(64, |most: u32| most.min(512) / 2)
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_to_be_accepted() {
        let (_stopping, stopping) = watch::channel(false);
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let server =
            Server::bind(&Config::default().http, anywhere, metrics::Gauge::noop(), stopping).unwrap();
        let mut open = Vec::new();
        for n in 0..burst() {
            // Nobody accepts, so one that finds no room tries again until then.
            let connecting = TcpStream::connect(server.address().unwrap());
            let connected = tokio::time::timeout(Duration::from_secs(20), connecting).await;
            open.push(connected.unwrap_or_else(|_| panic!("connection {n} found no room")).unwrap());
        }
    }
}
