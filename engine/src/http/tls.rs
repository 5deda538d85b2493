//! The gateway's side of TLS: handshakes that are bounded in time and number, and a certificate that is replaced while
//! connections go on.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::ServerConfig;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_cert::{Certificate, der::Decode as _};

use crate::{
    config::{self, certificate::Pair},
    metrics::Metrics,
};

/// The certificate in force, and what its handshakes may take.
pub struct Tls {
    settings: config::Gateway,
    current: RwLock<Arc<ServerConfig>>,
    /// Handshakes under way. Whoever is slow in them keeps others from beginning one, and nobody from being served.
    handshakes: Semaphore,
    metrics: Arc<Metrics>,
}

/// A certificate that can be shown.
struct Loaded {
    server: Arc<ServerConfig>,
    /// When it is over, in seconds since 1970.
    ends: u64,
}

impl Tls {
    /// Reads the files of the settings; none when there are none.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn open(
        config: &config::Config,
        metrics: Arc<Metrics>,
    ) -> Result<Option<(Arc<Tls>, Watch)>, config::Error> {
        let settings = config.gateway.clone();
        if settings.tls_cert.is_empty() {
            return Ok(None);
        }
        let problem =
            |problem: String| config::Error(vec![format!("gateway.tls_cert or tls_key: {problem}")]);
        let pair = Pair::read(&settings.tls_cert, &settings.tls_key).map_err(problem)?;
        let loaded = load(&pair).map_err(problem)?;
        let tls = Arc::new(Tls {
            current: RwLock::new(loaded.server),
            // Half, so that clients in a handshake never fill what there is for all.
            handshakes: Semaphore::new((config.http.connections_max / 2).max(1)),
            settings,
            metrics,
        });
        let watch = Watch { tls: tls.clone(), seen: pair, ends: loaded.ends };
        watch.tell();
        Ok(Some((tls, watch)))
    }

    /// Makes a connection into one of TLS, and says whether HTTP/2 was agreed on. None for one that is closed: too many
    /// are in their handshake, or it failed, or took too long.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<(TlsStream<TcpStream>, bool)> {
        let metrics = &self.metrics.http;
        let Ok(_place) = self.handshakes.try_acquire() else {
            metrics.tls_full.increment(1);
            return None;
        };
        let server = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let handshake = TlsAcceptor::from(server).accept(stream);
        match tokio::time::timeout(self.settings.tls_handshake_timeout, handshake).await {
            Ok(Ok(stream)) => {
                metrics.tls_done.increment(1);
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Some((stream, is_h2))
            }
            // Plain HTTP, most likely: rustls has said so with an alert.
            Ok(Err(error)) => {
                metrics.tls_failed.increment(1);
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                metrics.tls_late.increment(1);
                None
            }
        }
    }
}

/// Looks for another certificate in the same files.
pub struct Watch {
    tls: Arc<Tls>,
    /// What was read last, also when it was of no use: it is told of once.
    seen: Pair,
    ends: u64,
}

impl Watch {
    /// Runs until stopped.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.tls.settings.tls_reload_every) => {}
                () = crate::stopped(&mut stop) => return,
            }
            self.look().await;
            self.tell();
        }
    }

    async fn look(&mut self) {
        let settings = self.tls.settings.clone();
        // Contents are compared and not times: a copy with an older time is a change too. A disk may be slow.
        let read =
            tokio::task::spawn_blocking(move || Pair::read(&settings.tls_cert, &settings.tls_key)).await;
        let metrics = &self.tls.metrics.http;
        let loaded = match read {
            Ok(Ok(pair)) if pair == self.seen => return,
            Ok(Ok(pair)) => {
                self.seen = pair;
                load(&self.seen)
            }
            Ok(Err(problem)) => Err(problem),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(loaded) => {
                *self.tls.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.server;
                self.ends = loaded.ends;
                metrics.certificate_loaded.increment(1);
                tracing::info!("certificate replaced");
            }
            Err(problem) => {
                metrics.certificate_refused.increment(1);
                tracing::warn!(problem, "new certificate not used, the old one stays");
            }
        }
    }

    /// Shows how long the certificate is good for; below zero once it is over.
    fn tell(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.tls.metrics.http.certificate_expires.set(self.ends as f64 - now.as_secs_f64());
    }
}

/// # Errors
/// Says what is wrong, above all that the key is another certificate's.
fn load(pair: &Pair) -> Result<Loaded, String> {
    let chain = pair.chain()?;
    let first = Certificate::from_der(&chain[0])
        .map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let ends = first.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, pair.key()?)
        .map_err(|error| format!("the certificate and the key cannot be used: {error}"))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { server: Arc::new(server), ends })
}
