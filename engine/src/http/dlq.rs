//! `GET /dlq`, `POST /dlq/:id/retry` and `POST /dlq/retry`.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};

use super::{
    ApiError, Gateway, body, query,
    reply::{self, Body},
};
use crate::{
    model::{EventId, Own, Timestamp, WebhookId},
    store::dlq::{Filter, Requeue},
};

/// Dead letters of one bulk request, and of one statement in it.
const BULK_MAX: i64 = 10_000;
const PAGE: i64 = 500;

/// What is left is counted up to here.
const COUNT_MAX: i64 = 100_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: i64,
    event_id: EventId,
    reason: String,
    created_at: Timestamp,
    webhook_id: WebhookId,
    attempt: i16,
    reason_code: String,
    requeued_at: Option<Timestamp>,
}

pub(super) async fn list(gateway: &Gateway, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let page = query::page(request.uri().query())?;
    let filter = filter(request.uri().query())?;
    let rows = gateway.store.list_dlq(owner.account, &filter, page.before, page.limit).await?;
    let entries: Vec<Entry> = rows
        .into_iter()
        .map(|row| Entry {
            id: row.id,
            event_id: row.event,
            reason: row.reason,
            created_at: row.created_at,
            webhook_id: row.webhook,
            attempt: row.attempts,
            reason_code: row.reason_code,
            requeued_at: row.requeued_at,
        })
        .collect();
    let body = serde_json::json!({ "ok": true, "dlqEntries": entries });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}

/// Reads `webhookId`, `reasonCode`, `since` and `until`.
fn filter(query: Option<&str>) -> Result<Filter, ApiError> {
    let mut filter = Filter::default();
    for pair in query.unwrap_or_default().split('&') {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("webhookId", text) => filter.webhook = Some(WebhookId(query::id(text)?)),
            ("reasonCode", text) => filter.reason_code = Some(text.to_owned()),
            ("since", text) => filter.since = Some(query::time("since", text)?),
            ("until", text) => filter.until = Some(query::time("until", text)?),
            _ => {}
        }
    }
    Ok(filter)
}

/// A bulk requeue: the filter of the list, and how far to go.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bulk {
    webhook_id: Option<i64>,
    reason_code: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<i64>,
    after: Option<i64>,
}

/// Requeues many. It answers how far it came; who calls goes on from there, until there is no `next`.
pub(super) async fn retry_many(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let body = body::read_json(request, gateway.limits(owner.account)).await?;
    let bulk: Bulk = serde_json::from_slice(&body.bytes)
        .map_err(|error| ApiError::bad("invalid_body", format!("send a JSON object: {error}")))?;
    let limit = bulk.limit.unwrap_or(1000);
    if !(1..=BULK_MAX).contains(&limit) {
        return Err(ApiError::bad("invalid_limit", "`limit` must be a number within 1..10000"));
    }
    let filter = Filter {
        webhook: bulk.webhook_id.map(WebhookId),
        reason_code: bulk.reason_code,
        since: bulk.since.map(|text| query::time("since", &text)).transpose()?,
        until: bulk.until.map(|text| query::time("until", &text)).transpose()?,
    };
    let (mut after, mut looked, mut requeued) = (bulk.after.unwrap_or(0), 0, 0);
    let mut more = true;
    let expiry = |own: &Own| gateway.expiry_ms(own);
    while more && looked < limit {
        let size = (limit - looked).min(PAGE);
        let page = gateway.store.requeue_page(owner.account, &filter, after, size, &expiry).await?;
        more = page.looked as i64 == size;
        looked += page.looked as i64;
        requeued += page.requeued.len() as u64;
        after = page.last.unwrap_or(after);
        gateway.metrics.dlq.requeued.increment(page.requeued.len() as u64);
        // Not told to Redis: the feeder brings them in at its own pace, and a thousand at once would hold up others.
    }
    let remaining = gateway.store.count_letters(owner.account, &filter, after, COUNT_MAX).await?;
    let body = serde_json::json!({
        "ok": true,
        "requeued": requeued,
        "skipped": looked.unsigned_abs() - requeued,
        "remaining": remaining,
        "next": (remaining > 0).then_some(after),
    });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}

pub(super) async fn retry(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, |id| id).await?;
    match gateway.store.requeue(account, id, &|own| gateway.expiry_ms(own)).await? {
        Requeue::Done(key) => {
            gateway.metrics.dlq.requeued.increment(1);
            // It is committed; Redis only makes it sooner than the feeder would.
            if let Err(error) = gateway.due.clone().feed(&[(key, 0)]).await {
                tracing::debug!(error = crate::chain(&error), "requeued work waits for the feeder");
            }
            let body =
                serde_json::json!({ "ok": true, "message": "requeued: a new round of attempts begins now" });
            Ok(reply::json(StatusCode::OK, body.to_string().into()))
        }
        Requeue::Unknown => Err(ApiError::not_found("dead letter")),
        Requeue::AlreadyRequeued => Err(ApiError::conflict(
            "already_requeued",
            "this dead letter was requeued before; look at its event's attempts",
        )),
        Requeue::Owed => Err(ApiError::conflict(
            "already_scheduled",
            "this delivery is on its way already; see GET /events/:id, and try again once it has ended",
        )),
        Requeue::WebhookDisabled => {
            Err(ApiError::conflict("webhook_disabled", "the webhook of this dead letter is disabled"))
        }
    }
}
