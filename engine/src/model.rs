//! What crosses stages: ids, events, webhooks and times. No logic beyond their own form.

mod map;
mod time;
mod trace;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;

pub use self::{
    map::IdMap,
    time::Timestamp,
    trace::{RANDOM, SAMPLED, Trace, Traced},
};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One event. Below 2^53, so exact as a JSON number; ordered by time to about a second.
    EventId
);
id!(
    /// One webhook of an account.
    WebhookId
);
id!(
    /// A tenant: the owner of keys, webhooks and events.
    AccountId
);

/// An event as accepted: the payload is the producer's bytes, valid JSON and valid UTF-8.
#[derive(Debug)]
pub struct Event {
    pub id: EventId,
    pub account: AccountId,
    pub kind: Box<str>,
    pub payload: Bytes,
    pub created_at: Timestamp,
    /// Boxed, because few have one.
    pub trace: Option<Box<Trace>>,
}

impl Event {
    /// Writes the event as [`write_event`] does.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        write_event(out, self.id, &self.kind, Some(&self.payload), self.created_at);
    }
}

/// Writes `{"id":…,"type":…,"payload":…,"createdAt":…}`, the form of an event in API and delivery alike, around the
/// payload's own bytes, or without a payload.
pub fn write_event(
    out: &mut Vec<u8>,
    id: EventId,
    kind: &str,
    payload: Option<&[u8]>,
    created_at: Timestamp,
) {
    use std::io::Write as _;
    out.extend_from_slice(b"{\"id\":");
    out.extend_from_slice(itoa::Buffer::new().format(id.0).as_bytes());
    out.extend_from_slice(b",\"type\":");
    // Writing to a Vec does not fail.
    let _ = serde_json::to_writer(&mut *out, kind);
    if let Some(payload) = payload {
        out.extend_from_slice(b",\"payload\":");
        out.extend_from_slice(payload);
    }
    let _ = write!(out, ",\"createdAt\":\"{created_at}\"}}");
}

/// Names one delivery: this event to this webhook.
pub type Key = (EventId, WebhookId);

/// One committed group: consecutive ids from `first`, all of one group commit.
#[derive(Debug)]
pub struct Batch {
    pub span: Span,
    pub events: Vec<Arc<Event>>,
}

/// What a stream entry and a `batches` row say of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: EventId,
    /// Number of events; the ids are `first .. first + n`.
    pub n: i32,
    /// The configuration that the insert saw: it decides which webhooks are owed these events.
    pub version: i64,
}

impl Span {
    pub fn last(&self) -> EventId {
        EventId(self.first.0 + i64::from(self.n) - 1)
    }
}

/// Whether a webhook takes work now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    /// Keeps its work until it is active again.
    Paused,
    /// Its work is dead-lettered.
    Disabled,
    /// As disabled, and shown to nobody.
    Deleted,
}

/// What an account set for one webhook; the deployment's defaults stand for the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Own {
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
    /// Requests a second, over all dispatchers.
    pub rate_limit: Option<f64>,
    /// Waits between attempts; one more attempt than there are.
    pub retry: Option<Vec<Duration>>,
    /// Of one attempt.
    pub timeout: Option<Duration>,
    /// Requests in flight, over all dispatchers.
    pub in_flight_max: Option<usize>,
}

/// What becomes of a delivery whose transform fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is a failed attempt, and tried again by the webhook's schedule.
    Retry,
    /// The event goes out as it came.
    Original,
    /// Nothing goes out.
    Drop,
}

/// Whether a version of a transform can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransformState {
    Compiling,
    Ready,
    Rejected,
    /// It kept failing.
    Suspended,
}

/// What a delivery was sent with first: its retries keep to it, so that one `webhook-id` has one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The version of the transform that made the body; 0 stands for the original.
    pub version: i32,
    /// 8 bytes of the body's SHA-256, where a transform made it.
    pub hash: Option<i64>,
}

impl Pin {
    pub const ORIGINAL: Pin = Pin { version: 0, hash: None };
}

/// One version of a webhook's transform: a module with its settings.
#[derive(Clone, Debug)]
pub struct Transform {
    /// From 1.
    pub version: i32,
    /// Of the module's bytes as they were uploaded.
    pub sha256: [u8; 32],
    pub config: Arc<Vec<(String, String)>>,
    pub on_error: OnError,
    pub state: TransformState,
}

/// A webhook with what dispatch needs of it.
#[derive(Debug)]
pub struct Webhook {
    pub id: WebhookId,
    pub account: AccountId,
    pub url: String,
    /// `whsec_` and 32 bytes in base64; none when it is encrypted and its key is not here: then nothing can be signed.
    pub secret: Option<String>,
    /// The one before, which signs too until then.
    pub secret_before: Option<(String, Timestamp)>,
    /// Exact names, or prefixes ending in `.*`; none stands for every type.
    pub event_types: Option<Vec<String>>,
    pub state: State,
    pub since: i64,
    pub until: Option<i64>,
    pub own: Own,
    /// The version in force.
    pub transform: Option<Transform>,
}

impl Webhook {
    /// Whether this webhook is owed an event of `kind` from a batch that saw the configuration `version`.
    /// Dispatch and sweep both ask here and nowhere else.
    pub fn eligible(&self, kind: &str, version: i64) -> bool {
        self.since <= version && self.until.is_none_or(|until| version < until) && self.takes(kind)
    }

    /// Whether this webhook takes events of `kind`, whenever they came.
    pub fn takes(&self, kind: &str) -> bool {
        match &self.event_types {
            // What the engine itself has to say is for those who ask for it.
            None => !is_operational(kind),
            Some(types) => is_named(kind, types),
        }
    }
}

/// Whether one of `types`, exact names or prefixes ending in `.*`, names `kind`.
pub fn is_named(kind: &str, types: &[String]) -> bool {
    types.iter().any(|t| match t.strip_suffix(".*") {
        Some(prefix) => kind.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
        None => t == kind,
    })
}

/// Whether an event of this type comes from the engine and not from a producer.
pub fn is_operational(kind: &str) -> bool {
    kind.starts_with("eventpulse.")
}

/// Which try of which delivery: rounds begin with a requeue from the dead letters, attempts count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    pub round: i16,
    pub attempt: i16,
}

impl Try {
    pub const FIRST: Try = Try { round: 1, attempt: 1 };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(types: Option<&[&str]>, since: i64, until: Option<i64>) -> Webhook {
        Webhook {
            id: WebhookId(1),
            account: AccountId(1),
            url: String::new(),
            secret: None,
            secret_before: None,
            event_types: types.map(|t| t.iter().map(|s| (*s).to_owned()).collect()),
            state: State::Active,
            since,
            until,
            own: Own::default(),
            transform: None,
        }
    }

    #[test]
    fn a_webhook_is_owed_what_was_accepted_while_it_stood() {
        let w = webhook(None, 5, Some(8));
        let owed: Vec<i64> = (0..12).filter(|v| w.eligible("any", *v)).collect();
        assert_eq!(owed, [5, 6, 7]);
    }

    #[test]
    fn types_match_by_name_or_by_prefix() {
        let w = webhook(Some(&["order.created", "invoice.*"]), 0, None);
        for kind in ["order.created", "invoice.paid", "invoice.a.b"] {
            assert!(w.eligible(kind, 1), "{kind}");
        }
        for kind in ["order.create", "order.created.x", "invoice", "invoices.paid", ""] {
            assert!(!w.eligible(kind, 1), "{kind}");
        }
        assert!(!webhook(Some(&[]), 0, None).eligible("x", 1));
    }

    #[test]
    fn what_the_engine_says_goes_to_those_who_ask() {
        let owed = |types| webhook(types, 0, None).eligible("eventpulse.webhook.disabled", 1);
        for types in [&["eventpulse.webhook.disabled"], &["eventpulse.*"], &["eventpulse.webhook.*"]] {
            assert!(owed(Some(types)), "{types:?}");
        }
        assert!(!owed(None) && !owed(Some(&["order.*"])));
    }
}
