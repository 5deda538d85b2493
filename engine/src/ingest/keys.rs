//! API keys: how they look, and whose they are.
//!
//! Known keys are answered from memory. Unknown ones go to Postgres in batches, one query in flight; keys
//! that do not exist are remembered in a bounded set. Garbage does not get that far: a key ends in a check
//! value only this deployment can compute. Revocations arrive with the configuration version, polled each
//! second. Which keys are used is written once a minute.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    metrics::Metrics,
    store::{self, Store, accounts::KeyOwner},
};

const PREFIX: &str = "ep_live_";

/// Base64 of 32 random bytes, then of the 4 bytes of the check value.
const BODY: usize = 43;
const CHECK: usize = 6;

/// Keys in one look-up, and look-ups that may wait for it.
const LOOKUP_MAX: usize = 256;
const WAITING_MAX: usize = 1024;

/// Remembered keys that do not exist.
const UNKNOWN_MAX: usize = 10_000;

/// Keys of one statement that notes their use.
const NOTE_MAX: usize = 1000;

/// Longest wait for Postgres; a key that is not known by then cannot be judged.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is written which keys were used.
const NOTE: Duration = Duration::from_secs(60);

/// How often the configuration version is asked for.
const POLL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such key, or revoked: never say which.
    #[error("the API key is not valid")]
    Invalid,
    /// Postgres could not be asked.
    #[error("the API key could not be looked up")]
    Unavailable,
}

/// A key as made; the text is shown once and never stored.
pub struct Fresh {
    pub text: String,
    pub hash: [u8; 32],
    /// The first characters, to tell keys apart in a list.
    pub prefix: String,
}

/// Makes keys and recognises their form.
#[derive(Clone)]
pub struct Form {
    mac: Hmac<Sha256>,
}

impl Form {
    pub fn new(secret: &[u8]) -> Form {
        Form { mac: Hmac::new_from_slice(secret).expect("HMAC takes a key of any length") }
    }

    pub fn fresh(&self) -> Fresh {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).expect("the system has randomness");
        let body = URL_SAFE_NO_PAD.encode(random);
        let text = format!("{PREFIX}{body}{}", URL_SAFE_NO_PAD.encode(&self.check(&body)[..4]));
        Fresh { hash: Sha256::digest(&text).into(), prefix: text[..PREFIX.len() + 6].to_owned(), text }
    }

    fn check(&self, body: &str) -> [u8; 32] {
        let mut mac = self.mac.clone();
        mac.update(body.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The hash of a key of our form; none for any other text. The check value is compared in constant
    /// time, and everything after it goes by the hash.
    pub fn hash(&self, text: &[u8]) -> Option<[u8; 32]> {
        let rest = text.strip_prefix(PREFIX.as_bytes())?;
        if rest.len() != BODY + CHECK {
            return None;
        }
        let (body, check) = rest.split_at(BODY);
        let mut mac = self.mac.clone();
        mac.update(body);
        mac.verify_truncated_left(&URL_SAFE_NO_PAD.decode(check).ok()?).ok()?;
        Some(Sha256::digest(text).into())
    }
}

struct Cache {
    known: LruCache<[u8; 32], Known>,
    /// Keys used since that was last written, each once.
    used: Vec<[u8; 32]>,
    unknown: LruCache<[u8; 32], ()>,
}

struct Known {
    owner: KeyOwner,
    /// It stands in `used`.
    used: bool,
}

impl Cache {
    /// The owner of a known key, which is used now.
    fn known(&mut self, hash: &[u8; 32]) -> Option<KeyOwner> {
        let max = self.known.cap().get();
        let known = self.known.get_mut(hash)?;
        // As many as are known; that more are used in a minute than fit is not worth more memory.
        if !std::mem::replace(&mut known.used, true) && self.used.len() < max {
            self.used.push(*hash);
        }
        Some(known.owner)
    }

    fn learn(&mut self, hash: [u8; 32], owner: KeyOwner) {
        self.known.put(hash, Known { owner, used: false });
        self.known(&hash);
    }
}

type Ask = ([u8; 32], oneshot::Sender<Result<Option<KeyOwner>, Error>>);

/// Answers whose a key is.
#[derive(Clone)]
pub struct Keys {
    form: Form,
    cache: Arc<Mutex<Cache>>,
    ask: mpsc::Sender<Ask>,
    metrics: Arc<Metrics>,
}

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN)
}

impl Keys {
    /// The cache and the task that fills it.
    pub fn new(form: Form, store: Store, keys_max: usize, metrics: Arc<Metrics>) -> (Keys, Lookup) {
        let (ask, asked) = mpsc::channel(WAITING_MAX);
        let cache = Arc::new(Mutex::new(Cache {
            known: LruCache::new(size(keys_max)),
            used: Vec::new(),
            unknown: LruCache::new(size(UNKNOWN_MAX)),
        }));
        let lookup = Lookup { store, asked, cache: cache.clone() };
        let keys = Keys { form, cache, ask, metrics };
        (keys, lookup)
    }

    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Whose key this is.
    pub async fn owner(&self, text: &[u8]) -> Result<KeyOwner, Error> {
        let hash = self.form.hash(text).ok_or(Error::Invalid)?;
        {
            let mut cache = lock(&self.cache);
            if let Some(owner) = cache.known(&hash) {
                self.metrics.ingest.key_hits.increment(1);
                return Ok(owner);
            }
            if cache.unknown.get(&hash).is_some() {
                return Err(Error::Invalid);
            }
        }
        self.metrics.ingest.key_misses.increment(1);
        let (answer, answered) = oneshot::channel();
        self.ask.try_send((hash, answer)).map_err(|_| Error::Unavailable)?;
        answered.await.unwrap_or(Err(Error::Unavailable))?.ok_or(Error::Invalid)
    }
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task behind [`Keys`].
pub struct Lookup {
    store: Store,
    asked: mpsc::Receiver<Ask>,
    cache: Arc<Mutex<Cache>>,
}

impl Lookup {
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut version = None;
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut note = tokio::time::interval_at(Instant::now() + NOTE, NOTE);
        note.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut asks = Vec::new();
        loop {
            tokio::select! {
                n = self.asked.recv_many(&mut asks, LOOKUP_MAX) => match n {
                    0 => return self.note_used().await,
                    _ => self.look_up(&mut asks).await,
                },
                _ = poll.tick() => self.poll(&mut version).await,
                _ = note.tick() => self.note_used().await,
                () = crate::stopped(&mut stop) => return self.note_used().await,
            }
        }
    }

    async fn look_up(&self, asks: &mut Vec<Ask>) {
        let hashes: Vec<[u8; 32]> = asks.iter().map(|(hash, _)| *hash).collect();
        let found = patiently(self.store.find_keys(&hashes)).await;
        let found: Option<HashMap<_, _>> = match found {
            Ok(rows) => Some(rows.into_iter().collect()),
            Err(error) => {
                tracing::debug!(error = crate::chain(&error), "keys not looked up");
                None
            }
        };
        for (hash, answer) in asks.drain(..) {
            let outcome = match &found {
                None => Err(Error::Unavailable),
                Some(found) => {
                    let owner = found.get(&hash).copied().flatten();
                    let mut cache = lock(&self.cache);
                    match owner {
                        Some(owner) => cache.learn(hash, owner),
                        None => drop(cache.unknown.put(hash, ())),
                    }
                    Ok(owner)
                }
            };
            // The request may have gone away meanwhile.
            let _ = answer.send(outcome);
        }
    }

    /// Writes which keys were used. What Postgres does not take is of no great worth.
    async fn note_used(&self) {
        let used = {
            let mut cache = lock(&self.cache);
            let used = std::mem::take(&mut cache.used);
            for hash in &used {
                if let Some(known) = cache.known.peek_mut(hash) {
                    known.used = false;
                }
            }
            used
        };
        for page in used.chunks(NOTE_MAX) {
            if let Err(error) = patiently(self.store.note_used(page)).await {
                tracing::debug!(error = crate::chain(&error), "uses of keys not noted");
                return;
            }
        }
    }

    /// Takes in what changed since the last poll. While Postgres is away the cache serves as it is.
    async fn poll(&self, version: &mut Option<i64>) {
        match patiently(self.store.changed_keys(version.unwrap_or(i64::MAX))).await {
            Ok((now, changed)) => {
                let mut cache = lock(&self.cache);
                if version.is_none() {
                    // What was looked up before the first poll may have changed since, and nothing says so.
                    cache.known.clear();
                }
                for (hash, owner) in changed {
                    match owner {
                        Some(_) => drop(cache.unknown.pop(&hash)),
                        None => drop(cache.known.pop(&hash)),
                    }
                }
                *version = Some(now);
            }
            Err(error) => tracing::debug!(error = crate::chain(&error), "key changes not read"),
        }
    }
}

/// A stalled Postgres must not stall every look-up after it.
async fn patiently<T>(query: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
    tokio::time::timeout(PATIENCE, query).await.unwrap_or(Err(store::Error::Slow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_form() {
        let form = Form::new(b"secret");
        let key = form.fresh();
        assert!(key.text.starts_with("ep_live_") && key.text.len() == 57, "{}", key.text);
        assert_eq!(form.hash(key.text.as_bytes()), Some(key.hash));
        assert_ne!(form.fresh().text, key.text);
        assert_eq!(Form::new(b"other").hash(key.text.as_bytes()), None);
        let mut wrong = key.text.clone().into_bytes();
        wrong[20] ^= 1;
        assert_eq!(form.hash(&wrong), None);
        for text in ["", "ep_live_", "ep_live_é", &"x".repeat(10_000)] {
            assert_eq!(form.hash(text.as_bytes()), None);
        }
    }
}
