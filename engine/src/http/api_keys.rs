//! `POST /api-keys`, `GET /api-keys`, `DELETE /api-keys/:id`: more keys for an account, and fewer.

use hyper::{Request, Response, StatusCode, body::Incoming};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, Gateway, body, query,
    reply::{self, Body},
    webhooks,
};
use crate::store::api_keys::{New, Revoked, Shown};

/// Keys of one account that are not revoked.
const KEYS_MAX: i64 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    name: Option<Value>,
    scope: Option<Value>,
}

fn write(key: &Shown) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scope": key.scope,
        "createdAt": key.created_at,
        "lastUsedAt": key.last_used_at,
    })
}

pub(super) async fn make(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let body = body::read_json(request, gateway.limits(owner.account)).await?;
    let (name, scope) = form(&body.bytes)?;
    let fresh = gateway.keys.form().fresh();
    let new = New { name: &name, scope, hash: &fresh.hash, prefix: &fresh.prefix };
    let made = gateway.store.add_key(owner.account, &new, KEYS_MAX).await?;
    let full = || {
        ApiError::unprocessable("too_many_keys", format!("an account may have {KEYS_MAX} keys; revoke one"))
    };
    let mut key = write(&made.ok_or_else(full)?);
    key["apiKey"] = fresh.text.into();
    Ok(reply::json(StatusCode::CREATED, json!({ "ok": true, "key": key }).to_string().into()))
}

fn form(bytes: &[u8]) -> Result<(String, &'static str), ApiError> {
    let form: Form = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::bad("invalid_body", format!("send a JSON object with `name` and `scope`: {error}"))
        }
        _ => ApiError::bad("invalid_json", format!("the body is not JSON: {error}")),
    })?;
    let scope = match form.scope.as_ref().map(Value::as_str) {
        None | Some(Some("manage")) => "manage",
        Some(Some("send")) => "send",
        Some(_) => return Err(ApiError::bad("invalid_scope", "`scope` must be `manage` or `send`")),
    };
    Ok((webhooks::name(form.name.as_ref())?, scope))
}

pub(super) async fn list(gateway: &Gateway, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let page = query::page(request.uri().query())?;
    let rows = gateway.store.list_keys(owner.account, page.before, page.limit).await?;
    let keys: Vec<Value> = rows.iter().map(write).collect();
    Ok(reply::json(StatusCode::OK, json!({ "ok": true, "keys": keys }).to_string().into()))
}

pub(super) async fn revoke(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let (account, id) = gateway.named(request.headers(), id, |id| id).await?;
    match gateway.store.revoke_key(account, id).await? {
        Revoked::Done => {
            let message = "revoked: it is refused within about a second";
            Ok(reply::json(StatusCode::OK, json!({ "ok": true, "message": message }).to_string().into()))
        }
        Revoked::Unknown => Err(ApiError::not_found("API key")),
        Revoked::LastManager => Err(ApiError::conflict(
            "last_manage_key",
            "this is the account's last key with the scope `manage`; make another first",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_named_when_it_is_wrong() {
        for (body, says) in [
            ("{", "invalid_json"),
            ("[1]", "invalid_body"),
            (r#"{"name":"x","scop":"send"}"#, "scop"),
            ("{}", "name"),
            (r#"{"name":"x","scope":"admin"}"#, "scope"),
        ] {
            let error = format!("{:?}", form(body.as_bytes()).unwrap_err());
            assert!(error.contains(says), "{body}: {error}");
        }
        assert_eq!(form(br#"{"name":" ci ","scope":"send"}"#).unwrap(), ("ci".to_owned(), "send"));
        assert_eq!(form(br#"{"name":"x","scope":null}"#).unwrap().1, "manage", "null is as left out");
    }
}
