//! A request on its way: its head is written once, as HTTP/1.1 has it, and HTTP/2 takes its fields from there.

use std::{ops::Range, str, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Uri,
    header::{HeaderName, HeaderValue, USER_AGENT},
};

use super::{h1::Wire, origin::Origin};

const AGENT: &str = concat!("EventPulse/", env!("CARGO_PKG_VERSION"));

/// Room for the fields of one request, beside what its endpoint has for all.
const ROOM: usize = 768;

/// Bodies up to here are written together with the head, by one system call.
const TOGETHER: usize = 16 << 10;

/// Where requests go, with what is the same for all of them.
pub struct Endpoint {
    pub(super) origin: Origin,
    uri: Uri,
    /// The account's own.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The beginning of each head.
    start: String,
}

impl Endpoint {
    /// None for a URL without a host. None of the headers may be one that a request gets besides.
    pub fn new(uri: Uri, headers: Vec<(HeaderName, HeaderValue)>) -> Option<Endpoint> {
        let origin = Origin::of(&uri)?;
        let (path, query) = (uri.path(), uri.query());
        let (mark, query) = (if query.is_some() { "?" } else { "" }, query.unwrap_or_default());
        let mut start = format!(
            "POST {path}{mark}{query} HTTP/1.1\r\nhost: {}\r\nuser-agent: {AGENT}\r\n",
            host(&origin)
        );
        // Neither a path nor a value can hold an end of line: their types see to it.
        for (name, value) in &headers {
            let Ok(value) = str::from_utf8(value.as_bytes()) else { continue };
            start.extend([name.as_str(), ": ", value, "\r\n"]);
        }
        Some(Endpoint { origin, uri, headers, start })
    }
}

/// The host as a request names it: the port is left out where the scheme says it.
fn host(origin: &Origin) -> &str {
    let usual = if origin.https { 443 } else { 80 };
    if origin.port == usual { origin.authority.host() } else { origin.authority.as_str() }
}

/// A request that is being written.
pub struct Post {
    endpoint: Arc<Endpoint>,
    head: String,
    /// Each with where its value stands.
    fields: Vec<(HeaderName, Range<usize>)>,
    body: Bytes,
}

impl Post {
    pub fn new(endpoint: &Arc<Endpoint>, body: Bytes) -> Post {
        let together = if body.len() <= TOGETHER { body.len() } else { 0 };
        let mut head = String::with_capacity(endpoint.start.len() + ROOM + together);
        head.push_str(&endpoint.start);
        Post { endpoint: endpoint.clone(), head, fields: Vec::with_capacity(12), body }
    }

    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Adds a field. What is written for its value must be one: no control characters. Returns where it stands.
    pub fn put(&mut self, name: HeaderName, write: impl FnOnce(&mut String)) -> Range<usize> {
        self.head.extend([name.as_str(), ": "]);
        let start = self.head.len();
        write(&mut self.head);
        let value = start..self.head.len();
        self.head.push_str("\r\n");
        self.fields.push((name, value.clone()));
        value
    }

    /// A value that was put.
    pub fn value(&self, at: Range<usize>) -> &str {
        &self.head[at]
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, at) = self.fields.iter().find(|(other, _)| other == name)?;
        Some(self.value(at.clone()))
    }

    /// Ends the head. Nothing is put after it.
    pub(super) fn finish(self) -> Finished {
        let Post { endpoint, mut head, fields, body } = self;
        head.extend(["content-length: ", body.len().to_string().as_str(), "\r\n\r\n"]);
        let mut start = head.into_bytes();
        let mut rest = body.clone();
        if body.len() <= TOGETHER {
            start.extend_from_slice(&body);
            rest.clear();
        }
        Finished { endpoint, wire: Wire { start, rest }, fields, body }
    }
}

/// A request in the form of either protocol.
pub(super) struct Finished {
    pub(super) endpoint: Arc<Endpoint>,
    /// As HTTP/1.1 has it.
    pub(super) wire: Wire,
    fields: Vec<(HeaderName, Range<usize>)>,
    body: Bytes,
}

impl Finished {
    /// As hyper's HTTP/2 takes it: the host is in the URI, and the length in the body.
    pub(super) fn http2(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.uri.clone();
        let headers = request.headers_mut();
        headers.reserve(self.endpoint.headers.len() + self.fields.len() + 1);
        headers.extend(self.endpoint.headers.iter().cloned());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, at) in &self.fields {
            if let Ok(value) = HeaderValue::from_bytes(&self.wire.start[at.clone()]) {
                headers.append(name, value);
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(url: &str, body: Bytes) -> Finished {
        let own = (HeaderName::from_static("x-own"), HeaderValue::from_static("mine"));
        let endpoint = Arc::new(Endpoint::new(url.parse().unwrap(), vec![own]).unwrap());
        let mut post = Post::new(&endpoint, body);
        let at = post.put(HeaderName::from_static("x-a"), |text| text.push_str("été"));
        assert_eq!((post.value(at), post.field("x-a")), ("été", Some("été")));
        post.finish()
    }

    #[test]
    fn a_request_is_one_text_for_http1() {
        let small = finished("http://example.com:80?x=1", Bytes::from_static(b"{}"));
        assert_eq!(
            str::from_utf8(&small.wire.start).unwrap(),
            format!(
                "POST /?x=1 HTTP/1.1\r\nhost: example.com\r\nuser-agent: {AGENT}\r\nx-own: mine\r\n\
                 x-a: été\r\ncontent-length: 2\r\n\r\n{{}}"
            )
        );
        assert!(small.wire.rest.is_empty());
        let body = Bytes::from(vec![b'x'; TOGETHER + 1]);
        let large = finished("http://example.com/", body.clone());
        assert!(large.wire.start.ends_with(b"content-length: 16385\r\n\r\n"));
        assert_eq!(large.wire.rest, body);
    }

    #[test]
    fn http2_has_the_same_fields_and_body() {
        let request = finished("https://example.com/a?b", Bytes::from_static(b"{}")).http2();
        assert_eq!(
            (request.method(), request.uri().to_string().as_str()),
            (&Method::POST, "https://example.com/a?b")
        );
        let headers = request.headers();
        assert_eq!(
            (headers.len(), &headers["x-own"], &headers["user-agent"]),
            (3, &HeaderValue::from_static("mine"), &HeaderValue::from_static(AGENT))
        );
        assert_eq!(headers["x-a"].as_bytes(), "été".as_bytes());
    }

    #[test]
    fn a_host_is_named_as_the_scheme_asks() {
        for (uri, expected) in [
            ("http://example.com/a", "example.com"),
            ("http://example.com:80/a", "example.com"),
            ("https://example.com:80/a", "example.com:80"),
            ("https://example.com:443", "example.com"),
            ("http://[::1]:8080/", "[::1]:8080"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(host(&Origin::of(&uri).unwrap()), expected);
        }
        assert!(Endpoint::new("/only/a/path".parse().unwrap(), vec![]).is_none());
    }
}
