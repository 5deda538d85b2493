//! Processes that end, and those that are stopped and go on.

use std::time::Duration;

use rustix::process::Signal;

use crate::{node::Role, site::Site, world::POISON_TYPE};

/// Longer than others wait before they count a process as dead, in Redis or in Postgres.
const THOUGHT_DEAD: Duration = Duration::from_secs(6);

/// Longer than a lease: hold, time-out and margin.
const LEASE_OVER: Duration = Duration::from_secs(16);

/// How long a failpoint may take to be reached under load.
const REACHED: Duration = Duration::from_secs(60);

pub(super) async fn killed(site: &mut Site, n: usize) {
    site.nodes[n].kill();
    site.rest(Duration::from_millis(500)).await;
    site.start_again(n).await;
}

pub(super) async fn stopped(site: &mut Site, n: usize) {
    site.nodes[n].signal(Signal::STOP);
    site.rest(THOUGHT_DEAD).await;
    site.nodes[n].signal(Signal::CONT);
}

/// A third gateway joins and dies at a failpoint.
pub(super) async fn gateway_dies(site: &mut Site, point: &str, pass: u64) {
    let mut node = site.node(Role::Gateway, &format!("{point}=abort:{pass}")).await;
    site.tell_producers(Some(&node));
    node.ended(REACHED).await;
    site.tell_producers(None);
}

/// A third dispatcher joins and dies at a failpoint.
pub(super) async fn dispatcher_dies(site: &mut Site, point: &str, pass: u64) {
    let mut node = site.node(Role::Dispatcher, &format!("{point}=abort:{pass}")).await;
    node.ended(REACHED).await;
}

/// A third dispatcher joins, is stopped with the answer to a lease in its hands, and goes on when the lease is over.
pub(super) async fn stops_leased(site: &mut Site, pass: u64) {
    let mut node = site.node(Role::Dispatcher, &format!("leased=stop:{pass}")).await;
    site.rest(LEASE_OVER + Duration::from_secs(2)).await;
    node.signal(Signal::CONT);
    site.rest(Duration::from_secs(3)).await;
    leave(&mut node).await;
}

/// SIGTERM, and a good end.
pub(super) async fn leave(node: &mut crate::node::Node) {
    node.signal(Signal::TERM);
    let status = node.ended(Duration::from_secs(60)).await;
    assert!(status.success(), "{} ended with {status}", node.name);
}

pub(super) async fn rolling_restart(site: &mut Site) {
    for n in 0..site.nodes.len() {
        let role = site.nodes[n].role;
        let node = site.node(role, "").await;
        let mut old = std::mem::replace(&mut site.nodes[n], node);
        // As a load balancer does before it ends a backend.
        site.tell_producers(None);
        leave(&mut old).await;
    }
}

/// Sends an event that ends each dispatcher that looks at it, and starts again those that it ended.
pub(super) async fn poison(site: &mut Site) {
    let key = &site.world().accounts[0].key;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let body = format!(r#"{{"type":"{POISON_TYPE}","payload":"{}"}}"#, site.world().log.now_ms());
    let request = client.post(format!("{}/send-event", site.nodes[0].base())).header("x-api-key", key);
    let response = request.header("content-type", "application/json").body(body).send().await;
    assert_eq!(response.expect("an answer").status(), 201);
    // Whoever claims the entry dies too, until the event is found guilty.
    for _ in 0..60 {
        site.rest(Duration::from_millis(500)).await;
        for n in 2..4 {
            if !site.nodes[n].is_running() {
                site.start_again(n).await;
            }
        }
    }
}
