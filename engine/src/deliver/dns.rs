//! Looking names up. A name that nobody answers for holds one place among the look-ups, however many wait for it, and
//! keeps failing at once for a while after: it cannot take the resolver from the others.
//!
//! `/etc/hosts` and `/etc/resolv.conf` are read once, at start.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use lru::LruCache;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::metrics::Metrics;

/// Names looked up at once.
const LOOKUPS_MAX: usize = 256;

/// How long answers are believed, whatever their records say.
const KEPT_MIN: Duration = Duration::from_secs(5);
const KEPT_MAX: Duration = Duration::from_secs(300);

/// How long a failure stands for the next ones.
const FAILURE_KEPT: Duration = Duration::from_secs(5);

/// Names whose answers or failures are kept.
const NAMES_KEPT: usize = 8192;

type Answer = Result<Arc<[IpAddr]>, Arc<NetError>>;

#[derive(Clone)]
pub(super) struct Dns(Arc<Inner>);

struct Inner {
    resolver: Result<TokioResolver, Arc<NetError>>,
    lookups: Semaphore,
    state: Mutex<State>,
    /// Longest time for one name, over all name servers and repeats.
    patience: Duration,
    metrics: Arc<Metrics>,
}

struct State {
    /// What is being looked up, with the place where the answer will be.
    flights: HashMap<Box<str>, watch::Receiver<Option<Answer>>>,
    failed: LruCache<Box<str>, (Instant, Arc<NetError>)>,
}

/// A name without addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the look-up failed")]
    Failed(#[source] Arc<NetError>),
    #[error("the look-up was given up")]
    Lost,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::other(error)
    }
}

impl Error {
    /// The system's error beneath, if that is what it was.
    pub(super) fn io(&self) -> Option<&io::Error> {
        match self {
            Error::Failed(error) => match &**error {
                NetError::Io(error) => Some(error),
                _ => None,
            },
            Error::Lost => None,
        }
    }
}

impl Dns {
    /// Asks `servers`, or without any the system's.
    pub(super) fn new(servers: &[SocketAddr], patience: Duration, metrics: Arc<Metrics>) -> Dns {
        let failures = NonZeroUsize::new(NAMES_KEPT).expect("not zero");
        let state = State { flights: HashMap::new(), failed: LruCache::new(failures) };
        Dns(Arc::new(Inner {
            resolver: resolver(servers, patience).map_err(Arc::new),
            lookups: Semaphore::new(LOOKUPS_MAX),
            state: Mutex::new(state),
            patience,
            metrics,
        }))
    }

    /// Every address of a name, those of IPv4 first.
    pub(super) async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, Error> {
        let name = name.to_ascii_lowercase().into_boxed_str();
        let mut answer = {
            let mut state = self.0.lock();
            if let Some((until, error)) = state.failed.get(&name)
                && Instant::now() < *until
            {
                return Err(Error::Failed(error.clone()));
            }
            match state.flights.get(&name) {
                Some(answer) => answer.clone(),
                None => {
                    let (sender, answer) = watch::channel(None);
                    state.flights.insert(name.clone(), answer.clone());
                    // Apart from the caller, who may give up while others wait.
                    tokio::spawn(Flight { inner: self.0.clone(), name }.fly(sender));
                    answer
                }
            }
        };
        let answer = answer.wait_for(Option::is_some).await.map_err(|_| Error::Lost)?;
        answer.clone().ok_or(Error::Lost)?.map_err(Error::Failed)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, name: &str) -> Answer {
        let resolver = self.resolver.as_ref().map_err(Arc::clone)?;
        let found = tokio::time::timeout(self.patience, resolver.lookup_ip(name)).await;
        let mut found: Vec<IpAddr> =
            found.unwrap_or(Err(NetError::Timeout)).map_err(Arc::new)?.iter().collect();
        found.sort_by_key(IpAddr::is_ipv6);
        if found.is_empty() {
            Err(Arc::new(NetError::Message("the name has no address")))
        } else {
            Ok(found.into())
        }
    }
}

/// One look-up for all who wait for it.
struct Flight {
    inner: Arc<Inner>,
    name: Box<str>,
}

impl Flight {
    async fn fly(self, answer: watch::Sender<Option<Answer>>) {
        // The semaphore is never closed, and callers wait within their own time.
        let _permit = self.inner.lookups.acquire().await;
        let start = Instant::now();
        let found = self.inner.ask(&self.name).await;
        let metrics = &self.inner.metrics.deliver;
        metrics.dns_seconds.record(start.elapsed().as_secs_f64());
        if let Err(error) = &found {
            metrics.dns_failures.increment(1);
            // The want of a file descriptor says nothing about the name.
            if !matches!(**error, NetError::Io(_)) {
                let until = Instant::now() + FAILURE_KEPT;
                self.inner.lock().failed.put(self.name.clone(), (until, error.clone()));
            }
        }
        answer.send_replace(Some(found));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.inner.lock().flights.remove(&self.name);
    }
}

fn resolver(servers: &[SocketAddr], patience: Duration) -> Result<TokioResolver, NetError> {
    let with = |servers| {
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let mut builder = if servers.is_empty() {
        // Without name servers `/etc/hosts` and `localhost` still work.
        TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(error = crate::chain(&error), "no name servers: only /etc/hosts is read");
            with(Vec::new())
        })
    } else {
        with(servers.iter().map(name_server).collect())
    };
    let options = builder.options_mut();
    options.timeout = options.timeout.min(patience / 2);
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = NAMES_KEPT as u64;
    options.positive_min_ttl = Some(KEPT_MIN);
    options.positive_max_ttl = Some(KEPT_MAX);
    options.negative_max_ttl = Some(FAILURE_KEPT);
    builder.build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_needs_no_server() {
        let dns = Dns::new(&[], Duration::from_secs(5), Arc::new(Metrics::new()));
        for name in ["localhost", "LOCALHOST", "localhost."] {
            let found = dns.lookup(name).await.unwrap();
            assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{name}: {found:?}");
        }
        assert!(dns.0.lock().flights.is_empty());
    }

    #[tokio::test]
    async fn callers_of_one_name_share_a_look_up_and_its_failure() {
        let dns = Dns::new(&[], Duration::from_secs(5), Arc::new(Metrics::new()));
        // Kept busy, the name waits for its turn, as behind a server that does not answer.
        let busy = dns.0.lookups.acquire_many(LOOKUPS_MAX as u32).await.unwrap();
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let dns = dns.clone();
                tokio::spawn(async move { dns.lookup("nowhere.invalid").await })
            })
            .collect();
        while Arc::strong_count(&dns.0) < 22 {
            tokio::task::yield_now().await;
        }
        assert_eq!(dns.0.lock().flights.len(), 1);
        drop(busy);
        for call in calls {
            assert!(call.await.unwrap().is_err());
        }
        assert!(dns.0.lock().flights.is_empty());
        assert!(dns.0.metrics.render().contains("eventpulse_deliver_dns_failures_total 1"));
    }
}
