//! `GET /events/:id` and its attempts: where an event is, for each webhook it is owed to, and why.

use std::collections::BTreeMap;

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Serialize;

use super::{
    ApiError, Gateway,
    reply::{self, Body},
};
use crate::{
    model::{Event, Span, Timestamp, WebhookId},
    store::{
        self,
        progress::{AttemptRow, Waiting},
    },
};

/// Entries of the stream looked through for the event's batch.
const STREAM_MAX: usize = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Delivery {
    webhook_id: WebhookId,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<i16>,
    /// Of a scheduled delivery the attempt to come, of an ended one the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Delivery {
    fn new(webhook_id: WebhookId, state: &'static str) -> Delivery {
        Delivery {
            webhook_id,
            state,
            round: None,
            attempt: None,
            due_at: None,
            expires_at: None,
            reason: None,
        }
    }
}

pub(super) async fn event(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let event = gateway.event(request.headers(), id).await?;
    let deliveries = deliveries(gateway, &event).await?;
    let mut out = b"{\"ok\":true,\"event\":".to_vec();
    event.write_json(&mut out);
    let rest = serde_json::json!({ "matched": !deliveries.is_empty(), "deliveries": deliveries });
    // The payload's bytes are spliced, so the rest of the object follows the event by hand.
    out.push(b',');
    out.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    Ok(reply::json(StatusCode::OK, out.into()))
}

/// What stands in the schedule is said by the schedule; what ended, by its last attempt; and the rest is as
/// far as its batch is.
async fn deliveries(gateway: &Gateway, event: &Event) -> Result<Vec<Delivery>, store::Error> {
    let store = &gateway.store;
    // In this order: a delivery moves from the batch to the schedule to its last attempt.
    let batch = store.batch_of(event.id).await?;
    let waiting = store.waiting(event.id).await?;
    let attempts = store.attempts(event.account, event.id).await?;
    let mut found: BTreeMap<i64, Delivery> = BTreeMap::new();
    if let Some((span, streamed)) = batch {
        let state = batch_state(gateway, span, streamed).await;
        for webhook in store.webhooks_of(&[event.account]).await? {
            if webhook.eligible(&event.kind, span.version) {
                found.insert(webhook.id.0, Delivery::new(webhook.id, state));
            }
        }
    }
    for attempt in &attempts {
        found.insert(attempt.webhook.0, ended(attempt));
    }
    for row in waiting {
        let last = attempts.iter().rfind(|a| a.webhook == row.webhook);
        if last.is_none_or(|a| a.status == "failed" || a.round < row.round) {
            found.insert(row.webhook.0, scheduled(row, last));
        }
    }
    Ok(found.into_values().collect())
}

async fn batch_state(gateway: &Gateway, span: Span, streamed: bool) -> &'static str {
    if !streamed {
        return "committed";
    }
    match gateway.claims.clone().holder(span.first.0, STREAM_MAX).await {
        Ok(Some(consumer)) if !consumer.is_empty() => "in_lane",
        _ => "streamed",
    }
}

fn ended(attempt: &AttemptRow) -> Delivery {
    let state = match attempt.status.as_str() {
        "success" => "delivered",
        "filtered" => "filtered",
        "dead" => "dead",
        // Its row in the schedule is about to be written, or was just taken away by the outcome.
        _ => "in_lane",
    };
    Delivery {
        round: Some(attempt.round),
        attempt: Some(attempt.attempt),
        reason: attempt.error.clone(),
        ..Delivery::new(attempt.webhook, state)
    }
}

fn scheduled(row: Waiting, last: Option<&AttemptRow>) -> Delivery {
    let state = if row.reason == "in_flight" { "in_lane" } else { "scheduled" };
    let why = last.and_then(|a| a.error.as_deref()).map(|error| format!("{}: {error}", row.reason));
    Delivery {
        round: Some(row.round),
        attempt: Some(row.attempt),
        due_at: Some(row.next_at),
        expires_at: Some(row.expires_at),
        reason: why.or(Some(row.reason)),
        ..Delivery::new(row.webhook, state)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    id: i64,
    status: String,
    response_code: Option<i16>,
    response_body: Option<String>,
    created_at: Timestamp,
    webhook_id: WebhookId,
    round: i16,
    attempt: i16,
    duration_ms: i32,
    error: Option<String>,
    reason_code: String,
    transform_version: Option<i32>,
}

pub(super) async fn attempts(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let event = gateway.event(request.headers(), id).await?;
    let rows = gateway.store.attempts(event.account, event.id).await?;
    let attempts: Vec<Attempt> = rows
        .into_iter()
        .map(|row| Attempt {
            id: row.id,
            status: row.status,
            response_code: row.code,
            response_body: row.body,
            created_at: row.created_at,
            webhook_id: row.webhook,
            round: row.round,
            attempt: row.attempt,
            duration_ms: row.duration_ms,
            error: row.error,
            reason_code: row.reason_code,
            transform_version: row.transform,
        })
        .collect();
    let body = serde_json::json!({ "ok": true, "attempts": attempts });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}
