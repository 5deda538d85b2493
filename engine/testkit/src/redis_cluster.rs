//! A Redis Cluster of three masters, each with a replica, whose nodes can be killed and whose slots can be moved.
//!
//! Everything here blocks: it is called from a thread that may.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use eventpulse_embedded::{Redis, free_ports};
use redis::{Connection, FromRedisValue, Value};

const MASTERS: usize = 3;
const NODES: usize = 2 * MASTERS;
const SLOTS: usize = 16_384;

/// Longest wait for the nodes to agree; a failover takes about three node time-outs of one second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster. Dropping it stops it.
pub struct RedisCluster {
    /// Those that begin as masters, then the replica of each.
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes, each in a directory that `dir` gives, and waits until they are one cluster.
    pub(crate) fn start(dir: impl Fn() -> PathBuf) -> RedisCluster {
        let buses = free_ports(NODES).unwrap_or_else(|e| panic!("{e}"));
        let dirs: Vec<PathBuf> = buses.iter().map(|_| dir()).collect();
        let nodes: Vec<Redis> = thread::scope(|scope| {
            let started: Vec<_> = dirs
                .iter()
                .zip(&buses)
                .map(|(dir, bus)| {
                    scope.spawn(move || {
                        let bus = bus.to_string();
                        let args = [
                            "--cluster-enabled",
                            "yes",
                            "--cluster-node-timeout",
                            "1000",
                            "--cluster-port",
                            &bus,
                            // However long it was alone, a replica may take over; and it is in step soon.
                            "--cluster-replica-validity-factor",
                            "0",
                            "--repl-diskless-sync-delay",
                            "0",
                        ];
                        Redis::start_with(dir, &args).unwrap_or_else(|e| panic!("{e}"))
                    })
                })
                .collect();
            started.into_iter().map(|node| node.join().expect("a node starts")).collect()
        });
        let cluster = RedisCluster { nodes };
        cluster.join(&buses);
        cluster
    }

    /// Makes one cluster of the nodes and gives each master its third of the slots.
    fn join(&self, buses: &[u16]) {
        for (i, bus) in buses.iter().enumerate() {
            self.ask::<()>(i, &["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            if i < MASTERS {
                let (from, to) = (i * SLOTS / MASTERS, (i + 1) * SLOTS / MASTERS - 1);
                self.ask::<()>(i, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            }
            let port = self.nodes[i].port().to_string();
            self.ask::<()>(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus.to_string()]);
        }
        for i in 0..NODES {
            self.wait(i, "CLUSTER INFO", &format!("cluster_known_nodes:{NODES}"));
        }
        for replica in MASTERS..NODES {
            let master = self.id(replica - MASTERS);
            // It may not have heard yet that this one is a master.
            self.wait(replica, "CLUSTER NODES", &master);
            self.ask::<()>(replica, &["CLUSTER", "REPLICATE", &master]);
        }
        for i in 0..NODES {
            self.wait(i, "CLUSTER INFO", "cluster_state:ok");
            if i >= MASTERS {
                self.wait(i, "INFO replication", "master_link_status:up");
            }
        }
    }

    /// Gives a URL that names two of the nodes: the others have to be learned.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port(), self.nodes[1].port())
    }

    /// Gives the URL of one node, as of a Redis that is no cluster.
    pub fn node_url(&self, node: usize) -> String {
        self.nodes[node].url()
    }

    /// Gives the number of the node that owns the slot of `key`, by what node `by` knows.
    pub fn owner(&self, key: &str, by: usize) -> usize {
        let slot = self.slot(key, by);
        let ranges: Vec<Vec<Value>> = self.ask(by, &["CLUSTER", "SLOTS"]);
        let port = ranges.iter().find_map(|range| match &range[..] {
            [Value::Int(from), Value::Int(to), Value::Array(owner), ..] if (*from..=*to).contains(&slot) => {
                match owner[1] {
                    Value::Int(port) => Some(port),
                    _ => None,
                }
            }
            _ => None,
        });
        let port = port.expect("somebody owns each slot");
        self.nodes.iter().position(|node| i64::from(node.port()) == port).expect("one of ours")
    }

    fn slot(&self, key: &str, by: usize) -> i64 {
        self.ask(by, &["CLUSTER", "KEYSLOT", key])
    }

    /// Ends a node at once.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Starts a node that was killed, with its data.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits until all living nodes but `dead` have one view in which another owns the slot of `key`.
    pub fn wait_for_failover(&self, key: &str, dead: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let owners: Vec<usize> =
                (0..NODES).filter(|node| *node != dead).map(|node| self.owner(key, node)).collect();
            if owners[0] != dead && owners.iter().all(|owner| *owner == owners[0]) {
                return owners[0];
            }
            assert!(Instant::now() < deadline, "no failover of node {dead}: {owners:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves the slot of `key`, with all keys in it, to another node, as an operator does who spreads the load anew.
    pub fn move_slot(&self, key: &str, to: usize) {
        let from = self.owner(key, to);
        let slot = self.slot(key, to).to_string();
        let (source, target) = (self.id(from), self.id(to));
        self.ask::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.ask::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        let port = self.nodes[to].port().to_string();
        loop {
            let keys: Vec<String> = self.ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
            if keys.is_empty() {
                break;
            }
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            // `NOKEY` when they have gone by themselves meanwhile.
            self.ask::<Value>(from, &migrate);
        }
        for node in [to, from].into_iter().chain(0..MASTERS) {
            self.ask::<()>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        }
    }

    fn id(&self, node: usize) -> String {
        self.ask(node, &["CLUSTER", "MYID"])
    }

    fn connection(&self, node: usize) -> Connection {
        let client = redis::Client::open(self.nodes[node].url()).expect("a URL");
        client.get_connection().unwrap_or_else(|e| panic!("node {node} cannot be reached: {e}"))
    }

    fn ask<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection(node)).unwrap_or_else(|e| panic!("{words:?} at node {node}: {e}"))
    }

    /// Waits until what a node answers has `text` in it.
    fn wait(&self, node: usize, command: &str, text: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said: String = self.ask(node, &words);
            if said.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "node {node} does not say {text:?}: {said}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
