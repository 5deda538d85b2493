//! The demo: one event in by HTTP, one signed webhook out, and lines to try oneself.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Error,
    account::Account,
    receiver::{Received, Receiver},
};

/// How long the round trip may take before the demo counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A round trip that was made and verified.
pub(super) struct Demo {
    gateway: String,
    account: Account,
    event_id: i64,
    accepted: Duration,
    delivered: Duration,
}

impl Demo {
    /// Starts the receiver, finds or makes the account, and makes the trip.
    pub(super) async fn start(gateway: &str, dir: &Path) -> Result<Demo, Error> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let (receiver, account) = ready(&client, gateway, dir).await?;
        let (sender, mut received) = mpsc::channel(1);
        tokio::spawn(receiver.run(account.secret.clone(), sender));
        let start = Instant::now();
        let event_id = send(&client, gateway, &account).await?;
        let accepted = start.elapsed();
        let news = await_event(&mut received, event_id).await?;
        if !news.verified {
            return Err(Error::Trip("the webhook's signature is wrong".to_owned()));
        }
        Ok(Demo { gateway: gateway.to_owned(), account, event_id, accepted, delivered: start.elapsed() })
    }

    pub(super) fn print(&self) {
        let Demo { gateway, account, event_id, .. } = self;
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!("\nRound trip of event {event_id}:");
        println!("  POST /send-event          committed to Postgres, 201 after {:.1} ms", ms(self.accepted));
        println!(
            "  webhook at 127.0.0.1:{:<5}  received after {:.1} ms, signature verified",
            account.receiver_port,
            ms(self.delivered)
        );
        let key = &account.api_key;
        println!("\nTry it:");
        println!(
            "  curl -s {gateway}/send-event -H 'x-api-key: {key}' -H 'content-type: application/json' \\"
        );
        println!(
            "    -d '{{\"type\":\"order.created\",\"payload\":{{\"orderId\":\"123\",\"amount\":99.99}}}}'"
        );
        println!("  curl -s {gateway}/events/{event_id} -H 'x-api-key: {key}'");
        println!("  curl -s {gateway}/events/{event_id}/attempts -H 'x-api-key: {key}'");
        println!("\nCtrl-C stops everything.");
    }
}

/// The receiver on the port that the account's webhook points to. Without an account of an earlier run, or
/// when its port is taken now, there is a new account.
async fn ready(client: &reqwest::Client, gateway: &str, dir: &Path) -> Result<(Receiver, Account), Error> {
    if let Some(account) = Account::read(dir)
        && let Ok(receiver) = Receiver::bind(account.receiver_port).await
        && is_known(client, gateway, &account).await?
    {
        return Ok((receiver, account));
    }
    let receiver = Receiver::bind(0).await?;
    let receiver_port = receiver.port()?;
    let body = serde_json::json!({ "name": "demo", "url": format!("http://127.0.0.1:{receiver_port}/") });
    let made: serde_json::Value = client
        .post(format!("{gateway}/register-webhook"))
        .json(&body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let account =
        Account { api_key: text(&made["apiKey"]), secret: text(&made["webhook"]["secret"]), receiver_port };
    account.write(dir)?;
    Ok((receiver, account))
}

/// Whether the database still knows this account: it may be another one than last time.
async fn is_known(client: &reqwest::Client, gateway: &str, account: &Account) -> Result<bool, Error> {
    let url = format!("{gateway}/events?limit=1");
    Ok(client.get(url).header("x-api-key", &account.api_key).send().await?.status().is_success())
}

async fn send(client: &reqwest::Client, gateway: &str, account: &Account) -> Result<i64, Error> {
    let body = serde_json::json!({ "type": "demo.started", "payload": { "hello": "world" } });
    let request =
        client.post(format!("{gateway}/send-event")).header("x-api-key", &account.api_key).json(&body);
    let answer: serde_json::Value = request.send().await?.error_for_status()?.json().await?;
    answer["event"]["id"].as_i64().ok_or_else(|| Error::Trip(format!("unexpected answer {answer}")))
}

/// Waits for this event's webhook; others may come first, left over from an earlier run.
async fn await_event(received: &mut mpsc::Receiver<Received>, event_id: i64) -> Result<Received, Error> {
    let wanted = event_id.to_string();
    let wait = async {
        loop {
            match received.recv().await {
                Some(news) if news.event_id == wanted => return Ok(news),
                Some(_) => {}
                None => return Err(Error::Trip("the receiver ended".to_owned())),
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| Err(Error::Trip(format!("no webhook came within {} s", PATIENCE.as_secs()))))
}
