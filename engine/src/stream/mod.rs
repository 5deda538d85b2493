//! Redis: a bounded index of what Postgres says is owed. Everything here can be lost and made again.
//!
//! An entry stands for a batch, not for an event (docs/adr/0001). Keys carry the deployment's id and the
//! shard as hash tag, so that two deployments never meet and a shard stays in one cluster slot.

pub mod breaker;
pub mod consumer;
pub mod depths;
pub mod due;
pub mod entry;
pub mod epoch;
pub mod keys;
pub mod producer;

use std::time::Duration;

use redis::{
    IntoConnectionInfo as _,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    io::tcp::TcpSettings,
};

pub use self::{
    entry::Entry,
    epoch::{Epoch, Gate},
    keys::Keys,
    producer::{Handle, Producer},
};

/// The consumer group of all dispatchers.
const GROUP: &str = "dispatchers";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("REDIS_URL is not usable")]
    Url(#[source] redis::RedisError),
    #[error("stream.roots cannot be read")]
    Roots(#[source] std::io::Error),
    #[error("a Redis command failed")]
    Command(#[from] redis::RedisError),
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
    /// Whether the consumer group is gone, as after Redis lost its data.
    fn is_no_group(&self) -> bool {
        matches!(self, Error::Command(error) if error.code() == Some("NOGROUP"))
    }
}

/// Where Redis is.
#[derive(Clone)]
pub struct Redis {
    client: redis::Client,
    reply_timeout: Duration,
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
        let info = url.into_connection_info().map_err(Error::Url)?.set_tcp_settings(tcp);
        let client = if roots.is_empty() {
            redis::Client::open(info).map_err(Error::Url)?
        } else {
            let root_cert = Some(std::fs::read(roots).map_err(Error::Roots)?);
            let certificates = redis::TlsCertificates { client_tls: None, root_cert };
            redis::Client::build_with_tls(info, certificates).map_err(Error::Url)?
        };
        Ok(Redis { client, reply_timeout })
    }

    /// A connection for commands that answer at once; it comes back by itself. Must be called within the
    /// runtime that uses it.
    pub fn commands(&self) -> Result<ConnectionManager, Error> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(self.reply_timeout))
            .set_connection_timeout(Some(self.reply_timeout))
            .set_max_delay(Duration::from_millis(500))
            .set_number_of_retries(1);
        Ok(self.client.get_connection_manager_lazy(config)?)
    }

    /// A connection for one blocking read at a time. It has no response time-out: the crate's default of
    /// 500 ms would drop the late reply of a blocking read, and the entries in it would be pending for
    /// nobody who knows. The reader brings a watchdog of its own.
    async fn blocking(&self) -> Result<MultiplexedConnection, Error> {
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(self.reply_timeout));
        Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?)
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
    pub async fn wait_for(&self, patience: Duration) -> Result<(), Error> {
        let mut connection = self.commands()?;
        let until = tokio::time::Instant::now() + patience;
        let mut told = false;
        loop {
            match redis::cmd("PING").query_async::<()>(&mut connection).await {
                Ok(()) => return Ok(()),
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
