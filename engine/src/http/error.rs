//! Every error the API answers with: the only place that knows status codes. The client gets a stable code
//! and what to do; the cause goes to the log.

use std::borrow::Cow;

use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER},
};

use super::{
    reply::{self, Body},
    request_id::RequestId,
};
use crate::{ingest, logs::warn_seldom, store, store::versions::Refused, transform};

/// An answer that is not 2xx.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    /// Which event of several is wrong.
    index: Option<usize>,
    allow: Option<&'static str>,
    /// The rest of the request was not read, so the connection cannot be used again.
    close: bool,
    /// What went wrong on our side, for the log alone.
    cause: Option<Box<str>>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> ApiError {
        ApiError {
            status,
            code,
            message: message.into(),
            index: None,
            allow: None,
            close: false,
            cause: None,
        }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<Cow<'static, str>>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unprocessable(code: &'static str, message: impl Into<Cow<'static, str>>) -> ApiError {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    pub(super) fn no_such_path() -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    pub(super) fn not_found(what: &'static str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what} in this account"))
    }

    pub(super) fn conflict(code: &'static str, message: &'static str) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, code, message)
    }

    pub(super) fn method(allow: &'static str) -> ApiError {
        let mut error = ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("this path takes {allow}"),
        );
        error.allow = Some(allow);
        error
    }

    pub(super) fn unauthorized(message: &'static str) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn forbidden(message: &'static str) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn media_type(message: &'static str) -> ApiError {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    pub(super) fn too_large(max: usize) -> ApiError {
        let message = format!("the body must be at most {max} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).closing()
    }

    pub(super) fn body_timeout() -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time")
            .closing()
    }

    pub(super) fn broken_body() -> ApiError {
        ApiError::bad("broken_body", "the body ended early").closing()
    }

    pub(super) fn too_many_tests() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_tests",
            "this process makes as many tests as it may; try again after a while",
        )
    }

    pub(super) fn too_many_of_your_tests() -> ApiError {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_tests",
            "as many tests of this account run as may; wait for one of them",
        )
    }

    pub(super) fn too_many_here(code: &'static str) -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            "this process does as many of these as it may; try again after a while",
        )
    }

    pub(super) fn too_many_of_yours(code: &'static str) -> ApiError {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            code,
            "this account does as many of these as it may; wait for one to end",
        )
    }

    pub(super) fn compiler_unavailable() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "compiler_unavailable",
            "the module could not be compiled, which is not its fault; try again after a while",
        )
    }

    pub(super) fn unavailable() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the database did not answer; send the request again after a while",
        )
    }

    /// Whether what is left of the request is not read any more.
    pub(super) fn closes(&self) -> bool {
        self.close
    }

    fn closing(mut self) -> ApiError {
        self.close = true;
        self
    }

    /// Notes what went wrong on our side.
    pub(super) fn caused_by(self, cause: String) -> ApiError {
        ApiError { cause: Some(cause.into()), ..self }
    }

    /// Says in the log what the client is not told. Refusals are counted and not logged, and neither is what a client does wrong:
    /// whoever floods us with either must not fill the log too.
    pub(super) fn log(&self, id: &RequestId) {
        let (status, code) = (self.status.as_u16(), self.code);
        match &self.cause {
            Some(error) => warn_seldom!(request_id = %id, status, code, error = &**error, "request failed"),
            None => tracing::debug!(request_id = %id, status, code, "request refused"),
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut body =
            serde_json::json!({ "ok": false, "error": { "code": self.code, "message": self.message } });
        if let Some(index) = self.index {
            body["error"]["index"] = index.into();
        }
        let mut response = reply::json(self.status, body.to_string().into());
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> ApiError {
        ApiError::unavailable().caused_by(crate::chain(&error))
    }
}

impl From<transform::Rejected> for ApiError {
    fn from(rejected: transform::Rejected) -> ApiError {
        ApiError::unprocessable(rejected.code, rejected.message)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::NoWebhook => ApiError::not_found("webhook"),
            Refused::NoTransform => {
                ApiError::new(StatusCode::NOT_FOUND, "no_transform", "this webhook has no transform")
            }
            Refused::NoVersion => {
                ApiError::new(StatusCode::NOT_FOUND, "not_found", "this webhook has no such version")
            }
            Refused::NotReady => ApiError::conflict(
                "not_ready",
                "this version is still being compiled, or was rejected; see GET /webhooks/:id/transform",
            ),
            Refused::Compiling(version) => ApiError::new(
                StatusCode::CONFLICT,
                "not_ready",
                format!("version {version} is still being compiled; wait for it, or remove it"),
            ),
            Refused::InUse => ApiError::conflict(
                "version_in_use",
                "this version is in force, or deliveries that were sent with it are still owed",
            ),
            Refused::TooMany => ApiError::conflict(
                "too_many_versions",
                "deliveries are still owed with as many versions as a webhook may have; try again later",
            ),
        }
    }
}

impl From<ingest::Error> for ApiError {
    fn from(error: ingest::Error) -> ApiError {
        let unavailable =
            |code, message: &'static str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        match error {
            ingest::Error::Full => unavailable(
                "overloaded",
                "more events arrive than can be committed; send this one again after a while",
            ),
            ingest::Error::Share => ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "account_overloaded",
                "this account's requests fill half of the queue while others wait; send this one again after a while",
            ),
            ingest::Error::KeyReused => ApiError::unprocessable(
                "idempotency_key_reused",
                "this `Idempotency-Key` came with other events within 24 hours; use a new key for new events",
            ),
            ingest::Error::Late | ingest::Error::Store(_) => unavailable(
                "unavailable",
                "the event could not be committed in time and may or may not be accepted; send it again after a while",
            )
            .caused_by(crate::chain(&error)),
            ingest::Error::Stopping => {
                unavailable("stopping", "this process is stopping; send the event again").closing()
            }
            ingest::Error::Rejected(_) => {
                ApiError::bad("event_rejected", "the database refuses what is in this request")
            }
        }
    }
}

impl From<ingest::keys::Error> for ApiError {
    fn from(error: ingest::keys::Error) -> ApiError {
        match error {
            ingest::keys::Error::Invalid => ApiError::unauthorized("the API key in `x-api-key` is not valid"),
            ingest::keys::Error::Unavailable => {
                ApiError::unavailable().caused_by("an API key could not be looked up".to_owned())
            }
        }
    }
}

impl From<ingest::Invalid> for ApiError {
    fn from(invalid: ingest::Invalid) -> ApiError {
        let status = match invalid.code {
            ingest::TOO_MANY | ingest::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        ApiError { index: invalid.index, ..ApiError::new(status, invalid.code, invalid.message) }
    }
}
