//! `POST /webhooks/:id/replay`: what a webhook missed, sent to it.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, Gateway, body, query,
    reply::{self, Body},
    webhooks,
};
use crate::{
    model::{self, EventId, State, Timestamp, Webhook},
    store::replay::{Counts, Range},
};

/// Events of one request, and of one statement in it.
const LIMIT_MAX: i64 = 10_000;
const LIMIT_DEFAULT: i64 = 1000;
const PAGE: i64 = 500;

/// What is left is counted up to here.
const COUNT_MAX: i64 = 10_000;

const RANGE_MAX_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// Every field as any value, so that each error names its field.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Form {
    since: Option<Value>,
    until: Option<Value>,
    event_types: Option<Value>,
    limit: Option<Value>,
    after: Option<Value>,
}

/// A form whose fields are as they must be.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    since: Timestamp,
    until: Option<Timestamp>,
    event_types: Option<Vec<String>>,
    limit: i64,
    after: Option<Cursor>,
}

/// Where an earlier request ended: the last event it looked at, and its `until`, so that what arrives meanwhile does
/// not make the work longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    last: EventId,
    until: Timestamp,
}

impl Cursor {
    fn read(text: &str) -> Option<Cursor> {
        let (last, until) = text.split_once('-')?;
        Some(Cursor { last: EventId(query::id(last).ok()?), until: Timestamp(query::id(until).ok()?) })
    }

    fn write(self) -> String {
        format!("{}-{}", self.last, self.until.0)
    }
}

impl Asked {
    fn read(bytes: &[u8]) -> Result<Asked, ApiError> {
        let form: Form = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad("invalid_body", format!("send a JSON object: {error}")))?;
        let since = time("since", form.since)?
            .ok_or_else(|| ApiError::bad("invalid_time", "`since` is missing: from when on to replay"))?;
        Ok(Asked {
            since,
            until: time("until", form.until)?,
            event_types: webhooks::event_types(form.event_types)?,
            limit: limit(form.limit)?,
            after: after(form.after)?,
        })
    }

    /// The time without which the range ends. What is later than `now` is taken for now.
    ///
    /// # Errors
    /// For a range that is empty or too long.
    fn until(&self, now: Timestamp) -> Result<Timestamp, ApiError> {
        let wrong = |message| Err(ApiError::bad("invalid_range", message));
        let known = self.after.map_or(now, |cursor| cursor.until.min(now));
        let until = self.until.map_or(known, |until| until.min(known));
        match until.0 - self.since.0 {
            ..=0 => wrong("`since` must be before `until` and before now"),
            1..=RANGE_MAX_MS => Ok(until),
            _ => wrong("`until`, which is now unless you say otherwise, must be within 30 days of `since`"),
        }
    }

    /// Whether the request and the webhook both name events of this type.
    fn names(&self, webhook: &Webhook, kind: &str) -> bool {
        webhook.takes(kind) && self.event_types.as_deref().is_none_or(|types| model::is_named(kind, types))
    }
}

/// A field that is null is as one left out.
fn time(name: &'static str, value: Option<Value>) -> Result<Option<Timestamp>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => query::time(name, value.as_str().unwrap_or_default()).map(Some),
    }
}

fn limit(value: Option<Value>) -> Result<i64, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(LIMIT_DEFAULT),
        Some(value) => value
            .as_i64()
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .ok_or_else(|| ApiError::bad("invalid_limit", "`limit` must be a number within 1..10000")),
    }
}

fn after(value: Option<Value>) -> Result<Option<Cursor>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_str().and_then(Cursor::read).map(Some).ok_or_else(|| {
                ApiError::bad("invalid_after", "`after` must be the `next` of an earlier answer")
            })
        }
    }
}

/// Schedules what was missed. It answers how far it came; who calls goes on from there, until there is no `next`.
pub(super) async fn replay(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let account = webhook.account;
    let body = body::read_json(request, gateway.limits(account)).await?;
    let asked = Asked::read(&body.bytes)?;
    if webhook.state == State::Disabled {
        return Err(disabled());
    }
    let until = asked.until(gateway.store.now().await?)?;
    let mut range = gateway.store.range(account, asked.since, until).await?;
    if let Some(cursor) = asked.after {
        range.first = range.first.max(EventId(cursor.last.0.saturating_add(1)));
    }
    let (scanned, counts) = pages(gateway, &webhook, &asked, &mut range).await?;
    let remaining = gateway.store.count_events_in(account, &range, COUNT_MAX).await?;
    let next = Cursor { last: EventId(range.first.0 - 1), until };
    let body = json!({
        "ok": true,
        "replayed": counts.replayed,
        "delivered": counts.delivered,
        "pending": counts.pending,
        "scanned": scanned,
        "remaining": remaining,
        "next": (remaining > 0).then(|| next.write()),
    });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}

/// Goes through a range as far as is asked for, and leaves in it what is still to be looked at. Returns how many events
/// were looked at, and what became of those that the webhook takes.
async fn pages(
    gateway: &Gateway,
    webhook: &Webhook,
    asked: &Asked,
    range: &mut Range,
) -> Result<(i64, Counts), ApiError> {
    let expires_ms = gateway.expiry_ms(&webhook.own);
    let (mut scanned, mut counts) = (0, Counts::default());
    while scanned < asked.limit {
        let size = (asked.limit - scanned).min(PAGE);
        let events = gateway.store.events_in(webhook.account, range, size).await?;
        let Some((last, _)) = events.last() else { break };
        range.first = EventId(last.0 + 1);
        let found = i64::try_from(events.len()).unwrap_or(size);
        scanned += found;
        let named = events.into_iter().filter(|(_, kind)| asked.names(webhook, kind));
        let named: Vec<EventId> = named.map(|(id, _)| id).collect();
        if !named.is_empty() {
            let page = gateway.store.replay(webhook.account, webhook.id, &named, expires_ms).await?;
            let page = page.ok_or_else(disabled)?;
            gateway.metrics.replay.scheduled.increment(page.replayed.unsigned_abs());
            counts.replayed += page.replayed;
            counts.delivered += page.delivered;
            counts.pending += page.pending;
            // Not told to Redis: the feeder brings them in at its own pace, and a thousand at once would hold up others.
        }
        if found < size {
            break;
        }
    }
    Ok((scanned, counts))
}

fn disabled() -> ApiError {
    ApiError::conflict("webhook_disabled", "the webhook is disabled")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn asked(since: i64, until: Option<i64>, after: Option<i64>) -> Asked {
        Asked {
            since: Timestamp(since),
            until: until.map(Timestamp),
            event_types: None,
            limit: 1,
            after: after.map(|until| Cursor { last: EventId(7), until: Timestamp(until) }),
        }
    }

    #[test]
    fn a_range_ends_now_or_earlier_and_stays_where_it_was() {
        let now = 40 * DAY;
        let until = |asked: Asked| asked.until(Timestamp(now)).map(|until| until.0).ok();
        assert_eq!(until(asked(20 * DAY, None, None)), Some(now));
        assert_eq!(until(asked(20 * DAY, Some(now + 1), None)), Some(now), "what is to come");
        assert_eq!(until(asked(DAY, Some(2 * DAY), None)), Some(2 * DAY));
        assert_eq!(until(asked(20 * DAY, None, Some(21 * DAY))), Some(21 * DAY), "of a call before");
        assert_eq!(until(asked(20 * DAY, Some(now), Some(21 * DAY))), Some(21 * DAY));
        assert_eq!(until(asked(20 * DAY, None, Some(now + DAY))), Some(now), "not ours");
        assert_eq!(until(asked(10 * DAY, None, None)), Some(now));
        for (since, end) in
            [(10 * DAY - 1, None), (now, None), (now + 1, Some(now + 2)), (DAY, Some(DAY)), (2, Some(1))]
        {
            assert_eq!(until(asked(since, end, None)), None, "{since} {end:?}");
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor { last: EventId(1025), until: Timestamp(1_704_067_200_001) };
        assert_eq!(Cursor::read(&cursor.write()), Some(cursor));
        for text in ["", "-", "7", "7-", "-7", "7-x", "7-1-2", "9223372036854775808-1"] {
            assert_eq!(Cursor::read(text), None, "{text}");
        }
    }
}
