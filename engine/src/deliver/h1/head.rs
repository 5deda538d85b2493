//! The head of a reply: what it says of the connection and of the body (RFC 9112).

use std::{str, time::Duration};

use httparse::{EMPTY_HEADER, Header, Response, Status};
use hyper::StatusCode;

use super::body::Body;

/// Bytes of a reply's head, of all interim replies before it too.
pub(in crate::deliver) const HEAD_BYTES_MAX: usize = 32 << 10;

const HEADERS_MAX: usize = 100;

/// Replies without a body, whatever their head says of one.
const BODILESS: [StatusCode; 3] =
    [StatusCode::SWITCHING_PROTOCOLS, StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];

/// What matters of a final reply's head.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::deliver) struct Head {
    pub(in crate::deliver) status: StatusCode,
    /// Whether the connection may take another request after this reply.
    pub(in crate::deliver) keeps: bool,
    /// How long we keep the connection: a second less than the peer does, as our request takes its time to arrive.
    pub(in crate::deliver) idle: Option<Duration>,
    pub(in crate::deliver) retry_after: Option<String>,
    /// Of the peer's clock; read only where a `Retry-After` may need it.
    pub(in crate::deliver) date: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::deliver) enum Error {
    #[error("{0}")]
    Syntax(#[from] httparse::Error),
    #[error("no such status")]
    Status,
    #[error("it has two lengths, or one that is no number")]
    Length,
    #[error("the head is larger than {HEAD_BYTES_MAX} bytes")]
    Large,
}

/// Where the first head in `input` ends, if it does. Nothing before `seen` has been the end: so a head that comes byte by byte is
/// looked through once, and parsed once.
pub(super) fn end(input: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    let mut at = from;
    while let Some(found) = input[at..].iter().position(|byte| *byte == b'\n') {
        at += found + 1;
        match &input[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

impl Head {
    /// Reads one whole head. None for an interim reply, after which another one comes.
    pub(super) fn parse(input: &[u8]) -> Result<Option<(Head, Body)>, Error> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut response = Response::new(&mut headers);
        let Status::Complete(_) = response.parse(input)? else { return Err(httparse::Error::NewLine.into()) };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Error::Status)?;
        // 101 would end HTTP on this connection; nobody asked for that, so it is a reply like any other.
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(None);
        }
        let mut found = Found::default();
        response.headers.iter().for_each(|header| found.take(header));
        let body = match found {
            _ if BODILESS.contains(&status) => Body::Sized(0),
            // Whoever sends both may mean something else than we read; what follows on the connection is not believed.
            Found { chunked: true, .. } => Body::chunked(),
            Found { coded: true, .. } => Body::UntilClosed,
            Found { bad_length: true, .. } => return Err(Error::Length),
            Found { length: Some(length), .. } => Body::Sized(length),
            _ => Body::UntilClosed,
        };
        let promises_a_body = found.coded || found.length.is_some_and(|length| length > 0);
        let ambiguous = found.bad_length
            || found.coded && (found.length.is_some() || !found.chunked)
            || status == StatusCode::NO_CONTENT && promises_a_body;
        let keeps = response.version == Some(1)
            && !found.close
            && !ambiguous
            && body != Body::UntilClosed
            && status != StatusCode::SWITCHING_PROTOCOLS;
        let date = found.date.filter(|_| found.retry_after.is_some()).map(str::to_owned);
        let retry_after = found.retry_after.map(str::to_owned);
        Ok(Some((Head { status, keeps, idle: found.idle, retry_after, date }, body)))
    }
}

/// What the headers say, one after the other.
#[derive(Default)]
struct Found<'a> {
    length: Option<u64>,
    /// Two lengths, or one that is no number.
    bad_length: bool,
    /// Some transfer coding.
    coded: bool,
    /// The last coding is the one that says where the body ends.
    chunked: bool,
    close: bool,
    idle: Option<Duration>,
    retry_after: Option<&'a str>,
    date: Option<&'a str>,
}

impl<'a> Found<'a> {
    fn take(&mut self, header: &Header<'a>) {
        let Header { name, value } = *header;
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let text = || str::from_utf8(value).ok();
        let mut parts = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        // By length first: replies have many headers, and few that matter here.
        match name.len() {
            4 if is("date") => self.date = text(),
            10 if is("connection") => self.close |= parts.any(|part| part.eq_ignore_ascii_case(b"close")),
            10 if is("keep-alive") => self.idle = text().and_then(idle),
            11 if is("retry-after") => self.retry_after = text(),
            14 if is("content-length") => {
                for length in parts.map(number) {
                    self.bad_length |=
                        length.is_none() || self.length.is_some_and(|before| Some(before) != length);
                    self.length = length;
                }
            }
            17 if is("transfer-encoding") => {
                self.coded = true;
                self.chunked = parts.next_back().is_some_and(|part| part.eq_ignore_ascii_case(b"chunked"));
            }
            _ => {}
        }
    }
}

/// Digits alone: `parse` would take a sign too.
fn number(text: &[u8]) -> Option<u64> {
    text.iter().all(u8::is_ascii_digit).then(|| str::from_utf8(text).ok()?.parse().ok())?
}

/// The time-out that a `Keep-Alive` names, less a second.
fn idle(value: &str) -> Option<Duration> {
    let seconds = value.split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse::<u64>().ok())?
    })?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_keep_alive_is_read() {
        let read = |value: &str| idle(value).map(|d| d.as_secs());
        assert_eq!(read("timeout=5"), Some(4));
        assert_eq!(read("max=100, Timeout = 2"), Some(1));
        assert_eq!(read("timeout=1"), Some(0));
        assert_eq!(read("timeout=0"), Some(0));
        assert_eq!(read("max=100"), None);
        assert_eq!(read("timeout=soon"), None);
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_the_reads_were_cut() {
        for (text, ends) in [
            ("HTTP/1.1 200 OK\r\n\r\nbody\r\n\r\n", Some(19)),
            ("HTTP/1.1 200 OK\n\nbody", Some(17)),
            ("HTTP/1.1 200 OK\r\na: b\n\r\n", Some(24)),
            ("HTTP/1.1 200 OK\r\na: b\r\n", None),
            ("", None),
        ] {
            // The first `seen` bytes had no end.
            for seen in 0..ends.unwrap_or(text.len() + 1) {
                assert_eq!(end(text.as_bytes(), seen), ends, "{text:?} from {seen}");
            }
        }
    }

    fn parsed(headers: &str) -> Result<Option<(Head, Body)>, Error> {
        Head::parse(format!("HTTP/1.1 {headers}\r\n\r\n").as_bytes())
    }

    #[test]
    fn where_a_body_ends_is_told_by_its_head() {
        for (headers, body, keeps) in [
            ("200 OK\r\nContent-Length: 5", Body::Sized(5), true),
            ("200\r\ncontent-length: 5, 5\r\ncontent-length: 5", Body::Sized(5), true),
            ("200 OK\r\ncontent-length: 5\r\nconnection: x, Close", Body::Sized(5), false),
            ("200 OK\r\nconnection: keep-alive", Body::UntilClosed, false),
            ("200 OK\r\ntransfer-encoding: Chunked", Body::chunked(), true),
            ("200 OK\r\ntransfer-encoding: gzip, chunked", Body::chunked(), true),
            ("200 OK\r\ntransfer-encoding: chunked, gzip\r\ncontent-length: 5", Body::UntilClosed, false),
            ("200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5", Body::chunked(), false),
            ("204 No", Body::Sized(0), true),
            ("204 No\r\ncontent-length: 0", Body::Sized(0), true),
            ("204 No\r\ncontent-length: 5", Body::Sized(0), false),
            ("204 No\r\ntransfer-encoding: chunked", Body::Sized(0), false),
            ("204 No\r\ncontent-length: 5\r\ncontent-length: 6", Body::Sized(0), false),
            ("304 No\r\ntransfer-encoding: chunked", Body::Sized(0), true),
            ("304 No\r\ncontent-length: 5", Body::Sized(0), true),
            ("101 Now", Body::Sized(0), false),
        ] {
            let (head, found) = parsed(headers).expect(headers).expect("a final reply");
            assert_eq!((found, head.keeps), (body, keeps), "{headers}");
        }
        assert_eq!(parsed("100 Continue"), Ok(None));
        let old = Head::parse(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n").unwrap().unwrap();
        assert!(!old.0.keeps);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for length in ["5, 6", "+5", "", "99999999999999999999999", "5 5", "0x5"] {
            assert_eq!(
                parsed(&format!("200 OK\r\ncontent-length: {length}")),
                Err(Error::Length),
                "{length}"
            );
        }
        let many = format!("200 OK{}", "\r\na: b".repeat(HEADERS_MAX + 1));
        assert_eq!(parsed(&many), Err(Error::Syntax(httparse::Error::TooManyHeaders)));
        assert_eq!(Head::parse(b"HTTP/1.1 099 No\r\n\r\n"), Err(Error::Status));
        for other in
            ["HTTP/2 200 OK\r\n\r\n", "SSH-2.0-OpenSSH\r\n\r\n", "\n\n", "HTTP/1.1 200 OK\r\n a\r\n\r\n"]
        {
            assert!(matches!(Head::parse(other.as_bytes()), Err(Error::Syntax(_))), "{other:?}");
        }
    }

    #[test]
    fn the_time_to_try_again_is_kept_with_the_clock_that_it_is_by() {
        let (head, _) = parsed("503 No\r\nDate: now\r\nRetry-After: 7").unwrap().unwrap();
        assert_eq!((head.retry_after.as_deref(), head.date.as_deref()), (Some("7"), Some("now")));
        let (head, _) = parsed("503 No\r\ndate: now").unwrap().unwrap();
        assert_eq!((head.retry_after, head.date), (None, None));
    }
}
