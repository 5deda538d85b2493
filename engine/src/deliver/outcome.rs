//! What a reply means. Pure, and the only place that decides it.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use crate::store::settle::{Attempt, Status};

/// What came of a call.
#[derive(Debug)]
pub struct Call {
    pub result: Result<Reply, Failure>,
    pub took: Duration,
}

/// A reply, read as far as its cap allows. The head decides: a body that is too long, too slow or broken
/// off takes nothing away from the status.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Vec<u8>,
    pub retry_after: Option<Duration>,
}

/// A call without a reply.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the name could not be resolved")]
    Dns(#[source] std::io::Error),
    #[error("the address may not be called")]
    Blocked,
    #[error("no connection could be made")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no connection in time")]
    NotConnected,
    #[error("no TLS session could be agreed on")]
    Tls(#[source] std::io::Error),
    #[error("no way through the proxy")]
    Proxy(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("this process has no file descriptors left")]
    OutOfFiles,
    #[error("no reply in time")]
    TimedOut,
    #[error("the connection broke before the reply")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    fn code(&self) -> &'static str {
        match self {
            Failure::Dns(_) => "dns",
            Failure::Blocked => "target_blocked",
            Failure::Connect(_) => "connect",
            Failure::OutOfFiles => "out_of_files",
            Failure::NotConnected | Failure::TimedOut => "timeout",
            Failure::Tls(_) => "tls",
            Failure::Proxy(_) => "proxy",
            Failure::Broken(_) => "connection_lost",
        }
    }
}

/// What follows from a call, with the row that records it.
#[derive(Debug)]
pub enum Verdict {
    Delivered(Attempt),
    /// To be tried again; not before `after` if the endpoint asked for that.
    Retry {
        attempt: Attempt,
        after: Option<Duration>,
    },
    /// Nothing was sent, and not for a fault of the endpoint: it costs no attempt.
    Unsent,
    /// The endpoint is gone for good (410): its webhook is disabled.
    Gone(Attempt),
}

/// Bytes of a reply that an attempt keeps.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub success: usize,
    pub failure: usize,
}

/// Decides what a call means.
pub fn judge(call: Call, kept: Kept) -> Verdict {
    let attempt = |status, code: Option<StatusCode>, body, error, reason_code| Attempt {
        status,
        code: code.map(|c| c.as_u16().cast_signed()),
        body,
        error,
        reason_code,
        duration_ms: i32::try_from(call.took.as_millis()).unwrap_or(i32::MAX),
        transform: None,
    };
    let reply = match call.result {
        Ok(reply) => reply,
        Err(Failure::OutOfFiles) => return Verdict::Unsent,
        Err(failure) => {
            let text = clean(crate::chain(&failure).as_bytes(), 500);
            return Verdict::Retry {
                attempt: attempt(Status::Failed, None, None, Some(text), failure.code()),
                after: None,
            };
        }
    };
    let code = Some(reply.status);
    if reply.status.is_success() {
        let body = clean(&reply.body, kept.success);
        return Verdict::Delivered(attempt(Status::Success, code, Some(body), None, "delivered"));
    }
    let body = Some(clean(&reply.body, kept.failure));
    let error = |what: &str| Some(format!("{what} (HTTP {})", reply.status.as_u16()));
    match reply.status {
        StatusCode::GONE => {
            Verdict::Gone(attempt(Status::Dead, code, body, error("the endpoint says it is gone"), "gone"))
        }
        status if status.is_redirection() => Verdict::Retry {
            attempt: attempt(Status::Failed, code, body, error("redirects are not followed"), "redirect"),
            after: None,
        },
        _ => Verdict::Retry {
            attempt: attempt(Status::Failed, code, body, error("the endpoint refused"), "http_status"),
            after: reply.retry_after,
        },
    }
}

/// Foreign bytes as text that Postgres takes: valid UTF-8 without NUL, at most `max` bytes, cut between
/// characters.
pub fn clean(bytes: &[u8], max: usize) -> String {
    // A replacement character is longer than the byte it stands for, so the cut comes after.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max)]).replace('\0', "\u{fffd}");
    let end = text.floor_char_boundary(max);
    text[..end].to_owned()
}

/// The wait that a `Retry-After` asks for: seconds, or a date. A date is told by the endpoint's clock, so it counts from
/// the reply's own `Date` where there is one, and from `now` otherwise. It counts for every reply that is tried again,
/// 429 and 503 or another.
pub fn retry_after(value: &str, date: Option<&str>, now: SystemTime, max: Duration) -> Option<Duration> {
    let value = value.trim();
    if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() {
        // More digits than a number holds are more than the cap.
        return Some(value.parse().map_or(max, Duration::from_secs).min(max));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let from = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or_default().min(max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEPT: Kept = Kept { success: 4, failure: 8 };

    fn reply(status: u16) -> Verdict {
        let result = Ok(Reply {
            status: StatusCode::from_u16(status).unwrap(),
            body: b"0123456789".to_vec(),
            retry_after: Some(Duration::from_secs(9)),
        });
        let took = Duration::from_millis(12);
        judge(Call { result, took }, KEPT)
    }

    #[test]
    fn statuses_mean_what_the_contract_says() {
        for status in [200, 201, 202, 204, 299] {
            assert!(
                matches!(reply(status), Verdict::Delivered(a) if a.code == Some(status as i16)),
                "{status}"
            );
        }
        for status in [300, 301, 302, 304, 307, 308] {
            assert!(
                matches!(reply(status), Verdict::Retry { attempt, after: None } if attempt.reason_code == "redirect"),
                "{status}"
            );
        }
        for status in [400, 401, 404, 408, 422, 425, 429, 500, 502, 503, 504, 599] {
            assert!(matches!(reply(status), Verdict::Retry { after: Some(_), .. }), "{status}");
        }
        assert!(matches!(reply(410), Verdict::Gone(a) if a.status == Status::Dead));
    }

    #[test]
    fn a_call_without_reply_is_tried_again_and_says_why() {
        let failures = [
            (Failure::Blocked, "target_blocked"),
            (Failure::TimedOut, "timeout"),
            (Failure::Dns(std::io::Error::other("x")), "dns"),
            (Failure::Connect("x".into()), "connect"),
            (Failure::NotConnected, "timeout"),
            (Failure::Tls(std::io::Error::other("x")), "tls"),
            (Failure::Proxy("x".into()), "proxy"),
            (Failure::Broken("x".into()), "connection_lost"),
        ];
        for (failure, code) in failures {
            let call = Call { result: Err(failure), took: Duration::ZERO };
            assert!(
                matches!(judge(call, KEPT), Verdict::Retry { attempt, .. } if attempt.reason_code == code && attempt.error.is_some())
            );
        }
    }

    #[test]
    fn what_could_not_be_sent_for_our_own_fault_is_no_attempt() {
        let call = Call { result: Err(Failure::OutOfFiles), took: Duration::ZERO };
        assert!(matches!(judge(call, KEPT), Verdict::Unsent));
    }

    #[test]
    fn bodies_are_cut() {
        assert!(matches!(reply(200), Verdict::Delivered(a) if a.body.as_deref() == Some("0123")));
        assert!(
            matches!(reply(500), Verdict::Retry { attempt, .. } if attempt.body.as_deref() == Some("01234567"))
        );
    }

    proptest! {
        #[test]
        fn clean_text_fits_and_holds_no_nul(bytes: Vec<u8>, max in 0usize..40) {
            let text = clean(&bytes, max);
            prop_assert!(text.len() <= max && !text.contains('\0'));
        }
    }

    #[test]
    fn retry_after_is_read_and_capped() {
        let max = Duration::from_secs(60);
        // 21 October 2015, 07:27:30 GMT.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_450);
        let after = |value, date| retry_after(value, date, now, max);
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, wait) in [
            (" 5 ", seconds(5)),
            ("0", seconds(0)),
            ("99999999", seconds(60)),
            ("99999999999999999999999", seconds(60)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Wed, 21 Oct 2015 07:28:00 GMT", seconds(30)),
            ("Wednesday, 21-Oct-15 07:28:00 GMT", seconds(30)),
            ("Wed Oct 21 07:28:00 2015", seconds(30)),
            ("Wed, 21 Oct 2026 07:28:00 GMT", seconds(60)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", seconds(0)),
            ("Wed, 99 Oct 2015 07:00:00 GMT", None),
        ] {
            assert_eq!(after(value, None), wait, "{value}");
        }
        // An endpoint whose clock is a year ahead still means half a minute.
        let (date, value) = ("Fri, 21 Oct 2016 07:28:00 GMT", "Fri, 21 Oct 2016 07:28:30 GMT");
        assert_eq!(after(value, Some(date)), seconds(30));
        assert_eq!(after("7", Some(date)), seconds(7));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT", Some("today")), seconds(30));
    }
}
