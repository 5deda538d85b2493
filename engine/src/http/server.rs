//! Accepting connections, bounding them, and draining them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::{Connection, Service};
use crate::config;

/// A listening server.
pub struct Server {
    listener: TcpListener,
    settings: config::Http,
    connections: metrics::Gauge,
}

impl Server {
    /// Binds `port` on the configured address.
    ///
    /// # Errors
    /// When the address cannot be had, such as a port in use.
    pub async fn bind(
        settings: &config::Http,
        port: u16,
        connections: metrics::Gauge,
    ) -> std::io::Result<Server> {
        Ok(Server {
            listener: TcpListener::bind((settings.listen, port)).await?,
            settings: settings.clone(),
            connections,
        })
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is set; then stops accepting, lets open requests finish, and closes.
    pub async fn run<S: Service>(self, service: Arc<S>, mut stop: watch::Receiver<bool>) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.header_timeout)
            // A client that ends its side after the request still waits for the answer.
            .half_close(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(100)
            .keep_alive_interval(Some(self.settings.header_timeout / 2));
        let slots = Arc::new(Semaphore::new(self.settings.connections_max));
        let graceful = GracefulShutdown::new();
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
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Answers are written whole; waiting for more to send only delays them.
            let _ = stream.set_nodelay(true);
            limit_unread(&stream, self.settings.header_timeout);
            let service = service.clone();
            let memory = Arc::new(Connection::new());
            let remembered = memory.clone();
            let answer = hyper::service::service_fn(move |request| {
                memory.ask();
                let (service, memory) = (service.clone(), memory.clone());
                async move { Ok::<_, std::convert::Infallible>(service.call(memory, request).await) }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), answer).into_owned();
            let connection = graceful.watch(connection);
            let gauge = self.connections.clone();
            let header_timeout = self.settings.header_timeout;
            // hyper's own timer begins once it knows the version of HTTP. A peer that never says so much would
            // keep its slot for ever.
            let never_asked = async move {
                if tokio::time::timeout(header_timeout, remembered.asked()).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::spawn(async move {
                gauge.increment(1.0);
                // A connection that breaks is its peer's affair; what it asked for was answered or was not.
                tokio::select! {
                    _ = connection => {}
                    () = never_asked => {}
                }
                gauge.decrement(1.0);
                drop(slot);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(self.settings.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("drain time over, connections closed on open requests");
        }
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
