//! `eventpulse healthcheck`: whether the process of these settings serves.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Config, Roles},
    store::tls::{self, Trust},
};

const PATIENCE: Duration = Duration::from_secs(3);

/// Far more than the answer has.
const ANSWER_BYTES_MAX: u64 = 8 << 10;

/// Asks each role for its health, or whoever answers at `url`.
///
/// # Errors
/// When one does not answer with 200 within three seconds.
pub async fn run(config: &Config, roles: Roles, url: Option<String>) -> io::Result<()> {
    if let Some(url) = url {
        return ask_url(url).await.map_err(io::Error::other);
    }
    let here = |ip: IpAddr| if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
    let host = here(config.http.listen);
    let mut places = Vec::new();
    if roles.api() {
        places.push(match config.admin.address.0 {
            Some(admin) => (SocketAddr::new(here(admin.ip()), admin.port()), false),
            None => (SocketAddr::new(host, config.http.port), !config.gateway.tls_cert.is_empty()),
        });
    }
    if roles.dispatcher() {
        places.push((SocketAddr::new(host, config.http.dispatcher_port), false));
    }
    for (address, encrypted) in places {
        tokio::time::timeout(PATIENCE, ask(address, encrypted))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(())
}

async fn ask_url(url: String) -> reqwest::Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    client.get(url).send().await?.error_for_status().map(drop)
}

async fn ask(address: SocketAddr, encrypted: bool) -> io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    if !encrypted {
        return healthy(stream).await;
    }
    // Its certificate names the public's way to it, not ours, and nothing secret is said.
    let client = tls::client(Trust::Anybody, &[]).map_err(io::Error::other)?;
    let name = ServerName::IpAddress(address.ip().into());
    healthy(TlsConnector::from(Arc::new(client)).connect(name, stream).await?).await
}

async fn healthy(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    while !answer.ends_with(b"}") && stream.read_buf(&mut answer).await? > 0 {}
    match answer.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(io::Error::other("it does not say that it is well")),
    }
}
