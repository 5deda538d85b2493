//! `POST /webhooks/:id/rotate-secret`: a new secret, beside which the old one goes on signing for a while.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::json;

use super::{
    ApiError, Gateway, body,
    reply::{self, Body},
};
use crate::{deliver::sign, model::WebhookId};

/// How long the old secret goes on signing, in seconds: a day unless the account says otherwise, and a week at most.
const OVERLAP: u32 = 86_400;
const OVERLAP_MAX: u32 = 7 * 86_400;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Form {
    overlap_seconds: Option<u32>,
}

pub(super) async fn rotate(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, WebhookId).await?;
    let body = body::read_json(request, gateway.limits(account)).await?;
    let overlap = overlap(&body.bytes)?;
    let secret = sign::fresh_secret();
    let until = gateway.store.rotate_secret(account, id, &secret, overlap).await?;
    let until = until.ok_or_else(|| ApiError::not_found("webhook"))?;
    let body = json!({ "ok": true, "secret": secret, "previousSecretValidUntil": until });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}

/// An empty body is as one without the field.
fn overlap(bytes: &[u8]) -> Result<u32, ApiError> {
    let form = if bytes.is_empty() { Ok(Form::default()) } else { serde_json::from_slice::<Form>(bytes) };
    let seconds = form.ok().map(|form| form.overlap_seconds.unwrap_or(OVERLAP));
    seconds.filter(|seconds| *seconds <= OVERLAP_MAX).ok_or_else(|| {
        let message = "send `{\"overlapSeconds\": n}` with n from 0 to 604800, or an empty body for a day";
        ApiError::bad("invalid_overlap", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_seconds_up_to_a_week() {
        for (body, expected) in [
            ("", Some(86_400)),
            ("{}", Some(86_400)),
            (r#"{"overlapSeconds":0}"#, Some(0)),
            (r#"{"overlapSeconds":604800}"#, Some(604_800)),
            (r#"{"overlapSeconds":604801}"#, None),
            (r#"{"overlapSeconds":-1}"#, None),
            (r#"{"overlapSeconds":"1h"}"#, None),
            (r#"{"overlap":1}"#, None),
            ("{", None),
        ] {
            assert_eq!(overlap(body.as_bytes()).ok(), expected, "{body}");
        }
    }
}
