//! `POST /register-webhook`: without a key a new account with its first webhook, with a key one webhook more.

use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, header::AUTHORIZATION};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    ApiError, Gateway, body,
    reply::{self, Body},
    settings,
};
use crate::{
    config::{Config, Targets},
    deliver::{
        sign,
        target::{self, Refused},
    },
    model::AccountId,
    store::{
        manage::Change,
        webhooks::{Made, New, NewKey},
    },
};

const NAME_CHARS_MAX: usize = 255;

/// Patterns of one webhook, and bytes of each: what an event type may have, and the `.*`.
const TYPES_MAX: usize = 100;
const TYPE_BYTES_MAX: usize = 258;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    name: Option<serde_json::Value>,
    url: Option<serde_json::Value>,
    event_types: Option<serde_json::Value>,
    state: Option<serde_json::Value>,
    headers: Option<serde_json::Value>,
    rate_limit: Option<serde_json::Value>,
    retry: Option<serde_json::Value>,
    timeout_ms: Option<serde_json::Value>,
    max_in_flight: Option<serde_json::Value>,
}

/// A form whose fields are as they must be.
struct Valid {
    name: String,
    url: String,
    event_types: Option<Vec<String>>,
    settings: Change,
}

pub(super) async fn register(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let owner = if request.headers().contains_key("x-api-key") {
        Some(gateway.manager(request.headers()).await?)
    } else {
        may_register(gateway, request.headers())?;
        None
    };
    // Those who have no account yet are counted as one.
    let account = owner.map_or(AccountId(0), |owner| owner.account);
    let body = body::read_json(request, gateway.limits(account)).await?;
    let form = validate(&body.bytes, &gateway.config)?;
    let secret = sign::fresh_secret();
    let new = New {
        name: &form.name,
        url: &form.url,
        secret: &secret,
        event_types: form.event_types.as_deref(),
        settings: &form.settings,
    };
    let (made, key) = match owner {
        Some(owner) => {
            let max = gateway.config.registration.webhooks_max;
            let made = gateway.store.add_webhook(owner.account, &new, max).await?;
            let full = || {
                ApiError::unprocessable("too_many_webhooks", format!("an account may have {max} webhooks"))
            };
            (made.ok_or_else(full)?, None)
        }
        None => {
            let key = gateway.keys.form().fresh();
            let row = NewKey { hash: &key.hash, prefix: &key.prefix };
            (gateway.store.register(&new, &row).await?, Some(key.text))
        }
    };
    Ok(created(made, &new, key))
}

fn created(made: Made, new: &New<'_>, key: Option<String>) -> Response<Body> {
    let mut body = serde_json::json!({
        "ok": true,
        "webhook": {
            "id": made.id,
            "name": new.name,
            "url": new.url,
            "secret": new.secret,
            "eventTypes": new.event_types,
            "createdAt": made.created_at,
        },
    });
    if let Some(key) = key {
        body["apiKey"] = key.into();
    }
    reply::json(StatusCode::CREATED, body.to_string().into())
}

/// Whether a request without a key may make an account.
fn may_register(gateway: &Gateway, headers: &HeaderMap) -> Result<(), ApiError> {
    let token = &gateway.config.registration.token;
    if token.is_empty() {
        // Then the address is loopback or registration is open: the configuration was checked for that.
        return Ok(());
    }
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Digests are compared, so that the time says nothing of the token.
    match given {
        Some(given) if Sha256::digest(given) == Sha256::digest(token.reveal()) => Ok(()),
        _ => Err(ApiError::unauthorized("send the registration token as `Authorization: Bearer <token>`")),
    }
}

fn validate(bytes: &[u8], config: &Config) -> Result<Valid, ApiError> {
    let form: Form = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::bad("invalid_body", format!("send a JSON object with `name` and `url`: {error}"))
        }
        _ => ApiError::bad("invalid_json", format!("the body is not JSON: {error}")),
    })?;
    Ok(Valid {
        name: name(form.name.as_ref())?,
        url: url(form.url.as_ref(), &config.targets)?,
        event_types: event_types(form.event_types)?,
        settings: first_settings(
            [
                ("state", form.state),
                ("headers", form.headers),
                ("rateLimit", form.rate_limit),
                ("retry", form.retry),
                ("timeoutMs", form.timeout_ms),
                ("maxInFlight", form.max_in_flight),
            ],
            config,
        )?,
    })
}

/// Settings of a webhook to be made, checked as a change of them is. One that is null is as one left out.
fn first_settings(
    fields: [(&str, Option<serde_json::Value>); 6],
    config: &Config,
) -> Result<Change, ApiError> {
    let mut settings = Change::default();
    for (name, value) in fields {
        if let Some(value) = value {
            settings::set(&mut settings, name, value, config)?;
        }
    }
    match settings.state {
        // It would be owed nothing, and say nothing of why.
        Some("disabled") => {
            Err(ApiError::bad("invalid_state", "`state` of a new webhook must be `active` or `paused`"))
        }
        _ => Ok(settings),
    }
}

/// A name as it must be, without the spaces around it.
pub(super) fn name(value: Option<&serde_json::Value>) -> Result<String, ApiError> {
    let name = value.and_then(serde_json::Value::as_str).map(str::trim).unwrap_or_default();
    if name.is_empty() {
        return Err(ApiError::bad("invalid_name", "`name` must be a string that is not empty"));
    }
    if name.chars().count() > NAME_CHARS_MAX || name.contains(char::is_control) {
        return Err(ApiError::bad(
            "invalid_name",
            "`name` must have at most 255 characters and no control characters",
        ));
    }
    Ok(name.to_owned())
}

/// A URL that this deployment may call.
pub(super) fn url(value: Option<&serde_json::Value>, targets: &Targets) -> Result<String, ApiError> {
    let Some(url) = value.and_then(serde_json::Value::as_str) else {
        return Err(ApiError::bad("invalid_url", "`url` must be a string with an http or https URL"));
    };
    if let Err(refused) = target::check_url(url, targets) {
        return Err(match refused {
            Refused::Private => ApiError::unprocessable("private_target", refused.to_string()),
            Refused::Port => ApiError::unprocessable("port_not_allowed", refused.to_string()),
            refused => ApiError::bad("invalid_url", refused.to_string()),
        });
    }
    Ok(url.to_owned())
}

/// Types a webhook asks for; none stands for all.
pub(super) fn event_types(value: Option<serde_json::Value>) -> Result<Option<Vec<String>>, ApiError> {
    let wrong = |message: &'static str| ApiError::bad("invalid_event_types", message);
    let items = match value {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::Array(items)) if !items.is_empty() && items.len() <= TYPES_MAX => items,
        Some(_) => {
            return Err(wrong("`eventTypes` must be an array of 1 to 100 names; leave it out for all types"));
        }
    };
    let name = |item: serde_json::Value| match item {
        serde_json::Value::String(name) if is_pattern(&name) => Ok(name),
        _ => Err(wrong("each of `eventTypes` must be an event type, or a prefix ending in `.*`")),
    };
    items.into_iter().map(name).collect::<Result<_, _>>().map(Some)
}

fn is_pattern(name: &str) -> bool {
    let stem = name.strip_suffix(".*").unwrap_or(name);
    !stem.is_empty()
        && name.len() <= TYPE_BYTES_MAX
        && !stem.contains('*')
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str) -> Result<Option<Vec<String>>, String> {
        validate(body.as_bytes(), &Config::default()).map(|v| v.event_types).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn each_field_is_named_when_it_is_wrong() {
        let url = "\"url\":\"https://example.com/h\"";
        for (body, field) in [
            ("{}".to_owned(), "name"),
            (format!("{{{url}}}"), "name"),
            (format!("{{\"name\":\" \",{url}}}"), "name"),
            (format!("{{\"name\":1,{url}}}"), "name"),
            (format!("{{\"name\":\"{}\",{url}}}", "x".repeat(256)), "name"),
            ("{\"name\":\"n\"}".to_owned(), "url"),
            ("{\"name\":\"n\",\"url\":\"ftp://x/\"}".to_owned(), "url"),
            ("{\"name\":\"n\",\"url\":\"http://10.0.0.1/\"}".to_owned(), "private_target"),
            (format!("{{\"name\":\"n\",{url},\"eventTypes\":[]}}"), "event_types"),
            (format!("{{\"name\":\"n\",{url},\"eventTypes\":[\"*\"]}}"), "event_types"),
            (format!("{{\"name\":\"n\",{url},\"eventTypes\":[1]}}"), "event_types"),
            ("[]".to_owned(), "invalid_body"),
            ("{".to_owned(), "invalid_json"),
        ] {
            assert!(check(&body).unwrap_err().contains(field), "{body}");
        }
        assert_eq!(check(&format!("{{\"name\":\"n\",{url}}}")), Ok(None));
        let types = format!("{{\"name\":\"n\",{url},\"eventTypes\":[\"a\",\"b.*\"]}}");
        assert_eq!(check(&types), Ok(Some(vec!["a".into(), "b.*".into()])));
    }
}
