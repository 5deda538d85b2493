//! Settings of the way in and the way out: TLS, the operator's own port, the end of a process, and where webhooks may point.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    list::{List, Network, Ports},
    value::{Maybe, span},
};

section!(
    /// The gateway's port.
    Gateway {
        /// PEM file of the certificate that the gateway shows, with those between it and its authority behind it. With it the
        /// port speaks TLS and nothing else.
        tls_cert: String = String::new(),
        /// PEM file of its key.
        tls_key: String = String::new(),
        /// Between two looks at these files; a changed pair is used from then on.
        #[serde(with = "span")]
        tls_reload_every: Duration = Duration::from_secs(10),
        /// Time for a TLS handshake. Shorter refuses far clients on bad networks, longer lets idle ones hold a place.
        #[serde(with = "span")]
        tls_handshake_timeout: Duration = Duration::from_secs(10),
    }
);

section!(
    /// The operator's own port.
    Admin {
        /// Where `/metrics` is then, and no longer on the gateway's port: `address:port`, port 0 for a free one. Empty for no such
        /// port.
        address: Maybe<SocketAddr> = Maybe::default(),
    }
);

section!(
    /// What metrics say beyond the usual.
    Metrics {
        /// Webhooks that metrics name, the worst ones; 0 for none, at most 50. Each has three series, which change with who is
        /// worst, so Prometheus keeps more than this over time.
        worst_webhooks: usize = 0,
    }
);

section!(
    /// The end of a process.
    Shutdown {
        /// How long a gateway that is told to end goes on as before, but for `/readyz`, which says that it ends, and for
        /// `Connection: close` on its answers. As long as the load balancer takes to notice: shorter loses requests that
        /// were on their way, longer makes restarts slow. A second signal ends it. 0 for none.
        #[serde(with = "span")]
        delay: Duration = Duration::ZERO,
    }
);

section!(
    /// Where webhooks may point.
    Targets {
        /// `ALLOW_PRIVATE_TARGETS`: lets webhooks reach loopback, private and link-local addresses.
        /// On for development; in production it lets a tenant reach your own network.
        allow_private: bool = false,
        /// Networks that webhooks may reach although they are not public.
        allow: List<Network> = List::default(),
        /// Networks that webhooks may not reach, whatever the two above say.
        deny: List<Network> = List::default(),
        /// Ports that webhooks may reach, single or `8000-8999`; empty for all.
        ports: List<Ports> = List::default(),
    }
);
