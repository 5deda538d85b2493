//! `GET /dlq` and `POST /dlq/:id/retry`.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Serialize;

use super::{
    ApiError, Gateway, query,
    reply::{self, Body},
};
use crate::{
    model::{EventId, Timestamp, WebhookId},
    store::dlq::Requeue,
};

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
    let rows = gateway.store.list_dlq(owner.account, page.before, page.limit).await?;
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

pub(super) async fn retry(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let id = query::id(id)?;
    match gateway.store.requeue(owner.account, id, gateway.expiry_ms).await? {
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
        Requeue::WebhookDisabled => {
            Err(ApiError::conflict("webhook_disabled", "the webhook of this dead letter is disabled"))
        }
    }
}
