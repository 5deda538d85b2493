//! `GET /webhooks`, and `GET`, `PATCH`, `DELETE /webhooks/:id`.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde_json::{Map, Value, json};

use super::{
    ApiError, Gateway, body, query,
    reply::{self, Body},
    settings, transform,
};
use crate::{
    model::{EventId, WebhookId},
    store::{
        manage::{Change, Shown},
        progress::AttemptRow,
    },
};

/// Deliveries counted for one webhook: a number that is there at once rather than the exact one.
const COUNT_MAX: i64 = 10_000;

/// Attempts shown with one webhook, and of how many of its account's newest events they may be.
const OUTCOMES: i64 = 10;
const OUTCOME_EVENTS_MAX: i64 = 1000;

fn write(webhook: &Shown) -> Value {
    let names = webhook.headers.iter().step_by(2).map(|name| (name.clone(), Value::Null));
    let headers: Map<String, Value> = names.collect();
    let waits = |waits: &Vec<i64>| -> Vec<String> {
        let text = |ms: &i64| {
            humantime::format_duration(std::time::Duration::from_millis(ms.unsigned_abs())).to_string()
        };
        waits.iter().map(text).collect()
    };
    json!({
        "id": webhook.id,
        "name": webhook.name,
        "url": webhook.url,
        "eventTypes": webhook.event_types,
        "state": webhook.state,
        "disabledReason": webhook.disabled_reason,
        "headers": headers,
        "rateLimit": webhook.rate_limit,
        "retry": webhook.retry_waits_ms.as_ref().map(|w| json!({ "schedule": waits(w) })),
        "timeoutMs": webhook.timeout_ms,
        "maxInFlight": webhook.in_flight_max,
        "createdAt": webhook.created_at,
        "updatedAt": webhook.updated_at,
    })
}

fn outcome((event, attempt): &(EventId, AttemptRow)) -> Value {
    json!({
        "eventId": event,
        "attempt": attempt.attempt,
        "status": attempt.status,
        "responseCode": attempt.code,
        "reasonCode": attempt.reason_code,
        "durationMs": attempt.duration_ms,
        "createdAt": attempt.created_at,
    })
}

fn answer(body: &Value) -> Response<Body> {
    reply::json(StatusCode::OK, body.to_string().into())
}

pub(super) async fn list(gateway: &Gateway, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let page = query::page(request.uri().query())?;
    let rows = gateway.store.list_webhooks(owner.account, WebhookId(page.before), page.limit).await?;
    let webhooks: Vec<Value> = rows.iter().map(write).collect();
    Ok(answer(&json!({ "ok": true, "webhooks": webhooks })))
}

pub(super) async fn show(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, WebhookId).await?;
    let found = gateway.store.webhook(account, id).await?;
    let webhook = found.ok_or_else(|| ApiError::not_found("webhook"))?;
    let (scheduled, shelved) = gateway.store.scheduled_for(id, COUNT_MAX).await?;
    let outcomes = gateway.store.last_outcomes(account, id, OUTCOME_EVENTS_MAX, OUTCOMES).await?;
    // Redis says which breakers are open; without it nobody knows.
    let open = gateway.breakers.clone().are_open(&[id]).await.ok().and_then(|open| open.first().copied());
    let mut body = write(&webhook);
    body["breaker"] = match open {
        Some(true) => "open".into(),
        Some(false) => "closed".into(),
        None => Value::Null,
    };
    body["transform"] = transform::brief(gateway, account, id).await?;
    body["scheduled"] = scheduled.into();
    body["waitingForLane"] = shelved.into();
    body["lastOutcomes"] = outcomes.iter().map(outcome).collect();
    Ok(answer(&json!({ "ok": true, "webhook": body })))
}

pub(super) async fn change(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, WebhookId).await?;
    let body = body::read_json(request, gateway.limits(account)).await?;
    let change = settings::change(&body.bytes, &gateway.config)?;
    let changed = gateway.store.change_webhook(account, id, &change).await?;
    let webhook = changed.ok_or_else(|| ApiError::not_found("webhook"))?;
    Ok(answer(&json!({ "ok": true, "webhook": write(&webhook) })))
}

pub(super) async fn delete(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, WebhookId).await?;
    let change = Change { state: Some("deleted"), headers: Some(Vec::new()), ..Change::default() };
    let deleted = gateway.store.change_webhook(account, id, &change).await?;
    deleted.ok_or_else(|| ApiError::not_found("webhook"))?;
    let message = "deleted: what it is still owed ends as dead letters";
    Ok(answer(&json!({ "ok": true, "message": message })))
}
