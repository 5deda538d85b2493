//! What was found of an event, and what it means. Pure: what comes next is decided here from facts alone.

use serde::Serialize;

use crate::{
    model::{self, EventId, State, Timestamp, Webhook},
    store::{
        dlq,
        explain::{Batch, Outline},
        progress::{AttemptRow, Waiting},
    },
};

use super::render::{cleaned, distance, origin};

/// Past its time by more than this, a delivery should have been taken up.
const LATE_MS: i64 = 30_000;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) event: EventId,
    pub(super) account: i64,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) payload_bytes: i32,
    pub(super) created_at: Timestamp,
    /// By Postgres, when it was asked.
    pub(super) now: Timestamp,
    pub(super) batch: Option<BatchReport>,
    pub(super) entry: Entry,
    pub(super) webhooks: Vec<WebhookReport>,
    /// Webhooks of the account that it is not owed to and that are not shown.
    pub(super) left_out: usize,
    /// Of the event as a whole, where no webhook has more to say.
    pub(super) next: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BatchReport {
    pub(super) first: EventId,
    pub(super) events: i32,
    pub(super) config_version: i64,
    pub(super) streamed: bool,
    pub(super) owner: i64,
    /// Looked at while the batch is not streamed: afterwards nobody's life matters to it.
    pub(super) owner_state: Option<Owner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Owner {
    Beating,
    Silent,
    Gone,
}

/// The stream entry of the event's batch.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// There is no batch row any more, so nothing is owed by one.
    Settled,
    Missing,
    Unread,
    HeldBy(String),
    Unknown(String),
}

impl Entry {
    /// Of what [`Claims::holder`](crate::stream::consumer::Claims::holder) says.
    pub(super) fn of(holder: Option<String>) -> Entry {
        match holder {
            None => Entry::Missing,
            Some(consumer) if consumer.is_empty() => Entry::Unread,
            Some(consumer) => Entry::HeldBy(consumer),
        }
    }
}

/// Whether a webhook is owed the event, and why.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Owed {
    pub(super) is_owed: bool,
    pub(super) why: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebhookReport {
    pub(super) id: i64,
    pub(super) name: String,
    /// Scheme, host and port: paths and queries may hold secrets.
    pub(super) url: String,
    pub(super) state: &'static str,
    pub(super) disabled_reason: Option<String>,
    #[serde(flatten)]
    pub(super) owed: Owed,
    /// None when Redis could not be asked.
    pub(super) breaker_open: Option<bool>,
    pub(super) attempts: Vec<Attempt>,
    /// Older attempts that are not listed.
    pub(super) attempts_left_out: usize,
    pub(super) scheduled: Option<Scheduled>,
    pub(super) dead_letters: Vec<Letter>,
    pub(super) next: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attempt {
    pub(super) round: i16,
    pub(super) attempt: i16,
    pub(super) status: String,
    pub(super) response_code: Option<i16>,
    pub(super) reason_code: String,
    pub(super) error: Option<String>,
    pub(super) duration_ms: i32,
    pub(super) created_at: Timestamp,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Scheduled {
    pub(super) round: i16,
    pub(super) attempt: i16,
    pub(super) reason: String,
    pub(super) meaning: &'static str,
    pub(super) next_at: Timestamp,
    pub(super) expires_at: Timestamp,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Letter {
    pub(super) id: i64,
    pub(super) round: i16,
    pub(super) attempts: i16,
    pub(super) reason: String,
    pub(super) reason_code: String,
    pub(super) created_at: Timestamp,
    pub(super) requeued_at: Option<Timestamp>,
}

impl Attempt {
    pub(super) fn of(row: &AttemptRow) -> Attempt {
        Attempt {
            round: row.round,
            attempt: row.attempt,
            status: row.status.clone(),
            response_code: row.code,
            reason_code: row.reason_code.clone(),
            error: row.error.as_deref().map(cleaned),
            duration_ms: row.duration_ms,
            created_at: row.created_at,
        }
    }
}

impl Scheduled {
    pub(super) fn of(row: &Waiting) -> Scheduled {
        Scheduled {
            round: row.round,
            attempt: row.attempt,
            meaning: meaning(&row.reason),
            reason: row.reason.clone(),
            next_at: row.next_at,
            expires_at: row.expires_at,
        }
    }
}

impl Letter {
    pub(super) fn of(row: &dlq::Entry) -> Letter {
        Letter {
            id: row.id,
            round: row.round,
            attempts: row.attempts,
            reason: cleaned(&row.reason),
            reason_code: row.reason_code.clone(),
            created_at: row.created_at,
            requeued_at: row.requeued_at,
        }
    }
}

/// Why a delivery stands in the schedule, in plain words.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "retry" => "the attempt before failed",
        "in_flight" => "its request is on the wire for longer than dispatch.hold",
        "parked" => "its lane had no room; it has a time",
        "breaker" => "its webhook's circuit breaker is open; it waits for the lane's word",
        "backlog" => "its lane has more than it can send soon; it waits for the lane's word",
        "paused" => "its webhook is paused",
        "missing" => "the sweep found that nobody had it",
        "requeued" => "it was requeued from the dead letters",
        "resent" => "its account asked for it again",
        "replayed" => "its account asked for a replay",
        "out_of_files" => "the dispatcher had no file descriptor left",
        "transform" => "its transform's module was not ready",
        _ => "for a reason that this version does not know",
    }
}

/// Whether a webhook is owed an event of `kind`. `version` is the configuration that the event's commit saw; it is known as
/// long as the batch row stands.
pub(super) fn owed(webhook: &Webhook, kind: &str, version: Option<i64>, came_later: bool) -> Owed {
    let not = |why: &str| Owed { is_owed: false, why: why.to_owned() };
    if !webhook.takes(kind) {
        return match (&webhook.event_types, model::is_operational(kind)) {
            (None, true) => not("the engine's own events go to webhooks that name their type"),
            _ => not("its event types do not match"),
        };
    }
    let Some(version) = version else {
        return match came_later {
            true => not("it was registered after the event"),
            // Whoever was owed it has an attempt or a row, which the caller looks at.
            false => not("nothing is recorded for it: it was not owed the event when that was settled"),
        };
    };
    if version < webhook.since {
        return not("it was registered after the event");
    }
    if webhook.until.is_some_and(|until| version >= until) {
        return not("it was disabled or deleted before the event");
    }
    Owed {
        is_owed: true,
        why: "it was active or paused, and takes this type, when the event came".to_owned(),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Paused => "paused",
        State::Disabled => "disabled",
        State::Deleted => "deleted",
    }
}

impl WebhookReport {
    pub(super) fn new(webhook: &Webhook, name: &str, disabled: Option<&str>, owed: Owed) -> WebhookReport {
        WebhookReport {
            id: webhook.id.0,
            name: cleaned(name),
            url: origin(&webhook.url),
            state: state(webhook.state),
            disabled_reason: disabled.map(cleaned),
            owed,
            breaker_open: None,
            attempts: Vec::new(),
            attempts_left_out: 0,
            scheduled: None,
            dead_letters: Vec::new(),
            next: String::new(),
        }
    }

    fn is_concerned(&self) -> bool {
        self.owed.is_owed
            || !self.attempts.is_empty()
            || self.scheduled.is_some()
            || !self.dead_letters.is_empty()
    }

    /// What comes next for this webhook, in one sentence.
    fn next(&self, batch: Option<&BatchReport>, entry: &Entry, now: Timestamp) -> String {
        if let Some(row) = &self.scheduled {
            return self.next_of_row(row, now);
        }
        let last = self.attempts.iter().max_by_key(|a| (a.round, a.attempt));
        match (last.map(|a| a.status.as_str()), batch) {
            (Some("success"), _) => "nothing: it is delivered".to_owned(),
            (Some("filtered"), _) => {
                "nothing: the webhook's transform dropped it, as it was meant to".to_owned()
            }
            (Some("dead"), _) => self.next_of_dead(),
            (Some(_), _) => {
                "its retry is in a dispatcher's hands or about to be written; if it stays so for minutes, \
                 `eventpulse reconcile --check` says whether the index is in order"
                    .to_owned()
            }
            (None, _) if !self.owed.is_owed => "nothing: it is not owed this event".to_owned(),
            (None, Some(batch)) => next_of_batch(batch, entry),
            (None, None) => "nothing: no batch row and no row in the schedule is left of it".to_owned(),
        }
    }

    fn next_of_row(&self, row: &Scheduled, now: Timestamp) -> String {
        let (when, expiry) = (distance(row.next_at, now), distance(row.expires_at, now));
        if self.state == "paused" {
            return "it is sent once the webhook is resumed; time in a pause does not count towards its expiry".to_owned();
        }
        if matches!(self.state, "disabled" | "deleted") {
            return format!("it ends as a dead letter, because the webhook is {}", self.state);
        }
        match row.reason.as_str() {
            "in_flight" => format!("its answer is awaited; without a record it is sent again {when}"),
            "breaker" => format!(
                "a probe tries the endpoint from time to time; once one succeeds it is sent, else it is a dead letter {expiry}"
            ),
            "backlog" | "paused" => {
                format!("its lane pulls it when it has room, else it is a dead letter {expiry}")
            }
            _ if now.0 - row.next_at.0 > LATE_MS => {
                format!("attempt {} was due {when}: dispatchers are behind, or none is running", row.attempt)
            }
            _ if self.breaker_open == Some(true) => format!(
                "attempt {} is due {when}, but the breaker is open: it waits for a probe to succeed",
                row.attempt
            ),
            _ => format!("attempt {} {when}", row.attempt),
        }
    }

    fn next_of_dead(&self) -> String {
        let open = self.dead_letters.iter().rfind(|letter| letter.requeued_at.is_none());
        match (open, self.state) {
            (Some(letter), "active" | "paused") => {
                format!("nothing by itself: its account may requeue it, POST /dlq/{}/retry", letter.id)
            }
            (Some(letter), _) => format!(
                "nothing by itself: its account may enable the webhook and requeue it, POST /dlq/{}/retry",
                letter.id
            ),
            (None, _) => "nothing: it is dead, and its letter was requeued or removed".to_owned(),
        }
    }
}

/// What comes next while the event's batch is all there is of it.
fn next_of_batch(batch: &BatchReport, entry: &Entry) -> String {
    if !batch.streamed {
        return match batch.owner_state {
            Some(Owner::Beating) => {
                format!("instance {} puts its batch into Redis, if Redis is there", batch.owner)
            }
            Some(Owner::Silent) => format!(
                "instance {} is silent: another process takes its batches over after recover.dead_after_beats",
                batch.owner
            ),
            _ => format!("instance {} is gone: another process takes its batch over", batch.owner),
        };
    }
    match entry {
        Entry::HeldBy(consumer) => format!("{consumer} has it in hand: queued, or on the wire"),
        Entry::Unread => {
            "a dispatcher reads its batch: if it stays so, dispatchers are behind or none is running"
                .to_owned()
        }
        Entry::Unknown(_) => "Redis has to be reachable for it to be sent".to_owned(),
        Entry::Missing | Entry::Settled => {
            "the sweep looks at its batch after recover.sweep_after, and schedules what is missing".to_owned()
        }
    }
}

impl Report {
    pub(super) fn new(
        id: EventId,
        event: &Outline,
        batch: Option<&Batch>,
        owner_state: Option<Owner>,
        entry: Entry,
    ) -> Report {
        Report {
            event: id,
            account: event.account.0,
            kind: cleaned(&event.kind),
            payload_bytes: event.bytes,
            created_at: event.created_at,
            now: event.now,
            batch: batch.map(|batch| BatchReport {
                first: batch.span.first,
                events: batch.span.n,
                config_version: batch.span.version,
                streamed: batch.streamed,
                owner: batch.owner,
                owner_state,
            }),
            entry,
            webhooks: Vec::new(),
            left_out: 0,
            next: None,
        }
    }

    /// Adds a webhook, with its last `attempts_max` attempts. Of those that have nothing to do with the event the first
    /// `strangers_max` are kept, and no deleted one.
    pub(super) fn add(&mut self, mut webhook: WebhookReport, attempts_max: usize, strangers_max: usize) {
        if !webhook.is_concerned() {
            let strangers = self.webhooks.iter().filter(|other| !other.is_concerned()).count();
            if webhook.state == "deleted" || strangers >= strangers_max {
                self.left_out += 1;
                return;
            }
        }
        if !webhook.owed.is_owed && webhook.is_concerned() {
            webhook.owed = Owed { is_owed: true, why: "what is recorded below says so".to_owned() };
        }
        webhook.next = webhook.next(self.batch.as_ref(), &self.entry, self.now);
        webhook.attempts_left_out = webhook.attempts.len().saturating_sub(attempts_max);
        webhook.attempts.drain(..webhook.attempts_left_out);
        self.webhooks.push(webhook);
    }

    /// Says what comes next where no webhook is concerned.
    pub(super) fn conclude(&mut self) {
        if self.webhooks.iter().any(WebhookReport::is_concerned) {
            return;
        }
        self.next = Some(match self.batch {
            None => "nothing: no webhook is owed it".to_owned(),
            Some(_) => {
                "nothing: no webhook is owed it; its batch goes with the other events in it".to_owned()
            }
        });
    }
}

#[cfg(test)]
pub(super) mod tests;
