//! `POST /events/:id/resend`.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;

use super::{
    ApiError, Gateway, body,
    reply::{self, Body},
};
use crate::{
    model::{EventId, Webhook, WebhookId},
    store::resend::Resend,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Form {
    webhook_id: i64,
}

pub(super) async fn resend(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, event) = gateway.named(request.headers(), id, EventId).await?;
    let body = body::read_json(request, gateway.limits(account)).await?;
    let form: Form = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::bad("invalid_body", format!("send a JSON object with `webhookId`: {error}"))
    })?;
    let found = gateway.store.webhook_to_call(account, WebhookId(form.webhook_id)).await?;
    let Webhook { id: webhook, own, .. } = found.ok_or_else(|| ApiError::not_found("webhook"))?;
    match gateway.store.resend(account, event, webhook, gateway.expiry_ms(&own)).await? {
        Resend::Done => {}
        Resend::UnknownEvent => return Err(ApiError::not_found("event")),
        Resend::UnknownWebhook => return Err(ApiError::not_found("webhook")),
        Resend::WebhookDisabled => {
            return Err(ApiError::conflict("webhook_disabled", "the webhook is disabled"));
        }
        Resend::Owed => {
            return Err(ApiError::conflict(
                "already_scheduled",
                "this delivery is still on its way; see GET /events/:id, and try again once it has ended",
            ));
        }
    }
    // It is committed; Redis only makes it sooner than the feeder would.
    if let Err(error) = gateway.due.clone().feed(&[((event, webhook), 0)]).await {
        tracing::debug!(error = crate::chain(&error), "resent work waits for the feeder");
    }
    let body = serde_json::json!({ "ok": true, "message": "a new round of attempts begins now" });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}
