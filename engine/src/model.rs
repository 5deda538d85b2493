//! What crosses stages: ids, events, webhooks and times. No logic beyond their own form.

mod trace;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Serialize, Serializer};

pub use self::trace::{RANDOM, SAMPLED, Trace, Traced};

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

/// Milliseconds since the Unix epoch, the resolution of every time in the HTTP contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The node's wall clock. Stored deadlines are computed in Postgres, not from this.
    pub fn now() -> Timestamp {
        let Timestamp(ms) = SystemTime::now().into();
        Timestamp(ms + crate::failpoint::clock_ms())
    }

    /// Whole seconds since the epoch, as `webhook-timestamp` wants them.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(ms): Timestamp) -> SystemTime {
        let from_epoch = Duration::from_millis(ms.unsigned_abs());
        if ms < 0 { UNIX_EPOCH - from_epoch } else { UNIX_EPOCH + from_epoch }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        Timestamp(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => ms(after),
            Err(before) => -ms(before.duration()),
        })
    }
}

/// ISO-8601 in UTC with milliseconds, such as `2026-01-31T08:00:00.123Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, ms) = (ms / 1000 % 60, ms % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// Of the form that is written, with or without milliseconds; nothing else.
impl std::str::FromStr for Timestamp {
    type Err = ();

    fn from_str(text: &str) -> Result<Timestamp, ()> {
        let bytes = text.as_bytes();
        let (fraction, ms) = match bytes.len() {
            20 => (bytes.get(19..).ok_or(())?, 0),
            24 if bytes[19] == b'.' => (&bytes[23..], number(&bytes[20..23])?),
            _ => return Err(()),
        };
        let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if fraction != b"Z" || separators.iter().any(|(at, letter)| bytes[*at] != *letter) {
            return Err(());
        }
        let part = |from: usize, to: usize| number(&bytes[from..to]);
        let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
        let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
        let days = days_from_civil(year, month, day);
        // A day that is none comes back as another.
        if hour > 23 || minute > 59 || second > 59 || civil_from_days(days) != (year, month, day) {
            return Err(());
        }
        Ok(Timestamp((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms))
    }
}

/// A number of decimal digits and nothing else.
fn number(digits: &[u8]) -> Result<i64, ()> {
    digits.iter().try_fold(
        0,
        |n, d| {
            if d.is_ascii_digit() { Ok(n * 10 + i64::from(d - b'0')) } else { Err(()) }
        },
    )
}

/// The inverse of [`civil_from_days`], from the same source.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Days since 1970-01-01 to (year, month, day): the algorithm of Howard Hinnant's "chrono-compatible
/// low-level date algorithms", which counts in eras of 400 years that begin on the first of March.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

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
    // Writing to a Vec does not fail.
    let _ = write!(out, "{{\"id\":{id},\"type\":");
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

    #[test]
    fn times_read_as_iso_8601_with_milliseconds() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_704_067_200_001, "2024-01-01T00:00:00.001Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(ms)));
        }
    }

    #[test]
    fn only_times_are_read_as_times() {
        assert_eq!("2024-01-01T00:00:00Z".parse(), Ok(Timestamp(1_704_067_200_000)));
        for text in [
            "",
            "2024-01-01",
            "2024-02-30T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-10T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00:00+1",
            "2024-01-01T00:00:0éZ",
            "-024-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(()), "{text}");
        }
    }

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
