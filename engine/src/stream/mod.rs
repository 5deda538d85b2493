//! Redis: a bounded index of what Postgres says is owed. Everything here can be lost and made again.
//!
//! An entry stands for a batch, not for an event (docs/adr/0001). Keys carry the deployment's id and the
//! shard as hash tag, so that two deployments never meet and a shard stays in one cluster slot.

pub mod breaker;
mod cluster;
mod connection;
pub mod consumer;
pub mod depths;
pub mod due;
pub mod entry;
pub mod epoch;
pub mod keys;
pub mod producer;

use std::time::Duration;

use redis::{
    aio::{ConnectionManagerConfig, MultiplexedConnection},
    io::tcp::TcpSettings,
};

use self::cluster::{Cluster, Slot};
pub use self::{
    connection::Connection,
    entry::Entry,
    epoch::{Epoch, Gate},
    keys::Keys,
    producer::{Handle, Producer},
};
use crate::config::redis::Place;

/// The consumer group of all dispatchers.
const GROUP: &str = "dispatchers";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("REDIS_URL {0}")]
    Url(&'static str),
    #[error("stream.roots cannot be read")]
    Roots(#[source] std::io::Error),
    #[error("a Redis command failed")]
    Command(#[from] redis::RedisError),
    #[error(
        "REDIS_URL names a node of a Redis Cluster that has not got our keys: begin it with redis+cluster://"
    )]
    IsCluster,
    #[error("REDIS_URL begins with redis+cluster://, and what answers there is no Redis Cluster")]
    NoCluster,
    #[error("Redis did not answer in time")]
    Silent,
    #[error("a stream entry cannot be read")]
    Entry,
    #[error("Redis is not as it was left: its index is being made again")]
    Epoch,
    #[error("Redis does not tell its run id")]
    NoRunId,
}

impl Error {
    /// Whether only another setting can help.
    pub fn is_setting(&self) -> bool {
        matches!(self, Error::Url(_) | Error::IsCluster | Error::NoCluster)
    }

    /// Whether the consumer group is gone, as after Redis lost its data.
    fn is_no_group(&self) -> bool {
        matches!(self, Error::Command(error) if error.code() == Some("NOGROUP"))
    }
}

/// Where Redis is.
#[derive(Clone)]
pub struct Redis {
    to: To,
    reply_timeout: Duration,
}

#[derive(Clone)]
enum To {
    One(redis::Client),
    Cluster(Cluster),
}

/// A client of one node, with authorities of its own or the public ones.
fn client(
    info: redis::ConnectionInfo,
    certificates: Option<redis::TlsCertificates>,
) -> redis::RedisResult<redis::Client> {
    match certificates {
        Some(certificates) => redis::Client::build_with_tls(info, certificates),
        None => redis::Client::open(info),
    }
}

impl Redis {
    /// Does not connect yet.
    ///
    /// `roots` is a PEM file of the authorities that a `rediss://` server may have its certificate from; empty for the web's.
    pub fn new(url: &str, roots: &str, reply_timeout: Duration) -> Result<Redis, Error> {
        // A node that vanished without a word would otherwise be waited on for the kernel's quarter of an hour.
        let tcp = TcpSettings::default().set_nodelay(true);
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(reply_timeout * 3);
        let certificates = match roots {
            "" => None,
            file => Some(redis::TlsCertificates {
                client_tls: None,
                root_cert: Some(std::fs::read(file).map_err(Error::Roots)?),
            }),
        };
        let to = match Place::parse(url).map_err(Error::Url)? {
            Place::One(info) => To::One(client(info.set_tcp_settings(tcp), certificates)?),
            Place::Cluster(info, nodes) => {
                let cluster = Cluster::new(info.set_tcp_settings(tcp), nodes, keys::any(), reply_timeout);
                To::Cluster(cluster.with_certificates(certificates))
            }
        };
        Ok(Redis { to, reply_timeout })
    }

    /// A connection for commands that answer at once; it comes back by itself. Must be called within the
    /// runtime that uses it.
    pub fn commands(&self) -> Result<Connection, Error> {
        let client = match &self.to {
            To::One(client) => client,
            To::Cluster(cluster) => return Ok(Connection::Slot(Slot::new(cluster.clone()))),
        };
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(self.reply_timeout))
            .set_connection_timeout(Some(self.reply_timeout))
            .set_max_delay(Duration::from_millis(500))
            .set_number_of_retries(1);
        Ok(Connection::One(client.get_connection_manager_lazy(config)?))
    }

    /// A connection for one blocking read at a time. It has no response time-out: the crate's default of
    /// 500 ms would drop the late reply of a blocking read, and the entries in it would be pending for
    /// nobody who knows. The reader brings a watchdog of its own.
    async fn blocking(&self) -> Result<MultiplexedConnection, Error> {
        let client = match &self.to {
            To::One(client) => client,
            To::Cluster(cluster) => return Ok(cluster.connect(None).await?),
        };
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(self.reply_timeout));
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// The eviction policy, if one is in force under which Redis would throw our keys away. Those named `volatile-` take
    /// only keys with a time to live, which ours can be without.
    pub async fn eviction(&self) -> Result<Option<String>, Error> {
        let mut connection = self.commands()?;
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
        let bounded = field(&info, "maxmemory:").is_some_and(|bytes| bytes != "0");
        let policy = field(&info, "maxmemory_policy:").filter(|policy| policy.starts_with("allkeys-"));
        Ok(policy.filter(|_| bounded).map(str::to_owned))
    }

    /// Waits until Redis answers, for a start beside a Redis that is still starting.
    ///
    /// # Errors
    /// When it does not within `patience`, and at once when it is a cluster and the URL says otherwise, or the other way round.
    pub async fn wait_for(&self, patience: Duration) -> Result<(), Error> {
        let mut connection = self.commands()?;
        let until = tokio::time::Instant::now() + patience;
        let mut told = false;
        loop {
            // About a key, because only its node of a cluster answers that.
            match redis::cmd("EXISTS").arg(keys::any()).query_async::<()>(&mut connection).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == Some("MOVED") && matches!(self.to, To::One(_)) => {
                    return Err(Error::IsCluster);
                }
                Err(error) if cluster::is_no_cluster(&error) => return Err(Error::NoCluster),
                Err(error) if tokio::time::Instant::now() >= until => return Err(error.into()),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "waiting for Redis");
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

/// A field of what INFO says, by its name with the colon.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn number_of(info: &str, name: &str) -> Option<u64> {
    field(info, name)?.parse().ok()
}
