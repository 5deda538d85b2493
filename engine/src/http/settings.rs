//! The fields of a webhook, of `PATCH /webhooks/:id` and `POST /register-webhook` alike, checked one by one: each error
//! names its field.

use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::{ApiError, webhooks};
use crate::{
    config::{Config, value::Schedule},
    store::manage::Change,
};

const HEADERS_MAX: usize = 20;
const HEADER_NAME_MAX: usize = 128;
const HEADER_VALUE_MAX: usize = 1024;

/// Headers that we set, or that belong to the connection.
const RESERVED: [&str; 13] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const RESERVED_PREFIXES: [&str; 3] = ["proxy-", "webhook-", "x-eventpulse-"];

/// Reads what is to be changed.
///
/// # Errors
/// For what is no JSON object, an unknown field, and a field that is not as it must be.
pub(super) fn change(bytes: &[u8], config: &Config) -> Result<Change, ApiError> {
    let fields: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad("invalid_json", format!("send a JSON object: {error}")))?;
    let mut change = Change::default();
    for (name, value) in fields {
        if !set(&mut change, &name, value, config)? {
            return Err(ApiError::bad("unknown_field", format!("`{name}` is not a field of a webhook")));
        }
    }
    Ok(change)
}

/// Reads one field. Returns whether there is one of that name.
///
/// # Errors
/// When it is not as it must be.
pub(super) fn set(change: &mut Change, name: &str, value: Value, config: &Config) -> Result<bool, ApiError> {
    match name {
        "name" => change.name = Some(webhooks::name(Some(&value))?),
        "url" => change.url = Some(webhooks::url(Some(&value), &config.targets)?),
        "eventTypes" => change.event_types = Some(webhooks::event_types(Some(value))?),
        "state" => change.state = Some(state(&value)?),
        "headers" => change.headers = Some(headers(&value)?),
        "rateLimit" => change.rate_limit = Some(rate_limit(&value)?),
        "retry" => change.retry_waits_ms = Some(retry(&value, &config.retry.schedule)?),
        "timeoutMs" => change.timeout_ms = Some(number(&value, "timeoutMs", 100, 60_000)?),
        "maxInFlight" => change.in_flight_max = Some(number(&value, "maxInFlight", 1, 1000)?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn state(value: &Value) -> Result<&'static str, ApiError> {
    match value.as_str() {
        Some("active") => Ok("active"),
        Some("paused") => Ok("paused"),
        Some("disabled") => Ok("disabled"),
        _ => Err(ApiError::bad("invalid_state", "`state` must be `active`, `paused` or `disabled`")),
    }
}

fn headers(value: &Value) -> Result<Vec<String>, ApiError> {
    let wrong = |message: String| ApiError::bad("invalid_headers", message);
    let fields = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(fields) if fields.len() <= HEADERS_MAX => fields,
        _ => {
            return Err(wrong(format!(
                "`headers` must be an object of at most {HEADERS_MAX} names and values"
            )));
        }
    };
    let mut flat = Vec::with_capacity(fields.len() * 2);
    for (name, value) in fields {
        let lower = name.to_ascii_lowercase();
        if name.len() > HEADER_NAME_MAX || HeaderName::try_from(name.as_str()).is_err() {
            return Err(wrong(
                "each name of `headers` must be an HTTP header name of at most 128 bytes".into(),
            ));
        }
        if RESERVED.contains(&lower.as_str()) || RESERVED_PREFIXES.iter().any(|p| lower.starts_with(p)) {
            return Err(wrong(format!("the header `{lower}` is set by the engine")));
        }
        let Some(text) = value
            .as_str()
            .filter(|text| text.len() <= HEADER_VALUE_MAX && HeaderValue::from_str(text).is_ok())
        else {
            return Err(wrong(format!(
                "the value of `{lower}` must be a string of at most 1024 visible letters"
            )));
        };
        if flat.iter().step_by(2).any(|known: &String| *known == lower) {
            return Err(wrong(format!("the header `{lower}` stands there twice")));
        }
        flat.extend([lower, text.to_owned()]);
    }
    Ok(flat)
}

fn rate_limit(value: &Value) -> Result<Option<f64>, ApiError> {
    match value {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|rate| (0.01..=10_000.0).contains(rate)) {
            Some(rate) => Ok(Some(rate)),
            None => Err(ApiError::bad(
                "invalid_rate_limit",
                "`rateLimit` must be requests a second within 0.01..10000, or null for none",
            )),
        },
    }
}

/// `{"schedule": ["5s", "5m"]}`, or `{"maxAttempts": 3}` for the deployment's waits, cut or with the last repeated.
fn retry(value: &Value, waits: &Schedule) -> Result<Option<Vec<i64>>, ApiError> {
    let wrong = || {
        ApiError::bad(
            "invalid_retry",
            "`retry` must be {\"schedule\": [up to 100 durations such as \"5s\"]} or {\"maxAttempts\": 1..101}, or null",
        )
    };
    let Value::Object(fields) = value else {
        return if value.is_null() { Ok(None) } else { Err(wrong()) };
    };
    let ms = |schedule: &Schedule| {
        schedule.waits().iter().map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)).collect()
    };
    let mut fields = fields.iter();
    match (fields.next(), fields.next()) {
        (Some((name, Value::Array(items))), None) if name == "schedule" => {
            let texts: Option<Vec<&str>> = items
                .iter()
                .map(|i| i.as_str().filter(|t| !t.contains(',') && !t.trim().is_empty()))
                .collect();
            let schedule: Schedule = texts.ok_or_else(wrong)?.join(",").parse().map_err(|_| wrong())?;
            Ok(Some(ms(&schedule)))
        }
        (Some((name, value)), None) if name == "maxAttempts" => {
            let attempts = number(value, "maxAttempts", 1, 101)?.ok_or_else(wrong)?;
            let mut waits: Vec<i64> = ms(waits);
            let last = waits.last().copied().unwrap_or(5000);
            waits.resize(attempts.unsigned_abs() as usize - 1, last);
            Ok(Some(waits))
        }
        _ => Err(wrong()),
    }
}

fn number(value: &Value, name: &'static str, least: i32, most: i32) -> Result<Option<i32>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
    number.map(Some).ok_or_else(|| {
        ApiError::bad("invalid_number", format!("`{name}` must be a whole number within {least}..{most}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Change, String> {
        change(body.as_bytes(), &Config::default()).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn each_field_is_read_and_null_is_the_default() {
        let body = r#"{"name":" a ","state":"paused","headers":{"X-Team":"b"},"rateLimit":2.5,
            "retry":{"schedule":["1s","2m"]},"timeoutMs":500,"maxInFlight":3,"eventTypes":["a.*"]}"#;
        let change = read(body).unwrap();
        assert_eq!(change.name.as_deref(), Some("a"));
        assert_eq!(change.headers.unwrap(), ["x-team", "b"]);
        assert_eq!(change.retry_waits_ms, Some(Some(vec![1000, 120_000])));
        assert_eq!((change.timeout_ms, change.in_flight_max), (Some(Some(500)), Some(Some(3))));
        let change = read(r#"{"rateLimit":null,"retry":null,"eventTypes":null}"#).unwrap();
        assert_eq!((change.rate_limit, change.retry_waits_ms), (Some(None), Some(None)));
        assert_eq!((change.event_types, change.state), (Some(None), None));
        let change = read(r#"{"retry":{"maxAttempts":10}}"#).unwrap();
        let waits = change.retry_waits_ms.unwrap().unwrap();
        assert_eq!((waits.len(), waits[0], waits[8]), (9, 5000, 36_000_000));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("[]", "invalid_json"),
            ("{", "invalid_json"),
            (r#"{"colour":1}"#, "unknown_field"),
            (r#"{"name":""}"#, "invalid_name"),
            (r#"{"url":"ftp://x/"}"#, "invalid_url"),
            (r#"{"url":"http://127.0.0.1/"}"#, "private_target"),
            (r#"{"eventTypes":[]}"#, "invalid_event_types"),
            (r#"{"state":"deleted"}"#, "invalid_state"),
            (r#"{"state":null}"#, "invalid_state"),
            (r#"{"headers":{"a b":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"Host":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"Webhook-Id":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"a":"x\r\ny: z"}}"#, "invalid_headers"),
            (r#"{"headers":{"a":"x\u0000"}}"#, "invalid_headers"),
            (r#"{"headers":{"a\r\nb":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"Transfer-Encoding":"chunked"}}"#, "invalid_headers"),
            (r#"{"headers":{"TE":"trailers"}}"#, "invalid_headers"),
            (r#"{"headers":{"Http2-Settings":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"Proxy-Authorization":"c"}}"#, "invalid_headers"),
            (r#"{"headers":{"a":"1","A":"2"}}"#, "invalid_headers"),
            (r#"{"headers":{"a":1}}"#, "invalid_headers"),
            (r#"{"rateLimit":0}"#, "invalid_rate_limit"),
            (r#"{"rateLimit":"1"}"#, "invalid_rate_limit"),
            (r#"{"retry":{"schedule":["soon"]}}"#, "invalid_retry"),
            (r#"{"retry":{"schedule":["1s,2s"]}}"#, "invalid_retry"),
            (r#"{"retry":{"maxAttempts":0}}"#, "invalid_number"),
            (r#"{"retry":{}}"#, "invalid_retry"),
            (r#"{"timeoutMs":1}"#, "invalid_number"),
            (r#"{"maxInFlight":1.5}"#, "invalid_number"),
        ];
        for (body, code) in cases {
            let error = read(body).unwrap_err();
            assert!(error.contains(code), "{body}: {error}");
        }
    }
}
