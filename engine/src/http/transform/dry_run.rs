//! `POST /webhooks/:id/transform/dry-run`: one call of a module, made as a delivery makes it and written nowhere.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{
    super::{
        ApiError, Gateway, body, query,
        reply::{self, Body},
    },
    settings,
};
use crate::{
    ingest::Draft,
    model::{AccountId, Event, EventId, Timestamp, Transform, TransformState, WebhookId},
    store::versions::Refused,
    transform::{Called, CompileError, HttpBody, Input, Kind, Module, Outcome},
};

/// An event that has no id of its own.
const NO_ID: i64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'a> {
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    version: Option<Value>,
    config: Option<Value>,
}

/// What an event may have beside its type and payload, as the API shows events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    id: Option<Value>,
    created_at: Option<Value>,
}

/// A form whose fields are as they must be.
struct Asked {
    event: Event,
    version: Option<i32>,
    config: Option<Vec<(String, String)>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    ok: bool,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// Whether `body` is in base64, because it is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
    log: Vec<Value>,
    version: i32,
    cpu_micros: u64,
    memory_bytes: usize,
}

pub(super) async fn dry_run(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let (account, webhook) = (webhook.account, webhook.id);
    let _turn = gateway.dry_runs.turn(account)?;
    let body = body::read_json(request, gateway.limits(account)).await?;
    let asked = Asked::read(&body.bytes, account)?;
    let transform = chosen(gateway, account, webhook, asked.version).await?;
    let module = module(gateway, &transform).await?;
    let input = Input {
        event: Arc::new(asked.event),
        webhook,
        version: transform.version,
        config: asked.config.map_or(transform.config, Arc::new),
    };
    let called = gateway.transforms.call(&module, input).await;
    let answer = Answer::of(called, transform.version);
    let written = serde_json::to_vec(&answer).map_err(|_| ApiError::unavailable())?;
    Ok(reply::held(StatusCode::OK, written, body.permit))
}

/// The version with a number, or the one in force.
async fn chosen(
    gateway: &Gateway,
    account: AccountId,
    webhook: WebhookId,
    number: Option<i32>,
) -> Result<Transform, ApiError> {
    let store = &gateway.store;
    let number = match number {
        Some(number) => number,
        None => {
            let found = store.in_force(account, webhook).await?;
            found.ok_or(Refused::NoWebhook)?.version.ok_or(Refused::NoTransform)?
        }
    };
    // Removed ones are there for dispatch alone.
    if store.versions(webhook, Some(number)).await?.is_empty() {
        return Err(Refused::NoVersion.into());
    }
    let transform = store.transform(webhook, number).await?.ok_or(Refused::NoVersion)?;
    match transform.state {
        TransformState::Ready | TransformState::Suspended => Ok(transform),
        TransformState::Compiling | TransformState::Rejected => Err(Refused::NotReady.into()),
    }
}

async fn module(gateway: &Gateway, transform: &Transform) -> Result<Arc<Module>, ApiError> {
    let host = &gateway.transforms;
    if let Some(module) = host.load(&transform.sha256).await {
        return Ok(module);
    }
    // Compiled by another process; or our folder was emptied.
    let wasm = gateway.store.module(&transform.sha256).await?.ok_or(Refused::NoVersion)?;
    host.compile(wasm).await.map_err(|error| match error {
        CompileError::Rejected(rejected) => rejected.into(),
        CompileError::Failed(why) => {
            crate::logs::warn_seldom!(why, "transform not compiled for a dry run");
            ApiError::compiler_unavailable()
        }
    })
}

impl Asked {
    fn read(bytes: &[u8], account: AccountId) -> Result<Asked, ApiError> {
        let form: Form<'_> = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad("invalid_body", format!("send a JSON object: {error}")))?;
        let missing =
            || ApiError::bad("missing_event", "`event` is missing; send it with `type` and `payload`");
        let text = form.event.ok_or_else(missing)?.get();
        let draft = Draft::parse(&Bytes::copy_from_slice(text.as_bytes()))?;
        let facts: Facts = serde_json::from_str(text)
            .map_err(|error| ApiError::bad("invalid_body", format!("`event` cannot be read: {error}")))?;
        let (id, created_at) = facts.read()?;
        let version = match form.version {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(|| {
                ApiError::bad("invalid_version", "`version` must be the number of a version")
            })?),
        };
        let config = form.config.filter(|config| !config.is_null()).map(settings::config).transpose()?;
        Ok(Asked {
            event: Event { id, account, kind: draft.kind, payload: draft.payload, created_at, trace: None },
            version,
            config: config.map(pairs),
        })
    }
}

impl Facts {
    fn read(self) -> Result<(EventId, Timestamp), ApiError> {
        let id = match self.id {
            None | Some(Value::Null) => NO_ID,
            Some(value) => value.as_i64().filter(|id| *id >= 0).ok_or_else(|| {
                ApiError::bad("invalid_id", "`id` of the event must be a whole number, as events have it")
            })?,
        };
        let created_at = match self.created_at {
            None | Some(Value::Null) => Timestamp::now(),
            Some(value) => query::time("createdAt", value.as_str().unwrap_or_default())?,
        };
        Ok((EventId(id), created_at))
    }
}

fn pairs(flat: Vec<String>) -> Vec<(String, String)> {
    flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// As the answer and the attempts have it.
fn kind(kind: Kind) -> &'static str {
    kind.reason_code().trim_start_matches("transform_")
}

impl Answer {
    fn of(called: Called, version: i32) -> Answer {
        let line =
            |line: &crate::transform::Line| serde_json::json!({ "level": line.level, "text": line.text });
        let mut answer = Answer {
            ok: true,
            outcome: "unchanged",
            payload: None,
            body: None,
            base64: None,
            content_type: None,
            headers: None,
            reason: None,
            error: None,
            log: called.log.iter().map(line).collect(),
            version,
            cpu_micros: u64::try_from(called.cpu.as_micros()).unwrap_or(u64::MAX),
            memory_bytes: called.memory,
        };
        match called.result {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Payload(payload)) => match raw(&payload) {
                Some(payload) => {
                    answer.outcome = "payload";
                    answer.payload = Some(payload);
                }
                None => answer.tell_error(Kind::BadOutput, "the payload is no JSON"),
            },
            Ok(Outcome::Body(body)) => answer.tell_body(body),
            Ok(Outcome::Drop(reason)) => {
                answer.outcome = "drop";
                answer.reason = Some(reason);
            }
            Err(failure) => answer.tell_error(failure.kind, &failure.message),
        }
        answer
    }

    fn tell_error(&mut self, failed: Kind, message: &str) {
        self.outcome = "error";
        self.error = Some(serde_json::json!({ "kind": kind(failed), "message": message }));
    }

    fn tell_body(&mut self, body: HttpBody) {
        let text =
            |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.outcome = "body";
        self.content_type = Some(text(&body.content_type));
        self.headers =
            Some(body.headers.iter().map(|(name, value)| (name.to_string(), text(value).into())).collect());
        let (written, is_base64) = match std::str::from_utf8(&body.bytes) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (BASE64.encode(&body.bytes), true),
        };
        self.body = Some(written);
        self.base64 = Some(is_base64);
    }
}

/// The payload's bytes as the module gave them.
fn raw(payload: &Bytes) -> Option<Box<RawValue>> {
    RawValue::from_string(String::from_utf8(payload.to_vec()).ok()?).ok()
}
