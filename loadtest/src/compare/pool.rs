//! The floor under any delivery: hyper's client connections and nothing else, each with one request at a time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::parts::Work;
use crate::{stack::Error, wire};

/// Posts events of `size` bytes to `path` over `connections` connections, one call after the other on each.
///
/// # Errors
/// When the receiver does not answer with 200.
pub async fn pool(
    target: SocketAddr,
    path: &str,
    connections: usize,
    size: usize,
    length: Duration,
) -> Result<Work, Error> {
    let body = Bytes::from(wire::event(wire::KIND, size));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..connections {
        let (path, body) = (path.to_owned(), body.clone());
        tasks.spawn(async move { calls(target, &path, at, body, start, length).await });
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        done += task??;
    }
    Ok(Work { done, seconds: start.elapsed().as_secs_f64(), each_ms: 0.0 })
}

async fn calls(
    target: SocketAddr,
    path: &str,
    at: usize,
    body: Bytes,
    start: Instant,
    length: Duration,
) -> Result<u64, Error> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut done = 0;
    while start.elapsed() < length {
        sender.ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, "load")
            .header("content-type", "application/json")
            // So that the ledger has as much to do as with the engine's deliveries.
            .header("x-eventpulse-event-id", (done * 1000 + at as u64).to_string())
            .header("x-eventpulse-signature", "sha256=00")
            .body(Full::new(body.clone()))?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(format!("the receiver answered {}", response.status()).into());
        }
        response.into_body().collect().await?;
        done += 1;
    }
    Ok(done)
}
