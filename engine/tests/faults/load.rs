//! The producers: a steady load on a thread of its own, and a ledger of what was promised to them.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};

use crate::world::{Account, COMMON_TYPE, RARE, RARE_TYPE};

/// Requests under way at a time. While it is reached, sends are left out.
const REQUESTS_MAX: usize = 128;

/// One request in so many has an idempotency key and is repeated until it is answered well; one in so many others
/// brings several events.
const KEYED: u64 = 16;
const BULK: u64 = 32;
const BULK_EVENTS: u64 = 8;

/// How long a producer waits for an answer. It may have been accepted all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was promised, and what was not.
#[derive(Default)]
pub(crate) struct Ledger {
    accepted: Mutex<Vec<i64>>,
    pub(crate) requests: AtomicU64,
    /// Refused in so many words, mostly with 503.
    pub(crate) refused: AtomicU64,
    /// No answer: accepted or not.
    pub(crate) unknown: AtomicU64,
    /// Not sent, because too many requests were under way.
    pub(crate) left_out: AtomicU64,
    /// Keyed requests that were not answered well in the end.
    pub(crate) given_up: AtomicU64,
}

impl Ledger {
    /// Events that got a 2xx.
    pub(crate) fn accepted(&self) -> Vec<i64> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn promise(&self, ids: impl Iterator<Item = i64>) {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }
}

/// Base URLs of the gateways that there are.
pub(crate) type Gateways = Arc<Mutex<Vec<String>>>;

/// A load, until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    pub(crate) ledger: Arc<Ledger>,
}

impl Load {
    /// Begins with `rate` events a second.
    pub(crate) fn start(rate: u32, gateways: Gateways, accounts: Vec<Account>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let ledger = Arc::new(Ledger::default());
        let producers = Arc::new(Producers {
            gateways,
            accounts,
            ledger: ledger.clone(),
            client: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client"),
            next: AtomicU64::new(0),
        });
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(run(producers, rate, stopped));
        });
        Load { stop, thread, ledger }
    }

    /// Ends it, after the requests under way.
    pub(crate) fn stop(self) -> Arc<Ledger> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("the producers do not panic");
        self.ledger
    }
}

async fn run(producers: Arc<Producers>, rate: u32, stop: Arc<AtomicBool>) {
    let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
    let start = Instant::now();
    let mut events = 0u64;
    for n in 0u64.. {
        if stop.load(Relaxed) {
            break;
        }
        tokio::time::sleep_until(start + Duration::from_secs_f64(events as f64 / f64::from(rate))).await;
        events += if kind(n) == Kind::Bulk { BULK_EVENTS } else { 1 };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            producers.ledger.left_out.fetch_add(1, Relaxed);
            continue;
        };
        let producers = producers.clone();
        tokio::spawn(async move {
            producers.send(n).await;
            drop(slot);
        });
    }
    let _all = slots.acquire_many(u32::try_from(REQUESTS_MAX).expect("small")).await;
}

#[derive(PartialEq, Eq)]
enum Kind {
    Single,
    Keyed,
    Bulk,
}

fn kind(n: u64) -> Kind {
    match n {
        n if n % KEYED == 1 => Kind::Keyed,
        n if n % BULK == 2 => Kind::Bulk,
        _ => Kind::Single,
    }
}

struct Producers {
    gateways: Gateways,
    accounts: Vec<Account>,
    ledger: Arc<Ledger>,
    client: reqwest::Client,
    /// Makes every payload another one, so that an event that stands twice is seen.
    next: AtomicU64,
}

impl Producers {
    async fn send(&self, n: u64) {
        self.ledger.requests.fetch_add(1, Relaxed);
        let account = &self.accounts[usize::try_from(n).expect("64 bits") % self.accounts.len()];
        match kind(n) {
            Kind::Single => {
                self.once(n, account, "/send-event", &self.event(n), None).await;
            }
            Kind::Bulk => {
                let events: Vec<String> = (0..BULK_EVENTS).map(|_| self.event(n)).collect();
                self.once(n, account, "/send-events", &format!("[{}]", events.join(",")), None).await;
            }
            Kind::Keyed => {
                let (key, body) = (format!("key-{n}"), self.event(n));
                let until = Instant::now() + Duration::from_secs(60);
                for turn in n.. {
                    if self.once(turn, account, "/send-event", &body, Some(&key)).await {
                        return;
                    }
                    if Instant::now() >= until {
                        self.ledger.given_up.fetch_add(1, Relaxed);
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }

    fn event(&self, n: u64) -> String {
        let kind = if n.is_multiple_of(RARE) { RARE_TYPE } else { COMMON_TYPE };
        let number = self.next.fetch_add(1, Relaxed);
        format!(r#"{{"type":"{kind}","payload":{{"number":{number}}}}}"#)
    }

    /// One request. Returns whether it was answered well.
    async fn once(&self, n: u64, account: &Account, path: &str, body: &str, key: Option<&str>) -> bool {
        let gateway = {
            let gateways = self.gateways.lock().unwrap_or_else(PoisonError::into_inner);
            gateways[usize::try_from(n / 2).expect("64 bits") % gateways.len()].clone()
        };
        let mut request = self.client.post(format!("{gateway}{path}")).header("x-api-key", &account.key);
        request = request.header("content-type", "application/json").body(body.to_owned());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = async {
            let response = request.send().await?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.json::<Value>().await))
        };
        match answer.await {
            // The head alone is a promise; but without the ids nobody can hold us to it.
            Ok((status, Ok(body))) if status.is_success() => {
                let id = |event: &Value| event["id"].as_i64().expect("an id");
                match body["events"].as_array() {
                    Some(events) => self.ledger.promise(events.iter().map(id)),
                    None => self.ledger.promise(std::iter::once(id(&body["event"]))),
                }
                true
            }
            Ok((status, _)) if !status.is_success() => {
                assert!(matches!(status.as_u16(), 409 | 429 | 503), "{status} is no refusal for a while");
                self.ledger.refused.fetch_add(1, Relaxed);
                false
            }
            _ => {
                self.ledger.unknown.fetch_add(1, Relaxed);
                false
            }
        }
    }
}
