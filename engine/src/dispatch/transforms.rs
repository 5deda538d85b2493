//! Which version of its webhook's transform a delivery goes through, and what is to be done with what comes of it.
//!
//! A delivery that was sent before keeps to the version that made its body; any other goes by the version in force. One whose
//! module is not in this process yet waits in the schedule while it is brought here.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

use super::{Context, tally::Tally};
use crate::{
    deliver::{Content, Target, outcome::clean},
    model::{Event, OnError, Pin, Transform, TransformState, Webhook, WebhookId},
    store::{self, Store},
    transform::{Called, CompileError, Failure, Hash, Host, Input, Line, Module, Outcome, Returns},
};

/// How long a delivery waits for its module before it is parked: most are here by then.
const PATIENCE: Duration = Duration::from_millis(250);

/// For how long it is parked.
pub(super) const PARKED: Duration = Duration::from_secs(1);

/// Before a module that could not be brought here is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Old versions remembered, for retries that keep to them.
const PINNED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();

/// Bytes of the text that an attempt has of a failure: its message, and the end of the log.
const TEXT_MAX: usize = 1000;

/// Bytes kept of the reason for which a module dropped an event.
const REASON_MAX: usize = 500;

/// What is to be done with a delivery.
pub(super) enum Shaped {
    /// It goes out. `note` says what went wrong before, if the original goes out because of it.
    Send { content: Content, pin: Pin, note: Option<String> },
    /// Nothing goes out, and that is the end of it.
    Filter { version: i32, code: &'static str, reason: String },
    /// A failed attempt, though nothing was sent.
    Failed { code: &'static str, error: String },
    /// Not now.
    Wait,
}

impl Shaped {
    pub(super) fn original() -> Shaped {
        Shaped::Send { content: Content::Original, pin: Pin::ORIGINAL, note: None }
    }
}

/// What a dispatcher knows of transforms.
pub(super) struct Transforms {
    pub(super) host: Arc<Host>,
    returns: Returns,
    store: Store,
    pub(super) tally: Tally,
    /// Versions that are in force no more. None for one that is not there.
    pinned: Mutex<LruCache<(WebhookId, i32), Option<Transform>>>,
    /// Modules being brought here; each ends with its sender.
    coming: Mutex<HashMap<Hash, watch::Receiver<()>>>,
    /// One module's bytes at a time are read for it: they may be many.
    turn: Semaphore,
}

impl Transforms {
    pub(super) fn new(host: Arc<Host>, store: Store) -> Transforms {
        Transforms {
            host,
            returns: Returns::start(),
            store,
            tally: Tally::default(),
            pinned: Mutex::new(LruCache::new(PINNED_MAX)),
            coming: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<Hash, watch::Receiver<()>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that a delivery keeps to, though another is in force.
    async fn pinned(&self, webhook: WebhookId, version: i32) -> Result<Option<Transform>, store::Error> {
        let key = (webhook, version);
        let known = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.store.transform(webhook, version).await?;
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).put(key, found.clone());
        Ok(found)
    }
}

/// Runs a delivery's event through the transform of its webhook, if there is one for it.
pub(super) async fn shape(
    context: &Arc<Context>,
    event: Arc<Event>,
    target: Arc<Target>,
    pin: Option<Pin>,
) -> Shaped {
    let chosen = match choose(context, &target.webhook, pin).await {
        Ok(chosen) => chosen,
        Err(error) => {
            tracing::debug!(error = crate::chain(&error), "a delivery waits for its transform");
            return Shaped::Wait;
        }
    };
    let Some(transform) = chosen else { return Shaped::original() };
    let kept = pin.is_some_and(|pin| pin.version == transform.version);
    match transform.state {
        // What was sent once is sent again, whatever became of its version since.
        _ if kept => {}
        TransformState::Ready => {}
        TransformState::Compiling => return Shaped::Wait,
        TransformState::Rejected => return Shaped::original(),
        TransformState::Suspended => return suspended(&transform),
    }
    let Some(module) = module(context, &transform.sha256).await else {
        return Shaped::Wait;
    };
    let webhook = target.webhook.id;
    let input = Input { event, webhook, version: transform.version, config: transform.config.clone() };
    let transforms = &context.transforms;
    let called = transforms.host.call_by(&module, input, &transforms.returns).await;
    let failing = transforms.tally.note(webhook, transform.version, &called);
    let most = context.config.transform.suspend_after;
    if !kept && most > 0 && failing == most {
        suspend(context, webhook, transform.version, &called);
    }
    meaning(&transform, kept, called)
}

/// The version for a delivery; none for the original.
async fn choose(
    context: &Context,
    webhook: &Webhook,
    pin: Option<Pin>,
) -> Result<Option<Transform>, store::Error> {
    let in_force = webhook.transform.as_ref();
    Ok(match pin {
        Some(Pin { version: 0, .. }) => None,
        Some(pin) if in_force.is_none_or(|transform| transform.version != pin.version) => {
            // One that was removed by hand cannot be kept to.
            context.transforms.pinned(webhook.id, pin.version).await?.or_else(|| in_force.cloned())
        }
        _ => in_force.cloned(),
    })
}

/// As long as nobody has made it ready again, a version that kept failing is not called.
fn suspended(transform: &Transform) -> Shaped {
    let note = "the transform is suspended because it kept failing";
    match transform.on_error {
        // Its webhook is paused, or will be in a moment.
        OnError::Retry => Shaped::Wait,
        OnError::Original => {
            Shaped::Send { content: Content::Original, pin: Pin::ORIGINAL, note: Some(note.to_owned()) }
        }
        OnError::Drop => Shaped::Filter {
            version: transform.version,
            code: "transform_suspended",
            reason: note.to_owned(),
        },
    }
}

fn meaning(transform: &Transform, kept: bool, called: Called) -> Shaped {
    let version = transform.version;
    let pin = Pin { version, hash: None };
    let content = match called.result {
        Ok(Outcome::Unchanged) => Content::Original,
        Ok(Outcome::Payload(payload)) => Content::Payload(payload),
        Ok(Outcome::Body(body)) => {
            Content::Whole { content_type: body.content_type, bytes: body.bytes, headers: body.headers }
        }
        Ok(Outcome::Drop(reason)) => {
            let reason = clean(reason.as_bytes(), REASON_MAX);
            return Shaped::Filter { version, code: "filtered", reason };
        }
        Err(failure) => {
            let (code, error) = (failure.kind.reason_code(), text(&failure, &called.log));
            return match transform.on_error {
                // With another body, or none, an endpoint would be told two things under one id.
                _ if kept => Shaped::Failed { code, error },
                OnError::Retry => Shaped::Failed { code, error },
                OnError::Original => {
                    Shaped::Send { content: Content::Original, pin: Pin::ORIGINAL, note: Some(error) }
                }
                OnError::Drop => Shaped::Filter { version, code, reason: error },
            };
        }
    };
    Shaped::Send { content, pin, note: None }
}

/// What an attempt says of a failure: the message, and the last lines of the log that fit.
fn text(failure: &Failure, log: &[Line]) -> String {
    let mut text = clean(failure.message.as_bytes(), TEXT_MAX / 2);
    let mut room = TEXT_MAX - text.len();
    let lines: Vec<String> =
        log.iter().rev().map(|line| format!("\n{}: {}", line.level, line.text)).collect();
    let fit = lines.iter().take_while(|line| {
        let fits = line.len() <= room;
        room -= if fits { line.len() } else { 0 };
        fits
    });
    let fit: Vec<&String> = fit.collect();
    fit.into_iter().rev().for_each(|line| text.push_str(line));
    text
}

/// 8 bytes of a body's SHA-256, in which two bodies under one id would differ.
pub(super) fn hash(body: &[u8]) -> i64 {
    let digest = Sha256::digest(body);
    i64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}

/// A module, if it is here or comes in a moment.
async fn module(context: &Arc<Context>, hash: &Hash) -> Option<Arc<Module>> {
    let transforms = &context.transforms;
    if let Some(module) = transforms.host.load(hash).await {
        return Some(module);
    }
    let mut coming = transforms
        .coming()
        .entry(*hash)
        .or_insert_with(|| {
            let (sender, receiver) = watch::channel(());
            tokio::spawn(bring(context.clone(), *hash, sender));
            receiver
        })
        .clone();
    // It is here, or is not to be had, when the sender is gone.
    let _ = tokio::time::timeout(PATIENCE, coming.changed()).await;
    transforms.host.load(hash).await
}

/// Brings a module into this process: from Postgres through the compiler.
async fn bring(context: Arc<Context>, hash: Hash, sender: watch::Sender<()>) {
    let transforms = &context.transforms;
    let outcome = match transforms.turn.acquire().await {
        Ok(_turn) => fetch(transforms, &hash).await,
        Err(_) => Ok(()),
    };
    drop(sender);
    if let Err(error) = outcome {
        crate::logs::warn_seldom!(
            error = crate::chain(&*error),
            "a module that deliveries wait for cannot be brought here"
        );
        tokio::time::sleep(AGAIN).await;
    }
    transforms.coming().remove(&hash);
}

async fn fetch(transforms: &Transforms, hash: &Hash) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let wasm = transforms.store.module(hash).await?;
    let wasm = wasm.ok_or_else(|| CompileError::Failed("its bytes are not in Postgres".to_owned()))?;
    transforms.host.compile(wasm).await?;
    Ok(())
}

/// A version that kept failing is not called any more, until somebody says so.
fn suspend(context: &Arc<Context>, webhook: WebhookId, version: i32, called: &Called) {
    let last = called.result.as_ref().err().map(|failure| text(failure, &called.log)).unwrap_or_default();
    let reason = format!("{} failures in a row; the last: {last}", context.config.transform.suspend_after);
    let context = context.clone();
    tokio::spawn(async move {
        match context.store.suspend_transform(webhook, version, &clean(reason.as_bytes(), TEXT_MAX)).await {
            Ok(true) => {
                context.metrics.transform.suspended.increment(1);
                tracing::info!(%webhook, version, "transform suspended: it kept failing");
            }
            // Another version is in force by now, or another dispatcher was first.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%webhook, error = crate::chain(&error), "transform not suspended");
                context.transforms.tally.forgive(webhook, version);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Kind;

    fn transform(on_error: OnError) -> Transform {
        Transform {
            version: 3,
            sha256: [0; 32],
            config: Arc::default(),
            on_error,
            state: TransformState::Ready,
        }
    }

    fn failed() -> Called {
        let failure = Failure { kind: Kind::Trap, message: "unreachable".to_owned() };
        let line = |text: &str| Line { level: "error", text: text.to_owned() };
        Called {
            result: Err(failure),
            log: vec![line(&"x".repeat(2000)), line("at lib.rs:7"), line("index out of bounds")],
            cpu: Duration::ZERO,
            memory: 0,
        }
    }

    #[test]
    fn a_failure_is_what_its_webhook_says() {
        let error = "unreachable\nerror: at lib.rs:7\nerror: index out of bounds";
        match meaning(&transform(OnError::Retry), false, failed()) {
            Shaped::Failed { code, error: found } => assert_eq!((code, &*found), ("transform_trap", error)),
            _ => panic!("a failed attempt"),
        }
        match meaning(&transform(OnError::Original), false, failed()) {
            Shaped::Send { content, pin, note } => {
                assert_eq!((content, pin), (Content::Original, Pin::ORIGINAL));
                assert_eq!(note.as_deref(), Some(error));
            }
            _ => panic!("the original"),
        }
        match meaning(&transform(OnError::Drop), false, failed()) {
            Shaped::Filter { version, code, .. } => assert_eq!((version, code), (3, "transform_trap")),
            _ => panic!("nothing is sent"),
        }
    }

    #[test]
    fn what_was_sent_is_never_replaced_by_something_else() {
        for on_error in [OnError::Original, OnError::Drop] {
            assert!(matches!(meaning(&transform(on_error), true, failed()), Shaped::Failed { .. }));
        }
    }
}
