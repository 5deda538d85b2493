//! `GET /admin/worst-webhooks`: which webhooks are in trouble, over all accounts and processes, for the operator.

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    ApiError,
    reply::{self, Body},
};
use crate::store::{
    Store,
    worst::{By, Worst},
};

const LIMIT_DEFAULT: i64 = 10;
const LIMIT_MAX: i64 = 50;

/// The webhooks that a query asks for, the worst first.
///
/// # Errors
/// On parameters that are none, and when Postgres does not answer within seconds.
pub(super) async fn list(store: &Store, query: Option<&str>) -> Result<Response<Body>, ApiError> {
    let (by, limit) = asked(query)?;
    let webhooks: Vec<Value> = store.worst_webhooks(by, limit).await?.iter().map(shown).collect();
    let body = json!({ "ok": true, "by": by.name(), "webhooks": webhooks });
    Ok(reply::json(StatusCode::OK, body.to_string().into()))
}

fn shown(worst: &Worst) -> Value {
    json!({
        "webhookId": worst.webhook.0,
        "accountId": worst.account.map(|account| account.0),
        "name": worst.name,
        "state": worst.state,
        "attempts": worst.attempts,
        "failed": worst.failed,
        "meanMs": worst.ms.map(|ms| (ms * 10.0).round() / 10.0),
        "waiting": worst.waiting,
        "waitsFor": worst.reason,
    })
}

/// Reads `by` and `limit`. A misspelt one would be answered with another order than was meant, so it is refused.
fn asked(query: Option<&str>) -> Result<(By, i64), ApiError> {
    let (mut by, mut limit) = (By::Failures, LIMIT_DEFAULT);
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("by", name) => {
                by = By::of(name).ok_or_else(|| {
                    ApiError::bad("invalid_by", "`by` must be failures, latency, backlog or trouble")
                })?;
            }
            ("limit", text) => {
                let number = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                limit = number
                    .ok_or_else(|| ApiError::bad("invalid_limit", "`limit` must be a number within 1..50"))?;
            }
            _ => return Err(ApiError::bad("invalid_query", "there are `by` and `limit` only")),
        }
    }
    Ok((by, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_has_bounds() {
        assert_eq!(asked(None).unwrap(), (By::Failures, 10));
        assert_eq!(asked(Some("limit=50&by=latency")).unwrap(), (By::Latency, 50));
        for query in ["limit=0", "limit=51", "limit=x", "by=", "by=name", "order=latency"] {
            assert!(asked(Some(query)).is_err(), "{query}");
        }
    }
}
