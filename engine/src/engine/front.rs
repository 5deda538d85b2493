//! The gateway's ports: the public one with its certificate, and the operator's own.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use super::{Common, Error, bind};
use crate::{
    config,
    http::{self, Server},
    metrics::Metrics,
    store::Store,
};

/// Connections to the operator's port: a few scrapers and people.
const ADMIN_CONNECTIONS: usize = 64;

/// What runs beside the public server.
pub(super) struct Beside {
    admin: Option<Server>,
    certificate: Option<http::Watch>,
    readiness: http::Readiness,
    store: Store,
    metrics: Arc<Metrics>,
}

/// Takes both ports and reads the certificate.
///
/// # Errors
/// For a port in use and a certificate that cannot be used.
pub(super) async fn open(common: &Common) -> Result<(Server, Beside), Error> {
    let (config, metrics, stopping) = (&common.config, &common.metrics, &common.stopping);
    let (tls, certificate) = http::Tls::open(config, metrics.clone())?.unzip();
    let public = SocketAddr::new(config.http.listen, config.http.port);
    let connections = metrics.http.connections.clone();
    let server = bind(&config.http, public, connections, stopping.clone())?.with_tls(tls);
    let admin = match config.admin.address.0 {
        Some(address) => {
            let settings = config::Http { connections_max: ADMIN_CONNECTIONS, ..config.http.clone() };
            Some(bind(&settings, address, metrics::Gauge::noop(), stopping.clone())?)
        }
        None => None,
    };
    let readiness = common.readiness("api-gateway", false)?;
    let store = Store::at(common.address.clone(), 1);
    Ok((server, Beside { admin, certificate, readiness, store, metrics: metrics.clone() }))
}

impl Beside {
    /// Where the operator's port is.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|server| server.address().ok())
    }

    /// Runs until stopped.
    pub(super) async fn run(self, stop: watch::Receiver<bool>) {
        let Beside { admin, certificate, readiness, store, metrics } = self;
        let serve = async {
            if let Some(server) = admin {
                server.run(Arc::new(http::Admin { metrics, readiness, store }), stop.clone()).await;
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
