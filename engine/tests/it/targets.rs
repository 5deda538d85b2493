//! Where webhooks may point: lists of networks and ports, and names whose addresses change.

use std::net::Ipv4Addr;

use eventpulse::{config::Targets, deliver::outcome::Failure};
use eventpulse_testkit::{Names, Receiver};
use serde_json::{Value, json};

use crate::{
    client::Caller,
    harness::{App, postgres},
};

/// In these tests loopback's first address stands for a public one, and its second for a private one, where nobody
/// listens: a call to it would be refused by the kernel and not by us.
const PUBLIC: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PRIVATE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn targets() -> Targets {
    Targets { allow: format!("{PUBLIC}/32").parse().expect("a network"), ..Targets::default() }
}

fn asking(names: &Names, targets: Targets) -> Caller {
    let server = names.address().to_string().parse().expect("a list");
    Caller::to(targets, |deliver| deliver.name_servers = server)
}

/// A name server that answers with a public address when it is asked for the check and with a private one when it is
/// asked for the connection would get its way where the two ask separately. They do not: there is one question, and
/// the connection goes to what was checked.
#[tokio::test]
async fn an_address_cannot_change_between_check_and_use() {
    let receiver = Receiver::start().await;
    let names = Names::start(|asked| if asked == 0 { vec![PUBLIC] } else { vec![PRIVATE] });
    let url = format!("http://rebind.example:{}/", receiver.addr().port());
    asking(&names, targets()).ok(&url).await;
    assert_eq!((names.asked(), receiver.count()), (1, 1));
    // Whoever asks next sees the private address, and calls nobody.
    let caller = asking(&names, targets());
    assert!(matches!(caller.failure(&url).await, Failure::Blocked));
    assert_eq!((names.asked(), receiver.count()), (2, 1));
    assert_eq!(caller.metric("targets_blocked_total"), 1.0);
}

#[tokio::test]
async fn of_several_addresses_only_permitted_ones_are_called() {
    let receiver = Receiver::start().await;
    let names = Names::start(|_| vec![PRIVATE, PUBLIC]);
    let url = format!("http://both.example:{}/", receiver.addr().port());
    asking(&names, targets()).ok(&url).await;
    let denied = Targets {
        allow_private: true,
        deny: format!("{PUBLIC},{PRIVATE}").parse().expect("a list"),
        ..Targets::default()
    };
    assert!(matches!(asking(&names, denied).failure(&url).await, Failure::Blocked));
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn ports_are_checked_when_a_connection_is_made() {
    let (open, closed) = (Receiver::start().await, Receiver::start().await);
    let ports = open.addr().port().to_string().parse().expect("a port");
    let caller = Caller::to(Targets { allow_private: true, ports, ..Targets::default() }, |_| {});
    caller.ok(&open.url("/")).await;
    assert!(matches!(caller.failure(&closed.url("/")).await, Failure::Blocked));
    assert_eq!(closed.count(), 0);
}

#[tokio::test]
async fn lists_hold_for_registration_changes_and_deliveries() {
    let app = App::with("targets", |c| {
        c.targets.allow_private = false;
        c.targets.allow = "127.0.0.1,10.1.0.0/16".parse().expect("a list");
        c.targets.deny = "10.1.2.0/24,8.8.8.0/24".parse().expect("a list");
        c.targets.ports = "80,443,1024-65535".parse().expect("a list");
        c.retry.schedule = "".parse().expect("a schedule");
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let hook = app.url(&format!("/webhooks/{}", account.webhook));
    for (url, status, code) in [
        ("http://10.1.3.1/", 200, ""),
        ("http://10.1.2.3/", 422, "private_target"),
        ("https://8.8.8.8/", 422, "private_target"),
        ("http://[::ffff:8.8.8.8]/", 422, "private_target"),
        ("http://127.0.0.2/", 422, "private_target"),
        ("http://example.com:25/", 422, "port_not_allowed"),
        ("https://example.com:443/", 200, ""),
    ] {
        let registered =
            app.client.post(app.url("/register-webhook")).json(&json!({ "name": "n", "url": url }));
        let changed = app.client.patch(&hook).json(&json!({ "url": url }));
        for (request, success) in [(registered, 201), (changed, 200)] {
            let request = request.header("x-api-key", &account.key);
            let response = request.send().await.expect("an answer");
            let expected = if status == 200 { success } else { status };
            assert_eq!(response.status(), expected, "{url}");
            let body: Value = response.json().await.expect("JSON");
            assert_eq!(body["error"]["code"].as_str().unwrap_or_default(), code, "{url}");
        }
    }
    // What was registered before the lists said no is not called either.
    let db = postgres(&app.database).await;
    for url in ["http://127.0.0.2:9999/", "http://127.0.0.1:25/", "http://10.1.2.3:8000/"] {
        let change = "UPDATE webhooks SET url = $1 WHERE id = $2";
        db.execute(change, &[&url, &account.webhook]).await.expect("changed");
        let (status, body) = app.post(&account.key, &format!("/webhooks/{}/test", account.webhook)).await;
        assert_eq!(
            (status, &body["outcome"]["reasonCode"]),
            (200, &json!("target_blocked")),
            "{url}: {body}"
        );
    }
    app.stop().await;
}
