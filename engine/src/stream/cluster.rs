//! A shard's way into a Redis Cluster.
//!
//! All keys of a shard are in one slot, so all of its commands go to one node, and there is no need of a client that
//! knows every slot. Who owns ours is asked when a connection is needed: at the start, and after an error that says, or
//! may mean, that it is another by now.

use std::{
    sync::{Arc, Mutex as Sync, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::sync::Mutex;

/// Nodes remembered, at most: enough for one to be up.
const NODES_MAX: usize = 64;

/// A look-up that found nothing is not repeated sooner, so that many callers do not become many connections.
const PAUSE: Duration = Duration::from_millis(100);

/// The nodes of a cluster, and how to find the one that has a shard.
#[derive(Clone)]
pub(super) struct Cluster {
    /// How to connect, but for the address.
    info: ConnectionInfo,
    /// Who can be asked, the one that answered last before the others.
    nodes: Arc<Sync<Vec<ConnectionAddr>>>,
    /// Any key of the shard.
    key: Arc<str>,
    /// For a connection, and for a reply about the nodes.
    patience: Duration,
    certificates: Option<redis::TlsCertificates>,
}

impl Cluster {
    /// `nodes` are asked first, and others as they are learned of.
    pub(super) fn new(
        info: ConnectionInfo,
        nodes: Vec<ConnectionAddr>,
        key: String,
        patience: Duration,
    ) -> Cluster {
        Cluster { info, nodes: Arc::new(Sync::new(nodes)), key: key.into(), patience, certificates: None }
    }

    /// The same with authorities of its own.
    pub(super) fn with_certificates(self, certificates: Option<redis::TlsCertificates>) -> Cluster {
        Cluster { certificates, ..self }
    }

    /// Connects to the owner of the shard's slot.
    pub(super) async fn connect(&self, reply: Option<Duration>) -> RedisResult<MultiplexedConnection> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut last = None;
        for node in nodes {
            match self.connect_by(&node, reply).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(no_owner))
    }

    /// Asks `node` who the owner is, and connects to it.
    async fn connect_by(
        &self,
        node: &ConnectionAddr,
        reply: Option<Duration>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut asked = self.open(node, Some(self.patience)).await?;
        let mut pipe = redis::pipe();
        pipe.cmd("CLUSTER").arg("KEYSLOT").arg(&*self.key).cmd("CLUSTER").arg("SLOTS");
        let (slot, ranges): (i64, Vec<Vec<Value>>) = pipe.query_async(&mut asked).await?;
        let (owner, others) = owner(&ranges, slot, node).ok_or_else(no_owner)?;
        let connection = self.open(&owner, reply).await?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        for known in others.into_iter().chain([owner, node.clone()]) {
            nodes.retain(|n| *n != known);
            nodes.insert(0, known);
        }
        nodes.truncate(NODES_MAX);
        Ok(connection)
    }

    async fn open(
        &self,
        address: &ConnectionAddr,
        reply: Option<Duration>,
    ) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(reply)
            .set_connection_timeout(Some(self.patience));
        let client = super::client(self.info.clone().set_addr(address.clone()), self.certificates.clone())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// Whether a server said that it is in no cluster.
pub(super) fn is_no_cluster(error: &RedisError) -> bool {
    // There is no code for it.
    error.to_string().contains("cluster support disabled")
}

fn no_owner() -> RedisError {
    (ErrorKind::Server(ServerErrorKind::ClusterDown), "no node owns the slot").into()
}

/// Who owns `slot` by the reply of `CLUSTER SLOTS` that `asked` gave: `[from, to, owner, replica, ...]` for each range, a
/// node being `[host, port, ...]`. And all other nodes that it names.
fn owner(
    ranges: &[Vec<Value>],
    slot: i64,
    asked: &ConnectionAddr,
) -> Option<(ConnectionAddr, Vec<ConnectionAddr>)> {
    let (mut owner, mut others) = (None, Vec::new());
    for range in ranges {
        let [Value::Int(from), Value::Int(to), nodes @ ..] = &range[..] else {
            continue;
        };
        let mut nodes = nodes.iter().filter_map(|node| address(node, asked));
        if (*from..=*to).contains(&slot) {
            owner = nodes.next();
        }
        others.extend(nodes.take(NODES_MAX.saturating_sub(others.len())));
    }
    Some((owner?, others))
}

fn address(node: &Value, asked: &ConnectionAddr) -> Option<ConnectionAddr> {
    let Value::Array(fields) = node else {
        return None;
    };
    let host = match fields.first()? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        // The node does not know its own address, so it is the one under which it was asked.
        Value::Nil => "",
        _ => return None,
    };
    let Value::Int(port) = fields.get(1)? else {
        return None;
    };
    let port = u16::try_from(*port).ok()?;
    let host = |same: &String| if host.is_empty() { same.clone() } else { host.to_owned() };
    match asked {
        ConnectionAddr::Tcp(same, _) => Some(ConnectionAddr::Tcp(host(same), port)),
        ConnectionAddr::TcpTls { host: same, insecure, tls_params, .. } => Some(ConnectionAddr::TcpTls {
            host: host(same),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        }),
        _ => None,
    }
}

/// A connection for commands of one shard that comes back by itself, to whoever owns the shard then. Clones share it.
#[derive(Clone)]
pub struct Slot {
    cluster: Arc<Cluster>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Counts connections: an error of an earlier one says nothing about the present one.
    turn: u64,
}

impl Slot {
    pub(super) fn new(cluster: Cluster) -> Slot {
        Slot { cluster: Arc::new(cluster), state: Arc::default() }
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection {
            return Ok((connection.clone(), state.turn));
        }
        match self.cluster.connect(Some(self.cluster.patience)).await {
            Ok(connection) => {
                state.turn += 1;
                state.connection = Some(connection.clone());
                Ok((connection, state.turn))
            }
            Err(error) => {
                tokio::time::sleep(PAUSE).await;
                Err(error)
            }
        }
    }

    /// Sends a command, and once more where it was not done because the slot has another owner.
    pub(super) async fn command(&self, command: &Cmd) -> RedisResult<Value> {
        let (reply, said) = self.try_command(command).await?;
        if said == Said::NotDone { self.try_command(command).await?.0 } else { reply }
    }

    async fn try_command(&self, command: &Cmd) -> RedisResult<(RedisResult<Value>, Said)> {
        let (mut connection, turn) = self.connection().await?;
        let reply = connection.req_packed_command(command).await;
        let said = match &reply {
            Ok(value) => Said::of_value(value),
            Err(error) => Said::of_error(error),
        };
        self.heed(said, turn).await;
        Ok((reply, said))
    }

    /// The same for a pipeline, if nothing in it was done.
    pub(super) async fn commands(&self, pipe: &Pipeline, offset: usize, n: usize) -> RedisResult<Vec<Value>> {
        let (replies, said) = self.try_commands(pipe, offset, n).await?;
        if said == Said::NotDone { self.try_commands(pipe, offset, n).await?.0 } else { replies }
    }

    async fn try_commands(
        &self,
        pipe: &Pipeline,
        offset: usize,
        n: usize,
    ) -> RedisResult<(RedisResult<Vec<Value>>, Said)> {
        let (mut connection, turn) = self.connection().await?;
        let replies = connection.req_packed_commands(pipe, offset, n).await;
        let said = match &replies {
            Ok(values) => values.iter().map(Said::of_value).reduce(Said::and).unwrap_or(Said::Here),
            Err(error) => Said::of_error(error),
        };
        self.heed(said, turn).await;
        Ok((replies, said))
    }

    async fn heed(&self, said: Said, turn: u64) {
        if said != Said::Here {
            let mut state = self.state.lock().await;
            if state.turn == turn {
                state.connection = None;
            }
        }
    }
}

/// What a reply says of where the slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// Nothing but that it was asked in the right place.
    Here,
    /// Another node has it, and this one has done nothing.
    NotDone,
    /// Another node may have it, and what this one has done is not known.
    Elsewhere,
}

impl Said {
    fn of_error(error: &RedisError) -> Said {
        // Without a code it is no answer of a server, but a connection that broke or is silent.
        error.code().map_or(Said::Elsewhere, Said::of_code)
    }

    fn of_value(value: &Value) -> Said {
        match value {
            Value::ServerError(error) => Said::of_code(error.code()),
            _ => Said::Here,
        }
    }

    /// While keys are on their way to another node, `ASK` and `TRYAGAIN` name no new owner yet: callers try later.
    fn of_code(code: &str) -> Said {
        match code {
            // A transaction is aborted when one of its commands was refused, which here is for the slot.
            "MOVED" | "EXECABORT" => Said::NotDone,
            "READONLY" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" => Said::Elsewhere,
            _ => Said::Here,
        }
    }

    /// Of two replies to one pipeline.
    fn and(self, other: Said) -> Said {
        if self == other { self } else { Said::Elsewhere }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> ConnectionAddr {
        ConnectionAddr::Tcp(host.to_owned(), port)
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())])
    }

    #[test]
    fn the_owner_is_found_in_the_ranges() {
        let text = |s: &str| Value::BulkString(s.as_bytes().to_vec());
        let ranges = [
            vec![Value::Int(0), Value::Int(99), node(text("a"), 1), node(text("b"), 2)],
            vec![Value::Int(100), Value::Int(200), node(Value::Nil, 3), node(text(""), 4)],
            vec![Value::Int(300)],
        ];
        let asked = tcp("me", 9);
        assert_eq!(
            owner(&ranges, 99, &asked),
            Some((tcp("a", 1), vec![tcp("b", 2), tcp("me", 3), tcp("me", 4)]))
        );
        assert_eq!(
            owner(&ranges, 150, &asked).unwrap().0,
            tcp("me", 3),
            "a node without a name is the one asked"
        );
        assert_eq!(owner(&ranges, 250, &asked), None);
        assert_eq!(owner(&[], 0, &asked), None);
    }

    #[test]
    fn a_pipeline_is_sent_again_only_if_nothing_of_it_was_done() {
        let all = |codes: &[&str]| codes.iter().map(|code| Said::of_code(code)).reduce(Said::and).unwrap();
        assert_eq!(all(&["MOVED", "MOVED"]), Said::NotDone);
        assert_eq!(all(&["", "MOVED"]), Said::Elsewhere);
        assert_eq!(all(&["READONLY", "READONLY"]), Said::Elsewhere);
        assert_eq!(all(&["NOSCRIPT"]), Said::Here);
        assert_eq!(
            Said::of_error(&std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            Said::Elsewhere
        );
    }
}
