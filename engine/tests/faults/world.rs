//! Who gets the events: accounts with webhooks of different manners, and one receiver that plays all of them and
//! keeps a log of what it answered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use eventpulse_testkit::{Receiver, Reply, eventually, guests, receiver::Recorded};
use serde_json::{Value, json};

use crate::rng::mix;

/// Event and webhook.
pub(crate) type Key = (i64, i64);

/// Of every so many events one is of the type that lazy endpoints take.
pub(crate) const RARE: u64 = 8;
pub(crate) const COMMON_TYPE: &str = "load.common";
pub(crate) const RARE_TYPE: &str = "load.rare";
/// Ends every process that looks at it, by a failpoint.
pub(crate) const POISON_TYPE: &str = "load.poison";

/// How an endpoint behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Takes a third of a second.
    Slow,
    /// Takes longer than a delivery may keep its stream entry open. Rare events only.
    Lazy,
    /// Answers 503 for five of every twenty seconds.
    Outages,
    /// Answers 500 always; its schedule is short.
    Dead,
    /// Resets one request in five.
    Resets,
    /// Hangs at one request in a hundred.
    Hangs,
    /// Answers one request in ten with 429 and `Retry-After`.
    Busy,
    /// Has a transform that leaves out events with an odd id.
    Even,
}

/// The webhooks of each account.
const ACCOUNTS: &[&[Manner]] = &[
    &[Manner::Well, Manner::Slow, Manner::Outages, Manner::Dead],
    &[Manner::Well, Manner::Resets, Manner::Hangs, Manner::Even],
    &[Manner::Well, Manner::Busy, Manner::Lazy, Manner::Even],
];

#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) key: String,
}

pub(crate) struct Webhook {
    pub(crate) id: i64,
    pub(crate) manner: Manner,
}

/// One request that was answered with a 2xx, in milliseconds since the start.
#[derive(Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) at_ms: u64,
}

/// What all endpoints do now, whatever their manner.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    Usual,
    Resetting,
    Hanging,
}

/// The receiver's side.
pub(crate) struct Log {
    pub(crate) start: Instant,
    mood: AtomicU8,
    requests: Mutex<u64>,
    answered: Mutex<HashMap<Key, Vec<Answered>>>,
}

impl Log {
    pub(crate) fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Relaxed);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).expect("a run of less than ages")
    }

    pub(crate) fn requests(&self) -> u64 {
        *lock(&self.requests)
    }

    /// All requests that were answered with a 2xx.
    pub(crate) fn answered(&self) -> HashMap<Key, Vec<Answered>> {
        lock(&self.answered).clone()
    }

    fn reply(&self, request: &Recorded) -> Reply {
        *lock(&self.requests) += 1;
        let mood = self.mood.load(Relaxed);
        if mood == Mood::Resetting as u8 {
            return Reply::reset();
        }
        if mood == Mood::Hanging as u8 {
            return Reply::hang();
        }
        let key = key(request);
        let chance = mix(key.0.unsigned_abs() * 64 + attempt(request));
        let well = |delay_ms| {
            let now = Answered { at_ms: self.now_ms() };
            lock(&self.answered).entry(key).or_default().push(now);
            Reply::ok().with_delay(Duration::from_millis(delay_ms))
        };
        match manner(&request.path) {
            Manner::Well | Manner::Even => well(0),
            Manner::Slow => well(300),
            Manner::Lazy => well(1200),
            Manner::Outages if self.start.elapsed().as_secs() % 20 < 5 => Reply::status(503),
            Manner::Outages => well(0),
            Manner::Dead => Reply::status(500),
            Manner::Resets if chance.is_multiple_of(5) => Reply::reset(),
            Manner::Hangs if chance.is_multiple_of(100) => Reply::hang(),
            Manner::Busy if chance.is_multiple_of(10) => Reply::status(429).with_header("retry-after", "1"),
            Manner::Resets | Manner::Hangs | Manner::Busy => well(0),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn manner(path: &str) -> Manner {
    let all = ACCOUNTS.iter().flat_map(|manners| manners.iter()).copied();
    all.into_iter().find(|manner| path == self::path(*manner)).expect("a path of ours")
}

fn path(manner: Manner) -> String {
    format!("/{manner:?}")
}

/// From `webhook-id`, which reads `msg_<event>_<created>_<webhook>`.
fn key(request: &Recorded) -> Key {
    let id = request.headers["webhook-id"].to_str().expect("text");
    let mut parts = id.split('_').skip(1).map(|part| part.parse().expect("a number"));
    let event = parts.next().expect("an event");
    (event, parts.nth(1).expect("a webhook"))
}

fn attempt(request: &Recorded) -> u64 {
    request.headers["x-eventpulse-attempt"].to_str().expect("text").parse().expect("a number")
}

pub(crate) struct World {
    pub(crate) receiver: Receiver,
    pub(crate) log: Arc<Log>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) webhooks: Vec<Webhook>,
}

impl World {
    /// Starts the receiver and registers everybody at a gateway.
    pub(crate) async fn make(gateway: &str) -> World {
        let receiver = Receiver::start().await;
        receiver.keep_bodies(false);
        let log = Arc::new(Log {
            start: Instant::now(),
            mood: AtomicU8::new(Mood::Usual as u8),
            requests: Mutex::new(0),
            answered: Mutex::new(HashMap::new()),
        });
        let script = log.clone();
        receiver.script(move |request| script.reply(request));
        let mut world = World { receiver, log, accounts: Vec::new(), webhooks: Vec::new() };
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        for manners in ACCOUNTS {
            let mut key = None;
            for manner in *manners {
                let (id, made) = world.register(&client, gateway, key.as_deref(), *manner).await;
                key = key.or(made);
                if *manner == Manner::Even {
                    upload(&client, gateway, key.as_deref().expect("a key"), id).await;
                }
                world.webhooks.push(Webhook { id, manner: *manner });
            }
            world.accounts.push(Account { key: key.expect("a key") });
        }
        world
    }

    async fn register(
        &self,
        client: &reqwest::Client,
        gateway: &str,
        key: Option<&str>,
        manner: Manner,
    ) -> (i64, Option<String>) {
        let mut body = json!({ "name": format!("{manner:?}"), "url": self.receiver.url(&path(manner)) });
        if manner == Manner::Dead {
            body["retry"] = json!({ "schedule": ["100ms", "200ms"] });
        }
        if manner == Manner::Lazy {
            body["eventTypes"] = json!([RARE_TYPE]);
        }
        let mut request = client.post(format!("{gateway}/register-webhook")).json(&body);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 201);
        let body: Value = response.json().await.expect("JSON");
        (body["webhook"]["id"].as_i64().expect("an id"), body["apiKey"].as_str().map(str::to_owned))
    }
}

/// Gives a webhook its transform, and waits until it is in force.
async fn upload(client: &reqwest::Client, gateway: &str, key: &str, webhook: i64) {
    let url = format!("{gateway}/webhooks/{webhook}/transform");
    let request = client.put(&url).header("x-api-key", key).header("content-type", "application/wasm");
    let response = request.body(guests::drop_odd()).send().await.expect("an answer");
    assert!(response.status().is_success(), "{}", response.status());
    eventually("the transform is ready", Duration::from_secs(60), async || {
        let response = client.get(&url).header("x-api-key", key).send().await.expect("an answer");
        let body: Value = response.json().await.expect("JSON");
        let versions = body["transform"]["versions"].as_array().cloned().unwrap_or_default();
        if versions.iter().any(|v| v["state"] == "ready") { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
}
