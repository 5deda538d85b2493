//! `POST /webhooks/:id/test`: one signed call to an endpoint now, made as a delivery is and written nowhere.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    ApiError, Gateway,
    reply::{self, Body},
};
use crate::{
    config::{self, Config},
    deliver::{
        Client, Target, Verdict,
        outcome::{self, Kept},
    },
    metrics::Metrics,
    model::{AccountId, Timestamp, WebhookId},
    store::settle::Attempt,
};

/// Calls at a time, over all accounts, and of one: endpoints that hang must not keep others from theirs.
const AT_ONCE_MAX: usize = 16;
const ACCOUNT_MAX: usize = 4;

/// The longest time-out that a webhook may have of its own.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Makes the calls: a gateway has no dispatcher beside it, so it has a client of its own.
pub struct TestCalls {
    client: Client,
    kept: Kept,
    timeout: Duration,
    places: Semaphore,
    running: Mutex<HashSet<(AccountId, WebhookId)>>,
}

/// The right to test one webhook, given back when it is dropped, so also when the caller goes away.
struct Turn<'a> {
    calls: &'a TestCalls,
    id: (AccountId, WebhookId),
    _place: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.calls.running().remove(&self.id);
    }
}

impl TestCalls {
    /// # Errors
    /// On a proxy or a file of certificates that cannot be used.
    pub fn new(config: &Config, metrics: std::sync::Arc<Metrics>) -> Result<TestCalls, config::Error> {
        // Tests are rare: a connection kept for the next one would only be in the way.
        let settings = config::Deliver { idle: Duration::ZERO, ..config.deliver.clone() };
        let (after_max, targets) = (config.retry.retry_after_max, &config.targets);
        Ok(TestCalls {
            client: Client::new(&settings, after_max, targets, metrics)?,
            kept: Kept { success: settings.success_bytes_kept, failure: settings.failure_bytes_kept },
            timeout: settings.timeout,
            places: Semaphore::new(AT_ONCE_MAX),
            running: Mutex::default(),
        })
    }

    /// How much longer than other calls of the API a test may take.
    pub(super) fn patience(&self) -> Duration {
        self.timeout.max(TIMEOUT_MAX)
    }

    fn running(&self) -> MutexGuard<'_, HashSet<(AccountId, WebhookId)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, account: AccountId, webhook: WebhookId) -> Result<Turn<'_>, ApiError> {
        let id = (account, webhook);
        let mut running = self.running();
        if running.contains(&id) {
            return Err(ApiError::conflict("test_running", "a test of this webhook is still running"));
        }
        if running.iter().filter(|(owner, _)| *owner == account).count() >= ACCOUNT_MAX {
            return Err(ApiError::too_many_of_your_tests());
        }
        let place = self.places.try_acquire().map_err(|_| ApiError::too_many_tests())?;
        running.insert(id);
        Ok(Turn { calls: self, id, _place: place })
    }
}

pub(super) async fn test(
    gateway: &Gateway,
    request: &Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let (account, id) = (webhook.account, webhook.id);
    let unreadable = || ApiError::unprocessable("invalid_url", "the `url` of this webhook cannot be read");
    let target = Target::new(webhook).ok_or_else(unreadable)?;
    let no_secret = || {
        ApiError::unprocessable(
            "secret_unreadable",
            "the secret of this webhook cannot be read at the moment",
        )
    };
    let request = target.test_request(Timestamp::now()).ok_or_else(no_secret)?;
    let calls = &gateway.tests;
    let _turn = calls.turn(account, id)?;
    let timeout = target.webhook.own.timeout.unwrap_or(calls.timeout);
    let call = calls.client.call(request, timeout).await;
    match outcome::judge(call, calls.kept) {
        Verdict::Delivered(attempt) => Ok(answer(true, &attempt)),
        // A 410 is shown and disables nothing: no delivery was refused.
        Verdict::Retry { attempt, .. } | Verdict::Gone(attempt) => Ok(answer(false, &attempt)),
        Verdict::Unsent => Err(ApiError::too_many_tests()),
    }
}

fn answer(delivered: bool, attempt: &Attempt) -> Response<Body> {
    let body = serde_json::json!({
        "ok": true,
        "delivered": delivered,
        "outcome": {
            "status": if delivered { "success" } else { "failed" },
            "reasonCode": attempt.reason_code,
            "responseCode": attempt.code,
            "responseBody": attempt.body,
            "error": attempt.error,
            "durationMs": attempt.duration_ms,
        },
    });
    reply::json(StatusCode::OK, body.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(turn: Result<Turn<'_>, ApiError>) -> u16 {
        turn.map_or_else(|error| error.into_response().status().as_u16(), |_| 200)
    }

    #[tokio::test]
    async fn an_account_has_some_of_the_calls_and_a_webhook_one() {
        let calls = TestCalls::new(&Config::default(), std::sync::Arc::new(Metrics::new())).unwrap();
        let turn = |account, webhook| calls.turn(AccountId(account), WebhookId(webhook));
        let mut first: Vec<_> = (0..4).map(|n| turn(1, n).unwrap()).collect();
        assert_eq!((status(turn(1, 0)), status(turn(1, 9)), status(turn(2, 9))), (409, 429, 200));
        first.pop();
        assert_eq!(status(turn(1, 9)), 200, "a call that ended, or whose caller left, gives its place back");
        let others: Vec<_> = (10..23).map(|n| turn(n, n).unwrap()).collect();
        assert_eq!((first.len() + others.len(), status(turn(99, 99))), (16, 503));
    }
}
