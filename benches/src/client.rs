//! A client that costs next to nothing: one connection, a request that was put together before, one answer at a time.
//! It reads only what our gateway answers, which always says how long its body is.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// One kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// # Panics
    /// When nobody listens there.
    pub async fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Connection { stream, read: Vec::with_capacity(8 << 10) }
    }

    /// A POST of `body` as it goes over the wire.
    pub fn request(path: &str, key: Option<&str>, body: &[u8]) -> Bytes {
        let key = key.map_or_else(String::new, |key| format!("x-api-key: {key}\r\n"));
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\n{key}content-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        request.into()
    }

    /// Sends a request; gives the status and the body of its answer.
    ///
    /// # Panics
    /// When the connection breaks, or the answer has no length.
    pub async fn call(&mut self, request: &[u8]) -> (u16, Bytes) {
        self.stream.write_all(request).await.expect("the gateway reads");
        self.read.clear();
        loop {
            let n = self.stream.read_buf(&mut self.read).await.expect("the gateway answers");
            assert!(n > 0, "the gateway closed the connection");
            if let Some((status, body)) = whole(&self.read) {
                return (status, Bytes::copy_from_slice(body));
            }
        }
    }
}

/// Status and body of an answer, once all of it is there.
fn whole(read: &[u8]) -> Option<(u16, &[u8])> {
    let end = read.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&read[..end]).expect("a head of ASCII");
    let status = head.get(9..12).and_then(|s| s.parse().ok()).expect("a status");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let length: usize = length.parse().expect("a number");
    Some((status, read.get(end + 4..end + 4 + length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\ndate: x\r\n\r\nok";
        assert_eq!(whole(answer), Some((201, &b"ok"[..])));
        for n in 0..answer.len() {
            assert_eq!(whole(&answer[..n]), None, "{n}");
        }
    }
}
