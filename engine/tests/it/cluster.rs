//! Redis Cluster: a master that dies, a slot that moves, and a URL that says the wrong thing.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use eventpulse::config::{Config, Roles, value::Secret};
use eventpulse_testkit::{Receiver, RedisCluster, eventually, redis_cluster, stack};
use tokio::task::JoinHandle;

use crate::{
    harness::{
        Account, App, PATIENCE, config, count, database, ids, postgres,
        process::{self, Process},
        swept_soon,
    },
    outage::{delivered, sender},
};

/// Any key of the one shard.
const KEY: &str = "{0}";

/// Two processes' worth of engines on a cluster, under load.
struct Rig {
    apps: Vec<Arc<App>>,
    receiver: Receiver,
    account: Account,
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Vec<i64>>>,
}

impl Rig {
    async fn start(hint: &str, cluster: &RedisCluster) -> Rig {
        let database = database(hint).await;
        let config = || {
            let mut config: Config = config(&database);
            config.redis_url = Secret::new(cluster.url());
            swept_soon(&mut config);
            config
        };
        let apps = vec![
            Arc::new(App::of(config(), Roles::Both).await),
            Arc::new(App::of(config(), Roles::Dispatcher).await),
        ];
        let receiver = Receiver::start().await;
        let account = apps[0].register(&receiver.url("/")).await;
        let stop = Arc::new(AtomicBool::new(false));
        let sender = |_| tokio::spawn(sender(apps[0].clone(), account.key.clone(), stop.clone()));
        let senders = (0..16).map(sender).collect();
        Rig { apps, receiver, account, stop, senders }
    }

    /// Waits until some more has been delivered.
    async fn goes_on(&self, what: &str) {
        let before = self.receiver.count();
        eventually(what, PATIENCE * 2, async || {
            let more = self.receiver.count() - before;
            if more > 200 { Ok(()) } else { Err(format!("{more} more deliveries")) }
        })
        .await;
    }

    /// Ends the load, waits until everything is settled, and returns how many deliveries were made twice.
    async fn finish(self) -> usize {
        self.stop.store(true, Relaxed);
        let mut promised = Vec::new();
        for sender in self.senders {
            promised.extend(sender.await.expect("no sender panics"));
        }
        delivered(&self.receiver, &promised).await;
        self.apps[0].settled().await;
        let got = ids(&self.receiver);
        let different: HashSet<i64> = got.iter().copied().collect();
        let db = postgres(&self.apps[0].database).await;
        let stored = count(&db, "SELECT count(*) FROM events").await;
        assert_eq!(different.len() as i64, stored, "each stored event was delivered");
        let open = count(&db, "SELECT count(*) FROM dlq_entries").await;
        assert_eq!(open, 0, "nothing is a dead letter");
        let repeats = got.len() - different.len();
        println!("{} promised, {stored} stored, {repeats} repeated", promised.len());
        drop(self.account);
        for app in self.apps {
            Arc::into_inner(app).expect("the senders are gone").stop().await;
        }
        repeats
    }
}

/// Calls what blocks, on a thread that may.
async fn blocking<T: Send + 'static>(
    mut cluster: RedisCluster,
    call: impl FnOnce(&mut RedisCluster) -> T + Send + 'static,
) -> (RedisCluster, T) {
    let task = tokio::task::spawn_blocking(move || {
        let outcome = call(&mut cluster);
        (cluster, outcome)
    });
    task.await.expect("the cluster does as it is told")
}

#[tokio::test]
async fn a_master_that_dies_loses_nothing() {
    let cluster = redis_cluster().await;
    let rig = Rig::start("failover", &cluster).await;
    rig.goes_on("load through a cluster").await;
    let (cluster, dead) = blocking(cluster, |cluster| {
        let owner = cluster.owner(KEY, 0);
        cluster.kill(owner);
        owner
    })
    .await;
    let other = usize::from(dead == 0);
    let (cluster, owner) = blocking(cluster, move |cluster| cluster.wait_for_failover(KEY, dead)).await;
    assert_ne!(owner, dead);
    assert_ne!(owner, other);
    rig.goes_on("load through the new master").await;
    // The old one comes back as a replica, and says so to whoever still thinks of it.
    let (cluster, ()) = blocking(cluster, move |cluster| cluster.restart(dead)).await;
    rig.goes_on("load beside the old master").await;
    let repeats = rig.finish().await;
    // What the old master had not told its replica when it died: a few entries in flight, and their acks.
    assert!(repeats < 500, "{repeats}");
    drop(cluster);
}

#[tokio::test]
async fn a_slot_that_moves_under_load_loses_and_repeats_nothing() {
    let cluster = redis_cluster().await;
    let rig = Rig::start("reshard", &cluster).await;
    rig.goes_on("load through a cluster").await;
    let mut cluster = cluster;
    for _ in 0..2 {
        let moved = blocking(cluster, |cluster| {
            let to = (cluster.owner(KEY, 0) + 1) % 3;
            cluster.move_slot(KEY, to);
            assert_eq!(cluster.owner(KEY, 0), to);
        });
        cluster = moved.await.0;
        rig.goes_on("load through the slot's new owner").await;
    }
    assert_eq!(rig.finish().await, 0, "repeats");
    drop(cluster);
}

#[tokio::test]
async fn a_url_of_the_wrong_kind_is_refused_at_start() {
    let url = database("wrongmode").await;
    let (cluster, [stranger, owner]) = blocking(redis_cluster().await, |cluster| {
        let owner = cluster.owner(KEY, 0);
        [cluster.node_url((owner + 1) % 3), cluster.node_url(owner)]
    })
    .await;
    let mut serve = process::serve(&url, "");
    let mut process = Process::spawn({
        serve.env("REDIS_URL", stranger);
        serve
    });
    let status = process.exit().await;
    assert_eq!(status.code(), Some(1));
    assert!(process.output().contains("begin it with redis+cluster://"), "{}", process.output());

    let plain = stack().redis_url().replace("redis://", "redis+cluster://");
    let mut serve = process::serve(&url, "");
    let mut process = Process::spawn({
        serve.env("REDIS_URL", plain);
        serve
    });
    let status = process.exit().await;
    assert_eq!(status.code(), Some(1));
    assert!(process.output().contains("is no Redis Cluster"), "{}", process.output());

    // The node that has the keys would do, until they move: that is found when they do.
    let mut serve = process::serve(&url, "");
    let process = Process::spawn({
        serve.env("REDIS_URL", owner);
        serve
    });
    process.ready().await;
    drop(cluster);
}
