//! Asking a proxy for a way to an endpoint: `CONNECT host:port`, and an answer that is bounded.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::origin::Origin;
use crate::config::proxy::Proxy;

/// Bytes of the proxy's answer.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Why a proxy gave no way.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the proxy cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the connection to the proxy broke")]
    Broken(#[source] io::Error),
    #[error("the proxy refused (HTTP {0})")]
    Refused(u16),
    #[error("the proxy's answer is not HTTP, or too long")]
    Garbled,
}

/// Makes a connection to a proxy into one to an endpoint.
pub(super) async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, origin: &Origin) -> Result<(), Error> {
    let place = format!("{}:{}", origin.authority.host(), origin.port);
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n");
    if !proxy.authorization.is_empty() {
        request.push_str("proxy-authorization: ");
        request.push_str(proxy.authorization.reveal());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(Error::Broken)?;
    let mut head = Vec::with_capacity(1024);
    let end = loop {
        // Only a head's end in the last bytes is new.
        let seen = head.len().saturating_sub(3);
        let room = HEAD_BYTES_MAX - head.len();
        if room == 0 {
            return Err(Error::Garbled);
        }
        let n = (&mut *stream).take(room as u64).read_buf(&mut head).await.map_err(Error::Broken)?;
        if n == 0 {
            return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some(at) = head[seen..].windows(4).position(|four| four == b"\r\n\r\n") {
            break seen + at + 4;
        }
    };
    match status(&head) {
        // The endpoint speaks after us, so there is nothing behind the head yet.
        Some(200..=299) if end == head.len() => Ok(()),
        Some(200..=299) | None => Err(Error::Garbled),
        Some(other) => Err(Error::Refused(other)),
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.0 ").or_else(|| head.strip_prefix(b"HTTP/1.1 "))?;
    let digits = rest.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    matches!(rest.get(3), Some(b' ' | b'\r')).then_some(())?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for bad in [&b"HTTP/2 200 OK\r\n"[..], b"HTTP/1.1 2000 OK", b"HTTP/1.1 +20 OK", b"SSH-2.0", b""] {
            assert_eq!(status(bad), None);
        }
    }
}
