//! Exchanges with a peer that is in the test's hand.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

impl Io for DuplexStream {
    fn poll_unasked(&mut self, cx: &mut Context) -> Poll<()> {
        Pin::new(self).poll_read(cx, &mut ReadBuf::new(&mut [0])).map(|_| ())
    }

    fn fails_whole(&self) -> bool {
        true
    }
}

const LARGE: usize = 48 << 10;

fn wire() -> Wire {
    Wire { start: b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}".to_vec(), rest: Bytes::new() }
}

fn large() -> Wire {
    let start = format!("POST / HTTP/1.1\r\ncontent-length: {LARGE}\r\n\r\n").into_bytes();
    Wire { start, rest: vec![b'x'; LARGE].into() }
}

/// A connection, and what of its peer the test holds.
fn connected(room: usize) -> (H1, DuplexStream) {
    let (ours, peer) = duplex(room);
    (H1::new(ours, 1), peer)
}

/// What a reply comes to: its status, its body as far as `max`, and whether the connection is of further use.
async fn outcome(h1: &mut H1, wire: &Wire, max: usize) -> Result<(u16, Vec<u8>, bool), bool> {
    let mut sending = Sending::new(wire);
    let (head, mut body) = h1.exchange(&mut sending).await.map_err(|failed| failed.begun)?;
    let mut into = Vec::new();
    let ended = h1.read(&mut sending, &mut body, max, &mut into).await.unwrap_or(false);
    Ok((head.status.as_u16(), into, ended && head.keeps && sending.is_over() && h1.is_clean()))
}

#[tokio::test]
async fn a_large_body_follows_its_head() {
    let (mut h1, mut peer) = connected(1000);
    let wire = large();
    let served = async {
        let mut got = vec![0; wire.len()];
        peer.read_exact(&mut got).await.expect("a request");
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("it reads");
        got
    };
    let (found, got) = tokio::join!(outcome(&mut h1, &wire, 10), served);
    assert_eq!(found, Ok((200, vec![], true)));
    assert!(got.ends_with(&wire.rest) && h1.is_ready());
}

/// The connection would take the rest of this request for the next one.
#[tokio::test]
async fn a_reply_before_the_request_was_read_is_the_reply_and_the_last_one() {
    let (mut h1, mut peer) = connected(1000);
    let wire = large();
    peer.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.expect("there is room");
    assert_eq!(outcome(&mut h1, &wire, 10).await, Ok((413, b"no".to_vec(), false)));
    // What came before a byte was written is no reply to it.
    let (mut h1, mut peer) = connected(1000);
    peer.write_all(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        .await
        .expect("there is room");
    drop(peer);
    assert_eq!(outcome(&mut h1, &wire, 10).await, Err(false));
}

/// As of a receiver that answers first and reads after.
#[tokio::test]
async fn what_was_answered_early_is_written_to_its_end() {
    let (mut h1, mut peer) = connected(1000);
    let wire = large();
    let served = async {
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.expect("there is room");
        let mut got = vec![0; wire.len() / 2];
        peer.read_exact(&mut got).await.expect("a half");
        peer.write_all(b"ok").await.expect("there is room");
        let mut rest = vec![0; wire.len() - got.len()];
        peer.read_exact(&mut rest).await.expect("the rest");
        peer
    };
    let sent = async {
        let mut sending = Sending::new(&wire);
        let (_, mut body) = h1.exchange(&mut sending).await.ok().expect("a reply");
        let mut into = Vec::new();
        let ended = h1.read(&mut sending, &mut body, 10, &mut into).await.expect("a body");
        assert!(ended && !sending.is_over());
        h1.send_rest(&mut sending).await;
        assert!(sending.is_over() && into == b"ok" && h1.is_clean());
    };
    // What is not written is waited for.
    let both = async { tokio::join!(sent, served) };
    let ((), _peer) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("it ends");
    assert!(h1.is_ready());
}

#[tokio::test]
async fn what_no_byte_was_written_of_is_told_from_what_was_begun() {
    let wire = wire();
    let (mut h1, peer) = connected(1000);
    drop(peer);
    assert_eq!(outcome(&mut h1, &wire, 10).await, Err(false));
    let (mut h1, mut peer) = connected(1000);
    let served = async {
        peer.read_u8().await.expect("a byte");
        drop(peer);
    };
    let (found, ()) = tokio::join!(outcome(&mut h1, &wire, 10), served);
    assert_eq!(found, Err(true));
}

#[tokio::test]
async fn whatever_comes_unasked_makes_a_connection_useless() {
    let (mut h1, mut peer) = connected(1000);
    assert!(h1.is_ready());
    peer.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.expect("there is room");
    assert!(!h1.is_ready());
    let (mut h1, peer) = connected(1000);
    drop(peer);
    assert!(!h1.is_ready());
    // What follows a reply is not the next one.
    let (mut h1, mut peer) = connected(1000);
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabc").await.expect("there is room");
    let wire = wire();
    assert_eq!(outcome(&mut h1, &wire, 10).await, Ok((200, b"a".to_vec(), false)));
}

#[tokio::test]
async fn a_head_without_an_end_is_bounded() {
    let wire = wire();
    for endless in ["HTTP/1.1 200 OK\r\na: ", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let (mut h1, mut peer) = connected(2 * HEAD_BYTES_MAX);
        peer.write_all(endless.repeat(2 * HEAD_BYTES_MAX / endless.len()).as_bytes()).await.expect("room");
        let failed = h1.exchange(&mut Sending::new(&wire)).await.expect_err("no end");
        assert!(matches!(failed.error, Error::Head(head::Error::Large)), "{:?}", failed.error);
    }
}

/// What hyper makes of a reply: its status and body.
async fn by_hyper(io: DuplexStream) -> Option<(u16, Vec<u8>)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::post("/").body(Full::new(Bytes::from_static(b"{}"))).expect("a request");
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.ok()?.to_bytes().to_vec()))
}

/// A reply whose peer closes the connection after it, and where its reads are cut.
fn replies() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let interim = prop_oneof![
        Just(""),
        Just("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    ];
    let status = prop_oneof![Just(200u16), Just(204), Just(304), Just(404), Just(500)];
    let framing = 0..8usize;
    let body = proptest::collection::vec(any::<u8>(), 0..300);
    let cuts = proptest::collection::vec(1..80usize, 1..20);
    (interim, status, framing, body, 1..60usize, any::<bool>(), cuts).prop_map(
        |(interim, status, framing, body, piece, whole, cuts)| {
            let mut out = interim.as_bytes().to_vec();
            out.extend_from_slice(format!("HTTP/1.1 {status} Word\r\nserver: x\r\n").as_bytes());
            let head = match framing {
                0 => "\r\n".to_owned(),
                1 => format!("content-length: {}\r\n\r\n", body.len() / 2),
                2 | 3 => format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()),
                4 => "content-length: 5\r\ncontent-length: 6\r\n\r\n".to_owned(),
                5 => "content-length: x\r\n\r\n".to_owned(),
                _ => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            };
            out.extend_from_slice(head.as_bytes());
            if framing < 6 {
                out.extend_from_slice(&body);
            } else {
                for chunk in body.chunks(piece) {
                    out.extend_from_slice(format!("{:X};a=b\r\n", chunk.len()).as_bytes());
                    out.extend_from_slice(chunk);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(if framing == 6 { b"0\r\nt: x\r\n\r\n" } else { b"0\r\n\r\n" });
            }
            if !whole {
                out.truncate(out.len() * piece / 60);
            }
            (out, cuts)
        },
    )
}

/// Writes a reply in pieces once there is a request, and closes.
async fn serve(mut peer: DuplexStream, reply: Vec<u8>, cuts: Vec<usize>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n{}") {
        if peer.read_buf(&mut request).await.is_ok_and(|n| n == 0) {
            return;
        }
    }
    let mut at = 0;
    for cut in cuts.iter().cycle() {
        let end = reply.len().min(at + cut);
        if peer.write_all(&reply[at..end]).await.is_err() || end == reply.len() {
            return;
        }
        at = end;
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_reply_is_read_as_by_another_implementation((reply, cuts) in replies()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (ours, theirs) = runtime.block_on(async {
            let (mut h1, peer) = connected(1 << 20);
            let wire = wire();
            let ours = async {
                let mut sending = Sending::new(&wire);
                let (head, mut body) = h1.exchange(&mut sending).await.ok()?;
                let mut into = Vec::new();
                let ended = h1.read(&mut sending, &mut body, 1000, &mut into).await.ok()?;
                ended.then_some((head.status.as_u16(), into))
            };
            let (ours, ()) = tokio::join!(ours, serve(peer, reply.clone(), cuts.clone()));
            let (io, peer) = duplex(1 << 20);
            let (theirs, ()) = tokio::join!(by_hyper(io), serve(peer, reply.clone(), cuts));
            (ours, theirs)
        });
        prop_assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(&reply));
    }
}
