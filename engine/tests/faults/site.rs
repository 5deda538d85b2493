//! All that runs: the servers, the proxies before them, and the processes.

use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use eventpulse::store::{Address, migrate};
use eventpulse_testkit::{Postgres, Redis, TcpProxy, scratch};
use tokio::time::Instant;
use tokio_postgres::NoTls;

use crate::{
    index,
    load::{Gateways, Ledger},
    node::{Node, Place, Role},
    world::World,
};

/// Failpoints that every dispatcher has: nothing comes of this one until such an event is sent.
const ALWAYS: &str = "event=abort@load.poison";

/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) struct Site {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) postgres_proxy: TcpProxy,
    pub(crate) redis_proxy: TcpProxy,
    pub(crate) place: Place,
    /// Two gateways and two dispatchers, in this order.
    pub(crate) nodes: Vec<Node>,
    pub(crate) gateways: Gateways,
    pub(crate) world: Option<World>,
    pub(crate) ledger: Option<Arc<Ledger>>,
    /// Places in the ledger whose events went with a Postgres that was set back.
    pub(crate) forgiven: Vec<Range<usize>>,
    started: usize,
    /// Most bytes seen: of one process, and of Redis.
    pub(crate) node_memory: u64,
    pub(crate) redis_memory: u64,
}

impl Site {
    pub(crate) async fn start(seed: u64) -> Site {
        let dir = scratch("faults");
        let (postgres, redis) = servers(&dir);
        let address = Address::parse(&postgres.url("eventpulse")).expect("a URL");
        migrate::migrate(&address).await.expect("migrated");
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let postgres_proxy = TcpProxy::start(local(postgres.port())).await;
        let redis_proxy = TcpProxy::start(local(redis.port())).await;
        let direct = format!(":{}/", postgres.port());
        let place = Place {
            database: postgres
                .url("eventpulse")
                .replace(&direct, &format!(":{}/", postgres_proxy.addr().port())),
            redis: format!("redis://{}", redis_proxy.addr()),
            dir,
            logs: logs(seed),
        };
        let mut site = Site {
            postgres,
            redis,
            postgres_proxy,
            redis_proxy,
            place,
            nodes: Vec::new(),
            gateways: Arc::new(Mutex::new(Vec::new())),
            world: None,
            ledger: None,
            forgiven: Vec::new(),
            started: 0,
            node_memory: 0,
            redis_memory: 0,
        };
        for role in [Role::Gateway, Role::Gateway, Role::Dispatcher, Role::Dispatcher] {
            let node = site.node(role, "").await;
            site.nodes.push(node);
        }
        site.tell_producers(None);
        site.world = Some(World::make(&site.nodes[0].base()).await);
        site
    }

    pub(crate) fn world(&self) -> &World {
        self.world.as_ref().expect("made with the site")
    }

    /// Of the producers, once there are some.
    pub(crate) fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("the load has begun")
    }

    /// Starts a process that is none of the usual ones.
    pub(crate) async fn node(&mut self, role: Role, failpoints: &str) -> Node {
        self.started += 1;
        let kind = if role == Role::Gateway { "gateway" } else { "dispatcher" };
        let name = format!("{kind}-{}", self.started);
        let failpoints = format!("{ALWAYS};{failpoints}");
        Node::start(&self.place, role, &name, &failpoints).await
    }

    /// Starts the `n`th process again, after its end.
    pub(crate) async fn start_again(&mut self, n: usize) {
        let role = self.nodes[n].role;
        let node = self.node(role, "").await;
        self.nodes[n] = node;
        self.tell_producers(None);
    }

    /// Which gateways producers may use: the usual ones, and perhaps one more.
    pub(crate) fn tell_producers(&self, more: Option<&Node>) {
        let usual = self.nodes.iter().filter(|node| node.role == Role::Gateway);
        let bases = usual.chain(more).map(Node::base).collect();
        *self.gateways.lock().unwrap_or_else(PoisonError::into_inner) = bases;
    }

    /// Lets things go on for a while, with an eye on memory.
    pub(crate) async fn rest(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.look().await;
            let now = Instant::now();
            if now >= until {
                return;
            }
            tokio::time::sleep(LOOK.min(until - now)).await;
        }
    }

    async fn look(&mut self) {
        let most = self.nodes.iter().filter_map(Node::memory).max();
        self.node_memory = self.node_memory.max(most.unwrap_or(0));
        let url = self.redis.url();
        // It may be stopped.
        let asked = tokio::time::timeout(Duration::from_millis(100), index::memory(&url)).await;
        self.redis_memory = self.redis_memory.max(asked.ok().flatten().unwrap_or(0));
        // The receiver's own list is not needed beside the log.
        if let Some(world) = &self.world {
            world.receiver.clear();
        }
    }

    /// A connection past the proxy.
    pub(crate) async fn database(&self) -> tokio_postgres::Client {
        let url = self.postgres.url("eventpulse");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("Postgres answers");
        tokio::spawn(connection);
        client
    }

    /// A metric of all processes that run now, by its name with labels as it is rendered.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut sum = 0.0;
        for node in &self.nodes {
            let response = client.get(format!("{}/metrics", node.base())).send().await.expect("metrics");
            let text = response.text().await.expect("text");
            let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(n, _)| n == name));
            sum += line
                .and_then(|line| line.rsplit_once(' '))
                .map_or(0.0, |(_, value)| value.parse().expect("a number"));
        }
        sum
    }
}

/// Where the logs of the last run with this seed are, also after its end. Runs with several seeds may go on side by side.
fn logs(seed: u64) -> PathBuf {
    let dir = PathBuf::from(concat!(env!("CARGO_TARGET_TMPDIR"), "/faults")).join(seed.to_string());
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a directory for logs");
    dir
}

fn servers(dir: &Path) -> (Postgres, Redis) {
    std::thread::scope(|scope| {
        let redis = scope.spawn(|| Redis::start(dir));
        let postgres = Postgres::start(dir).unwrap_or_else(|e| panic!("{e}"));
        (postgres, redis.join().expect("no panic").unwrap_or_else(|e| panic!("{e}")))
    })
}
