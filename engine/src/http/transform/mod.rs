//! `/webhooks/:id/transform` and what is below it: a webhook's own module.

mod dry_run;
mod settings;
mod turns;
mod upload;

use std::time::Duration;

use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use self::turns::Turns;
use super::{
    ApiError, Gateway, body, query,
    reply::{self, Body},
};
use crate::{
    model::{AccountId, WebhookId},
    store::{
        transforms::{InForce, Version},
        versions::{Refused, Settings},
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Activate {
    version: i32,
}

/// Every call whose path begins with `/webhooks/:id/transform`; `rest` is what follows.
pub(super) async fn route(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
    rest: &[&str],
) -> Result<Response<Body>, ApiError> {
    match (rest, request.method()) {
        ([], &Method::GET) => show(gateway, request.headers(), id).await,
        ([], &Method::PUT) => upload::upload(gateway, request, id).await,
        ([], &Method::PATCH) => configure(gateway, request, id).await,
        ([], &Method::DELETE) => remove(gateway, request.headers(), id).await,
        (["activate"], &Method::POST) => activate(gateway, request, id).await,
        (["dry-run"], &Method::POST) => dry_run::dry_run(gateway, request, id).await,
        ([version], &Method::DELETE) if !is_verb(version) => {
            remove_version(gateway, request.headers(), id, version).await
        }
        ([], _) => Err(ApiError::method("GET, PUT, PATCH, DELETE")),
        ([verb], _) if is_verb(verb) => Err(ApiError::method("POST")),
        ([_], _) => Err(ApiError::method("DELETE")),
        _ => Err(ApiError::no_such_path()),
    }
}

/// How much longer than other calls a call to this path may take.
pub(super) fn patience(gateway: &Gateway, path: &str) -> Duration {
    if path.ends_with("/dry-run") {
        // A module that is not compiled here yet is compiled first.
        gateway.config.transform.compile_timeout
    } else {
        upload::WAIT
    }
}

fn is_verb(segment: &str) -> bool {
    matches!(segment, "activate" | "dry-run")
}

fn write_config(config: &[(String, String)]) -> Value {
    let fields = config.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn write(version: &Version) -> Value {
    let hex: String = version.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "version": version.version,
        "sha256": hex,
        "size": version.size,
        "state": version.state,
        "reason": version.reason,
        "onError": version.on_error,
        "config": write_config(&version.config),
        "createdAt": version.created_at,
        "calls": version.counts.calls,
        "changed": version.counts.changed,
        "dropped": version.counts.dropped,
        "failed": version.counts.failed,
        "cpuMicros": version.counts.cpu_us,
    })
}

/// What is shown of a transform with its webhook: null without one.
pub(super) async fn brief(
    gateway: &Gateway,
    account: AccountId,
    webhook: WebhookId,
) -> Result<Value, ApiError> {
    let found = gateway.store.in_force(account, webhook).await?;
    let Some(InForce { version: Some(number), suspended }) = found else {
        return Ok(Value::Null);
    };
    let versions = gateway.store.versions(webhook, Some(number)).await?;
    Ok(versions.first().map_or(Value::Null, |version| {
        json!({
            "version": version.version,
            "state": version.state,
            "onError": version.on_error,
            "suspended": suspended,
        })
    }))
}

async fn show(gateway: &Gateway, headers: &HeaderMap, id: &str) -> Result<Response<Body>, ApiError> {
    let (account, webhook) = gateway.named(headers, id, WebhookId).await?;
    let found = gateway.store.in_force(account, webhook).await?;
    let InForce { version: number, suspended } = found.ok_or_else(|| ApiError::not_found("webhook"))?;
    let versions = gateway.store.versions(webhook, None).await?;
    let in_force = versions.iter().find(|version| Some(version.version) == number);
    let body = json!({
        "version": number,
        "state": in_force.map(|version| &version.state),
        "onError": in_force.map(|version| &version.on_error),
        "config": in_force.map(|version| write_config(&version.config)),
        "suspended": suspended,
        "versions": versions.iter().map(write).collect::<Vec<_>>(),
    });
    Ok(answer(StatusCode::OK, &json!({ "ok": true, "transform": body })))
}

fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    reply::json(status, body.to_string().into())
}

/// Answers with one version as it is now. `status` is told unless it is still being compiled.
async fn answer_version(
    gateway: &Gateway,
    account: AccountId,
    webhook: WebhookId,
    number: i32,
    status: StatusCode,
) -> Result<Response<Body>, ApiError> {
    let gone = || ApiError::not_found("version");
    let versions = gateway.store.versions(webhook, Some(number)).await?;
    let version = versions.first().ok_or_else(gone)?;
    let in_force = gateway.store.in_force(account, webhook).await?.ok_or_else(gone)?;
    let mut body = write(version);
    body["inForce"] = (in_force.version == Some(number)).into();
    let status = if version.state == "compiling" { StatusCode::ACCEPTED } else { status };
    Ok(answer(status, &json!({ "ok": true, "transform": body })))
}

async fn configure(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let (account, webhook) = (webhook.account, webhook.id);
    let body = body::read_json(request, gateway.limits(account)).await?;
    let (config, on_error) = settings::read(&body.bytes)?;
    let settings = Settings { config: config.as_deref(), on_error };
    let max = gateway.config.transform.versions_max;
    let number = gateway.store.configure_transform(account, webhook, &settings, max).await??;
    answer_version(gateway, account, webhook, number, StatusCode::OK).await
}

async fn activate(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let (account, webhook) = (webhook.account, webhook.id);
    let body = body::read_json(request, gateway.limits(account)).await?;
    let Activate { version } = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::bad("invalid_body", format!("send a JSON object with `version`: {error}"))
    })?;
    gateway.store.activate_version(account, webhook, version).await??;
    answer_version(gateway, account, webhook, version, StatusCode::OK).await
}

async fn remove(gateway: &Gateway, headers: &HeaderMap, id: &str) -> Result<Response<Body>, ApiError> {
    let (account, webhook) = gateway.named(headers, id, WebhookId).await?;
    gateway.store.remove_transform(account, webhook).await??;
    let message = "removed: events go out as they come, but for retries of what it has changed";
    Ok(answer(StatusCode::OK, &json!({ "ok": true, "message": message })))
}

async fn remove_version(
    gateway: &Gateway,
    headers: &HeaderMap,
    id: &str,
    version: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, webhook) = gateway.named(headers, id, WebhookId).await?;
    let version = i32::try_from(query::id(version)?).map_err(|_| Refused::NoVersion)?;
    gateway.store.remove_version(account, webhook, version).await??;
    Ok(answer(StatusCode::OK, &json!({ "ok": true, "message": "removed" })))
}
