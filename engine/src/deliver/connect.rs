//! Making a connection: the name is looked up, every address checked, and the connection goes to an address that was
//! checked, so that nothing can be swapped in between. Through a proxy, the proxy does that.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address::permits,
    dns::{self, Dns},
    h1::H1,
    h2::H2,
    origin::Origin,
    outcome::Failure,
    pool::Pool,
    proxy,
    target::{is_open, is_refused_host},
};
use crate::{
    config::{self, Targets, proxy::Proxy, roots},
    metrics::Metrics,
};

/// A connection that was just opened, by the protocol that its peer chose.
pub(super) enum Opened {
    H1(H1),
    H2(Arc<H2>),
}

pub(super) struct Connector {
    dns: Dns,
    tls: TlsConnector,
    proxy: Option<Proxy>,
    timeout: Duration,
    targets: Targets,
    metrics: Arc<Metrics>,
}

impl Connector {
    /// # Errors
    /// Names the setting that cannot be used.
    pub(super) fn new(
        settings: &config::Deliver,
        targets: Targets,
        metrics: Arc<Metrics>,
    ) -> Result<Connector, config::Error> {
        let problem = |name: &str, text: String| config::Error(vec![format!("deliver.{name} {text}")]);
        let proxy = Proxy::parse(&settings.proxy).map_err(|e| problem("proxy", e.to_string()))?;
        let tls = tls(&settings.extra_roots).map_err(|e| problem("extra_roots", e))?;
        Ok(Connector {
            // Less than the whole, so that a name without an answer is told from a host without one.
            dns: Dns::new(&settings.name_servers, settings.connect_timeout * 4 / 5, metrics.clone()),
            tls: TlsConnector::from(Arc::new(tls)),
            proxy,
            timeout: settings.connect_timeout,
            targets,
            metrics,
        })
    }

    /// Opens a connection within its time-out.
    pub(super) async fn open(&self, origin: &Origin, pool: &Arc<Pool>) -> Result<Opened, Failure> {
        // Boxed: rare beside the requests, whose futures would all be as large as this one.
        let opened = tokio::time::timeout(self.timeout, Box::pin(self.opened(origin, pool))).await;
        let opened = opened.unwrap_or(Err(Failure::NotConnected));
        match &opened {
            Ok(_) => self.metrics.deliver.opened.increment(1),
            Err(Failure::Blocked) => self.metrics.deliver.blocked.increment(1),
            Err(_) => {}
        }
        opened
    }

    async fn opened(&self, origin: &Origin, pool: &Arc<Pool>) -> Result<Opened, Failure> {
        if !is_open(&self.targets, origin.port) {
            return Err(Failure::Blocked);
        }
        let stream = match &self.proxy {
            Some(proxy) => self.through(proxy, origin).await?,
            None => {
                let allowed = |address: &SocketAddr| permits(&self.targets, address.ip());
                self.direct(origin.host(), origin.port, allowed).await?
            }
        };
        if !origin.https {
            return Ok(Opened::H1(H1::new(stream, pool.next_id())));
        }
        let stream = self.secured(stream, origin.host()).await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Ok(Opened::H2(
                H2::open(stream, pool, origin).await.map_err(|error| Failure::Connect(error.into()))?,
            ))
        } else {
            Ok(Opened::H1(H1::new(stream, pool.next_id())))
        }
    }

    async fn secured(&self, stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, Failure> {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| Failure::Tls(io::Error::other(e)))?;
        self.tls.connect(name, stream).await.map_err(Failure::Tls)
    }

    /// Connects to a host itself, by name or address.
    async fn direct(
        &self,
        host: &str,
        port: u16,
        allowed: impl Fn(&SocketAddr) -> bool,
    ) -> Result<TcpStream, Failure> {
        let start = Instant::now();
        let found: Vec<SocketAddr> = match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => {
                let found = self.dns.lookup(host).await.map_err(unresolved)?;
                found.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
            }
        };
        let found: Vec<SocketAddr> = found.into_iter().filter(allowed).collect();
        let mut last = Failure::Blocked;
        for (i, address) in found.iter().enumerate() {
            // A share of what is left for each, or one address that swallows packets would hide the others.
            let left = self.timeout.saturating_sub(start.elapsed());
            let share = left / u32::try_from(found.len() - i).unwrap_or(u32::MAX);
            last = match tokio::time::timeout(share, TcpStream::connect(address)).await {
                // A request is written in one go; waiting for more only delays it.
                Ok(Ok(stream)) => match stream.set_nodelay(true) {
                    Ok(()) => return Ok(stream),
                    Err(error) => Failure::Connect(error.into()),
                },
                Ok(Err(error)) if is_out_of_files(&error) => return Err(Failure::OutOfFiles),
                Ok(Err(error)) => Failure::Connect(error.into()),
                Err(_) => Failure::NotConnected,
            };
        }
        Err(last)
    }

    /// Connects by way of the proxy, which looks the name up. What is written as a private address needs no look-up
    /// to be refused.
    async fn through(&self, proxy: &Proxy, origin: &Origin) -> Result<TcpStream, Failure> {
        if is_refused_host(&self.targets, origin.authority.host()) {
            return Err(Failure::Blocked);
        }
        let unreachable = |error: io::Error| Failure::Proxy(Box::new(proxy::Error::Unreachable(error)));
        // The proxy's own address is the operator's word and may be private.
        let mut stream =
            self.direct(&proxy.host, proxy.port, |_| true).await.map_err(|failure| match failure {
                Failure::Dns(error) => unreachable(error),
                Failure::Connect(error) => unreachable(io::Error::other(error)),
                other => other,
            })?;
        let tunnel = proxy::tunnel(&mut stream, proxy, origin).await;
        tunnel.map_err(|error| Failure::Proxy(Box::new(error)))?;
        Ok(stream)
    }
}

fn unresolved(error: dns::Error) -> Failure {
    match error.io() {
        Some(io) if is_out_of_files(io) => Failure::OutOfFiles,
        _ => Failure::Dns(error.into()),
    }
}

/// EMFILE and ENFILE: the fault is ours, not the endpoint's.
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| ours.contains(&code))
}

/// Verifies against the public authorities, and against those in a file if there is one.
fn tls(extra_roots: &str) -> Result<ClientConfig, String> {
    let mut trusted = RootCertStore::empty();
    trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in roots::read(extra_roots)? {
        trusted.add(certificate).map_err(|error| format!("holds a certificate of no use: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot be combined with TLS: {error}"))?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
