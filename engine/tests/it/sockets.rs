//! What clients do to a socket that a well-bred HTTP library never would.

use std::{io, net::SocketAddr, time::Duration};

use eventpulse_testkit::{Receiver, eventually};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::harness::{
    App, PATIENCE, count, postgres,
    process::{self, Process},
};

/// Short enough to wait for, long enough that no honest request of a busy machine meets it.
const SHORT: Duration = Duration::from_secs(2);

/// What an HTTP/2 client sends first.
const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection to the gateway, without a library in between. Every read and write has a bound.
pub(crate) struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// One answer as it came over a [`Wire`].
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// Takes the first answer out of `bytes`, if all of it is there.
    fn take(bytes: &mut Vec<u8>) -> Option<Answer> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..end]).expect("an answer's head is text");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let status = status.parse().expect("a status");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |n| n.parse().expect("a length"));
        if bytes.len() < end + length {
            return None;
        }
        answer.body = bytes[end..end + length].to_vec();
        bytes.drain(..end + length);
        Some(answer)
    }
}

impl Wire {
    pub(crate) async fn open(app: &App) -> Wire {
        let stream = timeout(PATIENCE, TcpStream::connect(gateway(app))).await;
        let stream = stream.expect("a connection in time").expect("a connection");
        stream.set_nodelay(true).expect("a socket's option");
        Wire { stream, unread: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the peer still reads");
    }

    async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("the peer reads in time")
    }

    /// The next answer, interim ones included.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_or_end().await.unwrap_or_else(|| {
            panic!("the connection ended before an answer, after {:?}", String::from_utf8_lossy(&self.unread))
        })
    }

    /// Waits for the end of the connection, before which nothing more may come.
    pub(crate) async fn ended(&mut self) {
        let answer = self.answer_or_end().await;
        assert!(answer.is_none() && self.unread.is_empty(), "{answer:?} instead of the end");
    }

    /// One of the two has to come. A reset is an end too: bytes of ours may still have been under way.
    async fn answer_or_end(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = Answer::take(&mut self.unread) {
                return Some(answer);
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return None,
                Err(_) => {
                    panic!("neither answer nor end, after {:?}", String::from_utf8_lossy(&self.unread))
                }
            }
        }
    }

    /// Sends `piece` over and over, as a slow client does, until the peer has enough. Returns what it said.
    async fn trickle(&mut self, what: &str, piece: &str) -> Option<Answer> {
        eventually(&format!("{what} comes to an end"), PATIENCE, async || {
            let sent = self.try_send(piece).await;
            match self.stream.try_read_buf(&mut self.unread) {
                Ok(0) => Ok(()),
                Ok(_) => Err("it said something".to_owned()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && sent.is_ok() => {
                    Err("it is open".to_owned())
                }
                Err(_) => Ok(()),
            }
        })
        .await;
        Answer::take(&mut self.unread)
    }

    /// Whether nothing came so far.
    fn is_quiet(&mut self) -> bool {
        let read = self.stream.try_read_buf(&mut self.unread);
        self.unread.is_empty() && read.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Ends the connection as a killed client's kernel does when it has no mind to be orderly.
    fn reset(self) {
        self.stream.set_zero_linger().expect("a socket's option");
    }
}

fn gateway(app: &App) -> SocketAddr {
    app.engine.gateway.expect("the gateway listens")
}

/// The head of an event's request, with `more` header lines that each end in CRLF.
pub(crate) fn head(key: &str, more: &str) -> String {
    format!(
        "POST /send-event HTTP/1.1\r\nhost: gateway\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n{more}\r\n"
    )
}

/// A whole request with an event.
fn event(key: &str, body: &str) -> String {
    head(key, &format!("content-length: {}\r\n", body.len())) + body
}

fn numbered(n: usize) -> String {
    json!({ "type": format!("n.{n}"), "payload": { "n": n } }).to_string()
}

/// Asserts that an answer is the 201 of the numbered event.
fn accepted(answer: &Answer, n: usize) {
    assert_eq!(answer.status, 201, "event {n}: {answer:?}");
    assert_eq!(answer.json()["event"]["payload"], json!({ "n": n }), "event {n}");
}

fn connections(app: &App) -> f64 {
    app.metric("eventpulse_http_connections")
}

/// Waits until the gateway has given back every connection. The harness's own go with its client.
async fn all_given_back(app: &mut App) {
    app.client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    eventually("all connections are given back", PATIENCE, async || match connections(app) {
        0.0 => Ok(()),
        open => Err(format!("{open} are open")),
    })
    .await;
}

async fn stored(app: &App) -> i64 {
    count(&postgres(&app.database).await, "SELECT count(*) FROM events").await
}

#[tokio::test]
async fn slow_heads_and_idle_connections_time_out() {
    let mut app = App::with("slow_heads", |config| {
        config.http.header_timeout = SHORT;
        config.http.connections_max = 3;
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    all_given_back(&mut app).await;

    // As many as there are slots: were one of them not given back, nobody would be served afterwards.
    let (mut first_line, mut header, mut idle) =
        (Wire::open(&app).await, Wire::open(&app).await, Wire::open(&app).await);
    first_line.send("POST /").await;
    header.send("POST /send-event HTTP/1.1\r\nhost: gateway\r\nx-slow: ").await;
    idle.send(event(&account.key, &numbered(0))).await;
    accepted(&idle.answer().await, 0);
    let (_, _, ()) = tokio::join!(
        first_line.trickle("a first line letter by letter", "x"),
        header.trickle("a header letter by letter", "x"),
        idle.ended(),
    );
    all_given_back(&mut app).await;
    app.send(&account.key, "after", json!(1)).await;
    app.stop().await;
}

/// 1. A server that speaks HTTP/1 and HTTP/2 on one port looks at the first bytes to tell them apart.
/// 2. The time-out for a request's head begins after that, so a client that never sends those bytes, or sends
///    a letter that both may begin with, is not under any time-out.
/// 3. It keeps its slot for ever, and `connections_max` such clients are the end of the gateway.
#[tokio::test]
async fn connections_that_never_ask_time_out() {
    let mut app = App::with("never_ask", |config| {
        config.http.header_timeout = SHORT;
        config.http.connections_max = 4;
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    all_given_back(&mut app).await;

    let beginnings = ["", "P", &PREFACE[..20], PREFACE];
    let mut wires = Vec::new();
    for beginning in beginnings {
        let mut wire = Wire::open(&app).await;
        wire.send(beginning).await;
        wires.push(wire);
    }
    eventually("connections that only began are closed", PATIENCE, async || {
        let open: Vec<&str> = (wires.iter().zip(beginnings))
            .filter(|(wire, _)| {
                // HTTP/2 says a few words before it ends.
                let mut words = [0; 1024];
                !matches!(wire.stream.try_read(&mut words), Ok(0))
            })
            .map(|(_, beginning)| beginning)
            .collect();
        if open.is_empty() { Ok(()) } else { Err(format!("open are those that sent {open:?}")) }
    })
    .await;
    all_given_back(&mut app).await;
    app.send(&account.key, "after", json!(1)).await;
    app.stop().await;
}

#[tokio::test]
async fn slow_bodies_time_out() {
    let mut app = App::with("slow_bodies", |config| {
        config.http.body_timeout = SHORT;
        config.http.connections_max = 4;
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    all_given_back(&mut app).await;

    let sized = head(&account.key, "content-length: 100000\r\n");
    let chunked = head(&account.key, "transfer-encoding: chunked\r\n");
    let form = "POST /register-webhook HTTP/1.1\r\nhost: gateway\r\ncontent-length: 100000\r\n\r\n";
    let slow = async |what: &str, head: &str, piece: &str| {
        let mut wire = Wire::open(&app).await;
        wire.send(head).await;
        let answer = wire.trickle(what, piece).await;
        let answer = answer.unwrap_or_else(|| panic!("{what}: ended without an answer"));
        assert_eq!(answer.status, 408, "{what}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], "body_timeout", "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
    };
    tokio::join!(
        slow("a body byte by byte", &sized, " "),
        slow("a body chunk by chunk", &chunked, "1\r\n \r\n"),
        slow("a body that stops", &sized, ""),
        slow("a form byte by byte", form, " "),
    );
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 0);
    app.send(&account.key, "after", json!(1)).await;
    app.stop().await;
}

/// 1. A client writes its request, shuts down its sending side, as `nc -N` does, and reads.
/// 2. The gateway sees the end of the stream while the commit is under way.
/// 3. Taken for a lost peer, the event is committed and nobody is told: the client sends it again.
#[tokio::test]
async fn a_half_closed_connection_gets_its_answer() {
    let mut app = App::start("half_closed").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let db = postgres(&app.database).await;
    for n in 0..10 {
        let mut wire = Wire::open(&app).await;
        // The commit has to wait, so the end of the stream is there before the answer.
        db.batch_execute("BEGIN; LOCK TABLE batches IN SHARE MODE").await.expect("a lock");
        let asked = app.metric("eventpulse_ingest_key_lookups_total{from=\"memory\"}")
            + app.metric("eventpulse_ingest_key_lookups_total{from=\"postgres\"}");
        wire.send(event(&account.key, &numbered(n))).await;
        wire.stream.shutdown().await.expect("half a close");
        eventually("the request is in", PATIENCE, async || {
            let now = app.metric("eventpulse_ingest_key_lookups_total{from=\"memory\"}")
                + app.metric("eventpulse_ingest_key_lookups_total{from=\"postgres\"}");
            if now > asked { Ok(()) } else { Err("its key was not asked for".to_owned()) }
        })
        .await;
        db.batch_execute("COMMIT").await.expect("no lock");
        accepted(&wire.answer().await, n);
        wire.ended().await;
    }
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 10);
    app.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    const N: usize = 20;
    let mut app = App::start("pipelined").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let smuggled = event(&account.key, &json!({ "type": "smuggled", "payload": 1 }).to_string());
    let mut all = String::new();
    for n in 0..N {
        all += &match n {
            // Refused ones stand between them, one of them before its body was read. That body looks like
            // a request and must not be taken for one.
            7 => event(&account.key, "{ nonsense"),
            13 => format!(
                "POST /nowhere HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{smuggled}",
                smuggled.len()
            ),
            n => event(&account.key, &numbered(n)),
        };
    }
    let mut wire = Wire::open(&app).await;
    wire.send(all).await;
    let mut last = 0;
    for n in 0..N {
        let answer = wire.answer().await;
        match n {
            7 => assert_eq!(answer.status, 400, "{answer:?}"),
            13 => assert_eq!(answer.status, 404, "{answer:?}"),
            n => {
                accepted(&answer, n);
                let id = answer.json()["event"]["id"].as_i64().expect("an id");
                assert!(id > last, "event {n} has the id {id}, after {last}");
                last = id;
            }
        }
    }
    eventually("all good ones are delivered", PATIENCE, async || match receiver.count() {
        n if n >= N - 2 => Ok(()),
        n => Err(format!("{n} are")),
    })
    .await;
    assert_eq!(stored(&app).await, N as i64 - 2, "the refused one's body was taken for a request");
    drop(wire);
    all_given_back(&mut app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_before_it_sends() {
    let mut app = App::start("expect").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let expect = |length: usize| format!("content-length: {length}\r\nexpect: 100-continue\r\n");

    let body = numbered(1);
    let mut wire = Wire::open(&app).await;
    wire.send(head(&account.key, &expect(body.len()))).await;
    assert_eq!(wire.answer().await.status, 100);
    wire.send(&body).await;
    accepted(&wire.answer().await, 1);
    // The connection goes on.
    wire.send(event(&account.key, &numbered(2))).await;
    accepted(&wire.answer().await, 2);

    // What is refused by its head alone is refused without asking for its body.
    let plain = head(&account.key, &expect(10)).replace("application/json", "text/plain");
    let cases = [
        (413, head(&account.key, &expect((1 << 20) + 1))),
        (413, head(&account.key, &expect(1 << 40))),
        (401, head("ep_live_nobody", &expect(10))),
        (415, plain),
    ];
    for (status, head) in cases {
        let mut wire = Wire::open(&app).await;
        wire.send(&head).await;
        assert_eq!(wire.answer().await.status, status, "{head}");
        wire.ended().await;
    }
    drop(wire);
    all_given_back(&mut app).await;
    app.stop().await;
}

#[tokio::test]
async fn clients_that_vanish_leak_nothing() {
    let mut app = App::start("vanish").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let beginnings = [
        head(&account.key, "content-length: 1000\r\n") + "{\"type\":\"half\",",
        head(&account.key, "transfer-encoding: chunked\r\n") + "5\r\n{\"typ\r\n40\r\ne",
        head(&account.key, "content-length: 1000\r\n"),
        "POST /send-event HTT".to_owned(),
        PREFACE.to_owned(),
    ];
    let mut wires = Vec::new();
    for n in 0..40 {
        let mut wire = Wire::open(&app).await;
        wire.send(&beginnings[n % beginnings.len()]).await;
        wires.push(wire);
    }
    eventually("all are connected", PATIENCE, async || match connections(&app) {
        open if open >= 40.0 => Ok(()),
        open => Err(format!("{open} are")),
    })
    .await;
    // Of each kind some close and some reset.
    for (n, wire) in wires.into_iter().enumerate() {
        if n % 2 == 0 { drop(wire) } else { wire.reset() }
    }
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 0, "half a request is none");

    // These have said all, and do not wait for the answer.
    for n in 0..10 {
        let mut wire = Wire::open(&app).await;
        wire.send(event(&account.key, &numbered(n))).await;
    }
    eventually("what was said is stored and delivered", PATIENCE, async || {
        let (stored, delivered) = (stored(&app).await, receiver.count());
        if stored == 10 && delivered == 10 {
            Ok(())
        } else {
            Err(format!("{stored} stored, {delivered} delivered"))
        }
    })
    .await;
    all_given_back(&mut app).await;
    app.send(&account.key, "after", json!(1)).await;
    app.stop().await;
}

#[tokio::test]
async fn chunked_bodies_are_put_together() {
    let mut app = App::start("chunked").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let payload = "{ \"text\" : \"é😀\\u00e9\", \"n\": 1e400 }";
    let body = format!("{{\"type\":\"chunked\",\"payload\":{payload}}}");
    let mut wire = Wire::open(&app).await;
    for size in [1, 2, 7, body.len() - 1, body.len()] {
        for (extension, trailer) in [("", ""), (";name=value", ""), ("", "x-check: 1\r\n")] {
            let case = format!("chunks of {size}, extension {extension:?}, trailer {trailer:?}");
            wire.send(head(&account.key, "transfer-encoding: chunked\r\n")).await;
            for chunk in body.as_bytes().chunks(size) {
                // Every other part on its own, so that chunks come in pieces as well.
                wire.send(format!("{:x}{extension}\r\n", chunk.len())).await;
                wire.send([chunk, b"\r\n"].concat()).await;
            }
            wire.send(format!("0\r\n{trailer}\r\n")).await;
            let answer = wire.answer().await;
            assert_eq!(answer.status, 201, "{case}: {answer:?}");
            let text = String::from_utf8_lossy(&answer.body);
            assert!(text.contains(&format!("\"payload\":{payload},\"createdAt\"")), "{case}: {text}");
        }
    }
    drop(wire);
    all_given_back(&mut app).await;
    app.stop().await;
}

#[tokio::test]
async fn requests_whose_end_is_in_doubt_are_refused() {
    let mut app = App::start("framing").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let body = numbered(1);
    let length = body.len();
    let lines = [
        format!("content-length: {length}\r\ncontent-length: {}\r\n", length + 1),
        "content-length: +5\r\n".to_owned(),
        "content-length: -1\r\n".to_owned(),
        "content-length: 99999999999999999999\r\n".to_owned(),
        "transfer-encoding: identity\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: chunked\r\nx-bad header: 1\r\n".to_owned(),
        // Shapes that two servers in a row may read differently, so that what one takes for a body is a request to the other.
        "content-length: 5, 6\r\n".to_owned(),
        "content-length: 0x10\r\n".to_owned(),
        "content-length: 5 5\r\n".to_owned(),
        "content-length: 5\r\n 7\r\n".to_owned(),
        "content-length : 5\r\n".to_owned(),
        "transfer-encoding : chunked\r\n".to_owned(),
        "transfer-encoding:\r\n chunked\r\n".to_owned(),
        "x-a: b\r\n transfer-encoding: chunked\r\n".to_owned(),
        "x-a: b\r\n\ttransfer-encoding: chunked\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(),
        "transfer-encoding: \u{b}chunked\r\n".to_owned(),
        "x-a: b\rtransfer-encoding: chunked\r\n".to_owned(),
        "x-a: b\u{0}c\r\n".to_owned(),
        " content-length: 5\r\n".to_owned(),
    ];
    let mut requests: Vec<String> = lines.iter().map(|line| head(&account.key, line) + &body).collect();
    let chunked = head(&account.key, "transfer-encoding: chunked\r\n");
    for chunk in ["zz\r\n", "-1\r\n", "fffffffffffffffff\r\n", "5 5\r\n", "2\r\n{}x\r\n"] {
        requests.push(format!("{chunked}{chunk}{body}\r\n0\r\n\r\n"));
    }
    requests.push(
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3} this is how TLS begins\r\n\r\n".to_owned(),
    );
    requests.push("GET /health HTTP/9.9\r\nhost: t\r\n\r\n".to_owned());
    requests.push(format!("GET /health HTTP/1.1\r\nhost: t\r\nx-long: {}\r\n\r\n", "x".repeat(1 << 20)));
    requests.push(format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "x".repeat(1 << 20)));
    requests.push(format!("GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n", "x: y\r\n".repeat(1000)));
    for request in requests {
        let case = &request[..request.len().min(300)];
        let mut wire = Wire::open(&app).await;
        // The end may come before all of it is written, and with or without a word about it.
        let _ = wire.try_send(&request).await;
        if let Some(answer) = wire.answer_or_end().await {
            assert!((400..500).contains(&answer.status), "{case:?}: {answer:?}");
            wire.ended().await;
        }
    }
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 0);

    // Chunks win over a length, which is how proxies read it too, and then the connection is at its end
    // or exactly at the next request, never somewhere else.
    let both = "content-length: 5\r\ntransfer-encoding: chunked\r\n";
    let mut wire = Wire::open(&app).await;
    wire.send(format!("{}{length:x}\r\n{body}\r\n0\r\n\r\n", head(&account.key, both))).await;
    let answer = wire.answer().await;
    assert!([201, 400].contains(&answer.status), "{answer:?}");
    let _ = wire.try_send(event(&account.key, &numbered(2))).await;
    if let Some(answer) = wire.answer_or_end().await {
        accepted(&answer, 2);
    }
    drop(wire);
    all_given_back(&mut app).await;
    app.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_one_waits() {
    let mut app = App::with("bounded", |config| config.http.connections_max = 2).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    all_given_back(&mut app).await;
    let (mut one, mut two) = (Wire::open(&app).await, Wire::open(&app).await);
    for wire in [&mut one, &mut two] {
        wire.send(event(&account.key, &numbered(0))).await;
        accepted(&wire.answer().await, 0);
    }
    let mut third = Wire::open(&app).await;
    third.send(event(&account.key, &numbered(3))).await;
    // Each of these is a round through the gateway's only thread and through Postgres, so that the third's
    // turn would have come long before the last of them.
    for n in 0..30 {
        let wire = if n % 2 == 0 { &mut one } else { &mut two };
        wire.send(event(&account.key, &numbered(n))).await;
        accepted(&wire.answer().await, n);
        assert!(third.is_quiet(), "a third connection was served while two were open");
        assert!(connections(&app) <= 2.0);
    }
    drop(one);
    accepted(&third.answer().await, 3);
    // And so on, for those after it.
    let mut fourth = Wire::open(&app).await;
    fourth.send(event(&account.key, &numbered(4))).await;
    two.reset();
    accepted(&fourth.answer().await, 4);
    drop((third, fourth));
    all_given_back(&mut app).await;
    app.stop().await;
}

/// As many as `http.connections_max` allows, all open at once, each asked for something and none of them dropped.
#[tokio::test]
async fn ten_thousand_connections_are_served_side_by_side() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).expect("up to the hard limit");
    // Some are left for the other tests of this process.
    let most = limit.map_or(u64::MAX, |files| files.saturating_sub(2000)).min(9_990);
    assert!(most >= 1000, "a hard limit of {limit:?} files is too low for this test");
    let setup = App::start("tenthousand").await;
    let receiver = Receiver::start().await;
    let account = setup.register(&receiver.url("/")).await;
    // In a process of its own: each connection is a file at both ends.
    let gateway = Process::spawn(process::serve(&setup.database, "--role api"));
    let base = gateway.ready().await;
    let address: SocketAddr = base.trim_start_matches("http://").parse().expect("an address");
    let mut wires = Vec::new();
    for _ in 0..most {
        let stream = TcpStream::connect(address).await.expect("a connection");
        wires.push(Wire { stream, unread: Vec::new() });
    }
    // In parts, so that the queue is not what is tested.
    for (part, wires) in wires.chunks_mut(64).enumerate() {
        for wire in wires.iter_mut() {
            wire.send(event(&account.key, &numbered(part))).await;
        }
        for wire in wires {
            accepted(&wire.answer().await, part);
        }
    }
    let metrics = setup.client.get(format!("{base}/metrics")).send().await.unwrap().text().await.unwrap();
    let line =
        metrics.lines().find(|line| line.starts_with("eventpulse_http_connections ")).expect("the gauge");
    let open: f64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(open >= most as f64, "{open} of {most} are open");
    assert_eq!(stored(&setup).await, most as i64);
    // Reset, or ten thousand ports would be taken for a minute.
    wires.into_iter().for_each(Wire::reset);
    setup.stop().await;
}

#[tokio::test]
async fn a_connection_ends_when_its_client_said_so() {
    let mut app = App::start("closing").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let old = |request: String| request.replace("HTTP/1.1", "HTTP/1.0");
    let with = |line: &str| {
        let body = numbered(1);
        head(&account.key, &format!("{line}content-length: {}\r\n", body.len())) + &body
    };
    for (request, stays) in [
        (with(""), true),
        (with("connection: close\r\n"), false),
        (with("connection: Close\r\n"), false),
        (old(with("")), false),
        (old(with("connection: close\r\n")), false),
        (old(with("connection: keep-alive\r\n")), true),
    ] {
        let mut wire = Wire::open(&app).await;
        wire.send(&request).await;
        accepted(&wire.answer().await, 1);
        if stays {
            wire.send(&request).await;
            accepted(&wire.answer().await, 1);
        } else {
            // A request behind the last one is not answered.
            let _ = wire.try_send(&request).await;
            wire.ended().await;
        }
    }
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 8);
    app.stop().await;
}

/// 1. A client writes a large request whole before it reads.
/// 2. The gateway refuses it by its head and closes the connection with the body unread.
/// 3. The kernel turns that into a reset, and the client learns of a broken connection instead of its mistake.
#[tokio::test]
async fn a_refusal_arrives_although_the_body_was_not_wanted() {
    let mut app = App::start("unwanted").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let body = json!({ "type": "large", "payload": "x".repeat(8_000_000) }).to_string();
    let cases = [
        (401, "/send-event", "ep_live_nobody", "application/json"),
        (415, "/send-event", account.key.as_str(), "text/plain"),
        (404, "/nowhere", account.key.as_str(), "application/json"),
        (405, "/health", account.key.as_str(), "application/json"),
    ];
    for (status, path, key, kind) in cases {
        for n in 0..20 {
            let request =
                app.client.post(app.url(path)).header("x-api-key", key).header("content-type", kind);
            let answer = request.body(body.clone()).send().await;
            let answer = answer.unwrap_or_else(|e| panic!("{status}, time {n}: {}", eventpulse::chain(&e)));
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.json::<Value>().await.expect("JSON")["ok"], false, "{status}, time {n}");

            let mut wire = Wire::open(&app).await;
            let length = body.len();
            wire.send(format!(
                "POST {path} HTTP/1.1\r\nhost: t\r\nx-api-key: {key}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
            assert_eq!(wire.answer().await.status, status, "{path}, time {n}");
        }
    }
    all_given_back(&mut app).await;
    assert_eq!(stored(&app).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn http2_works_with_prior_knowledge() {
    const N: usize = 50;
    let mut app = App::start("h2c").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let stream = TcpStream::connect(gateway(&app)).await.expect("a connection");
    let shook = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shook.expect("HTTP/2");
    let talk = tokio::spawn(connection);
    let ask = |body: String| {
        let mut sender = sender.clone();
        let request = hyper::Request::post(app.url("/send-event"))
            .header("x-api-key", &account.key)
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(body)))
            .expect("a request");
        async move {
            let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
            let (head, body) = answer.expect("an answer").into_parts();
            let body = timeout(PATIENCE, body.collect()).await.expect("in time").expect("a body");
            (head.status.as_u16(), body.to_bytes())
        }
    };
    // Refusals that end an HTTP/1 connection must not end the streams of others.
    let mut asked = JoinSet::new();
    for n in 0..N {
        let body = match n % 10 {
            3 => "{ nonsense".to_owned(),
            7 => "x".repeat((1 << 20) + 1),
            _ => numbered(n),
        };
        let ask = ask(body);
        asked.spawn(async move { (n, ask.await) });
    }
    while let Some(done) = asked.join_next().await {
        let (n, (status, body)) = done.expect("no panic");
        let body: Value = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{n}: {e}"));
        match n % 10 {
            3 => assert_eq!(status, 400, "{body}"),
            7 => assert_eq!(status, 413, "{body}"),
            _ => {
                assert_eq!(status, 201, "{n}: {body}");
                assert_eq!(body["event"]["payload"], json!({ "n": n }));
            }
        }
    }
    assert_eq!(ask(numbered(99)).await.0, 201, "the connection goes on");
    assert_eq!(stored(&app).await, N as i64 / 10 * 8 + 1);
    drop(sender);
    talk.await.expect("no panic").expect("an orderly end");
    all_given_back(&mut app).await;
    app.stop().await;
}

/// The answer once waited for the read buffer to be empty. A client that ends its body with a line break, as old ones
/// do and RFC 9112 2.2 asks to tolerate, got none before the connection timed out, though its event was committed.
#[tokio::test]
async fn what_follows_a_request_does_not_hold_its_answer_back() {
    let app = App::start("stray").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    for (n, stray) in ["\r\n", "\n", "POST /send"].into_iter().enumerate() {
        let mut wire = Wire::open(&app).await;
        wire.send(event(&account.key, &numbered(n)) + stray).await;
        accepted(&wire.answer().await, n);
    }
    // What is no request at all is told so, even if more follows it.
    let mut wire = Wire::open(&app).await;
    wire.send("NO SUCH THING\r\n\r\nand more\r\n\r\n").await;
    assert_eq!(wire.answer().await.status, 400);
    app.stop().await;
}
