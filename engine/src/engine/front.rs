//! The gateway's ports: the public one with its certificate, and the operator's own.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use super::{Error, bind};
use crate::{
    config::{self, Config},
    http::{self, Server},
    metrics::Metrics,
};

/// Connections to the operator's port: a few scrapers and people.
const ADMIN_CONNECTIONS: usize = 64;

/// What runs beside the public server.
pub(super) struct Beside {
    admin: Option<Server>,
    certificate: Option<http::Watch>,
    metrics: Arc<Metrics>,
}

/// Takes both ports and reads the certificate.
///
/// # Errors
/// For a port in use and a certificate that cannot be used.
pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<(Server, Beside), Error> {
    let (tls, certificate) = http::Tls::open(config, metrics.clone())?.unzip();
    let public = SocketAddr::new(config.http.listen, config.http.port);
    let server = bind(&config.http, public, metrics.http.connections.clone()).await?.with_tls(tls);
    let admin = match config.admin.address.0 {
        Some(address) => {
            let settings = config::Http { connections_max: ADMIN_CONNECTIONS, ..config.http.clone() };
            Some(bind(&settings, address, metrics::Gauge::noop()).await?)
        }
        None => None,
    };
    Ok((server, Beside { admin, certificate, metrics: metrics.clone() }))
}

impl Beside {
    /// Where the operator's port is.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|server| server.address().ok())
    }

    /// Runs until stopped.
    pub(super) async fn run(self, stop: watch::Receiver<bool>) {
        let Beside { admin, certificate, metrics } = self;
        let serve = async {
            if let Some(server) = admin {
                server.run(Arc::new(http::Admin { metrics }), stop.clone()).await;
            }
        };
        let watch = async {
            if let Some(watch) = certificate {
                watch.run(stop.clone()).await;
            }
        };
        tokio::join!(serve, watch);
    }
}
