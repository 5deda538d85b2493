//! Getting the metrics of a process, over a connection for each time.

use std::{fmt, io, str::FromStr, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::prometheus::Sample;
use crate::{
    config::{proxy, value::Secret},
    store::tls::{self, Trust},
};

const PATIENCE: Duration = Duration::from_secs(2);

/// Ours are some 50 KB.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Where a process says how it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    host: String,
    port: u16,
    path: String,
    encrypted: bool,
    /// The value of `Authorization`, empty without a user.
    authorization: Secret,
}

impl Place {
    pub(super) fn new(host: impl Into<String>, port: u16, encrypted: bool) -> Place {
        let path = "/metrics".to_owned();
        Place { host: host.into(), port, path, encrypted, authorization: Secret::default() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `http://[user:password@]host:port`, or `https`; without a path it is `/metrics`.
impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let wrong = || format!("{text:?} is no URL such as http://127.0.0.1:3000");
        let url: hyper::Uri = text.parse().map_err(|_| wrong())?;
        let (encrypted, usual) = match url.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(wrong()),
        };
        let host = url.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        // A port that is no number is none to the parser, and a mistake to us.
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let (user, place) = authority.rsplit_once('@').unzip();
        let behind_host = place.unwrap_or(authority).rsplit(']').next().unwrap_or_default();
        let port = match url.port_u16() {
            Some(port) => port,
            None if behind_host.contains(':') => return Err(wrong()),
            None => usual,
        };
        let path = match url.path() {
            "" | "/" => "/metrics".to_owned(),
            path => path.to_owned(),
        };
        let authorization = user.map_or_else(|| Ok(Secret::default()), proxy::basic).map_err(|_| wrong())?;
        Ok(Place { host, port, path, encrypted, authorization })
    }
}

/// What a process said, and which it is: two ports of one process say the same.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) process: Option<String>,
    pub(super) sample: Sample,
}

/// Asks one process.
///
/// # Errors
/// When it does not answer with 200 within two seconds, or says more than 4 MiB.
pub(super) async fn fetch(place: &Place) -> io::Result<Said> {
    let ask = async {
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
        if !place.encrypted {
            return ask(stream, place).await;
        }
        // Its certificate may name another way to it than ours, and that is well as long as nothing secret is said.
        let trust = if place.authorization.is_empty() { Trust::Anybody } else { Trust::Host };
        let client = tls::client(trust, &[]).map_err(io::Error::other)?;
        let name = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
        ask(TlsConnector::from(Arc::new(client)).connect(name, stream).await?, place).await
    };
    let answer =
        tokio::time::timeout(PATIENCE, ask).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    read(&answer).ok_or_else(|| io::Error::other("it does not answer with metrics"))
}

/// By HTTP/1.0, where the answer's end is the connection's.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, place: &Place) -> io::Result<String> {
    let mut request = format!("GET {} HTTP/1.0\r\nhost: {place}\r\n", place.path);
    if !place.authorization.is_empty() {
        request.push_str(&format!("authorization: {}\r\n", place.authorization.reveal()));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await;
    // Some end TLS without its goodbye; the length is looked at anyway.
    if let Err(error) = read
        && error.kind() != io::ErrorKind::UnexpectedEof
    {
        return Err(error);
    }
    String::from_utf8(answer).map_err(io::Error::other)
}

fn read(answer: &str) -> Option<Said> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let is_ok = lines.next()?.split(' ').nth(1) == Some("200");
    let header = |name: &str| {
        head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    let whole = header("content-length").is_none_or(|(_, n)| n.trim().parse() == Ok(body.len()));
    (is_ok && whole).then(|| Said {
        process: header(crate::metrics::PROCESS_HEADER).map(|(_, id)| id.trim().to_owned()),
        sample: Sample::parse(body),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_from_urls() {
        for (url, place) in [
            ("http://127.0.0.1:3000", Place::new("127.0.0.1", 3000, false)),
            ("http://gateway/", Place::new("gateway", 80, false)),
            ("https://gateway/metrics", Place::new("gateway", 443, true)),
            ("http://[::1]:3000", Place::new("::1", 3000, false)),
            ("http://h:1/m", Place { path: "/m".to_owned(), ..Place::new("h", 1, false) }),
        ] {
            assert_eq!(url.parse(), Ok(place), "{url}");
        }
        let wrong = [
            "",
            "gateway",
            "gateway:3000",
            "ftp://h",
            "http://",
            "http://h:x",
            "http://u:p@h:x",
            "http://u:%@h",
        ];
        for url in wrong {
            assert!(url.parse::<Place>().is_err(), "{url}");
        }
        assert_eq!(Place::new("::1", 3000, false).to_string(), "[::1]:3000");
    }

    #[test]
    fn a_user_in_a_url_is_sent_and_never_shown() {
        let known = |url: &str| url.parse::<Place>().unwrap();
        let place = known("http://me:se%40cret@h");
        // "me:se@cret" in base64.
        assert_eq!((place.port, place.authorization.reveal()), (80, "Basic bWU6c2VAY3JldA=="));
        assert_eq!(known("https://me:x@[::1]:3000").port, 3000);
        assert_eq!(place.to_string(), "h:80");
        assert!(!format!("{place:?}").contains("bWU6"));
    }

    #[test]
    fn only_whole_and_good_answers_count() {
        let said =
            read("HTTP/1.0 200 OK\r\nContent-Length: 4\r\nEventPulse-Process: ab\r\n\r\na 1\n").unwrap();
        assert_eq!((said.process.as_deref(), said.sample.get("a")), (Some("ab"), Some(1.0)));
        for answer in
            ["", "HTTP/1.0 404 Not Found\r\n\r\na 1\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na 1\n"]
        {
            assert!(read(answer).is_none(), "{answer}");
        }
    }
}
