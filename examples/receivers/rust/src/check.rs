//! Asks a running receiver everything that it has to get right, by bare HTTP over a socket.
//!
//! ```text
//! SECRET=whsec_... check 127.0.0.1:8090
//! ```
//!
//! Prints the number of checks and leaves with 0, or prints every check that failed and leaves with 1. No client
//! library stands in between, because half of the requests are ones that a client library would refuse to send.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const BODY_BYTES_MAX: usize = 1024 * 1024;
const SOCKET_TIME_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let address = env::args().nth(1).and_then(|address| address.parse().ok());
    let key = env::var("SECRET")
        .ok()
        .and_then(|secret| BASE64_STANDARD.decode(secret.strip_prefix("whsec_")?).ok());
    let (Some(address), Some(key)) = (address, key) else {
        eprintln!("usage: SECRET=whsec_<base64> check ADDRESS:PORT");
        return ExitCode::from(64);
    };
    let mut checker = Checker { address, key, done: 0, failed: 0 };
    checker.run();
    if checker.failed > 0 {
        eprintln!("{} of {} checks failed", checker.failed, checker.done);
        return ExitCode::FAILURE;
    }
    println!("{}", checker.done);
    ExitCode::SUCCESS
}

struct Checker {
    address: SocketAddr,
    key: Vec<u8>,
    done: u32,
    failed: u32,
}

/// What is sent: a good delivery, until a check spoils one part of it.
#[derive(Clone)]
struct Delivery {
    id: Option<String>,
    timestamp: Option<String>,
    signature: Option<String>,
    body: Vec<u8>,
}

impl Checker {
    fn run(&mut self) {
        let body =
            r#"{"id":1,"type":"order.paid","payload":{"total": 12.50, "total": 12.5},"createdAt":"now"}"#;

        let good = self.delivery("good", body);
        self.expect("good", &good, &[200], "ok");
        self.expect("the same again", &good, &[200], "duplicate");
        let mut later = good.clone();
        later.timestamp = Some((unix_seconds() - 60).to_string());
        self.sign(&mut later);
        self.expect("the same from a later attempt", &later, &[200], "duplicate");

        let mut wrong = self.delivery("wrong-signature", body);
        let right = wrong.signature.replace(format!("v1,{}", BASE64_STANDARD.encode([7; 32])));
        self.expect("wrong signature", &wrong, &[401], "");
        wrong.signature = right;
        self.expect("a refused id is not remembered", &wrong, &[200], "ok");

        let mut other = self.delivery("other-body", body);
        other.body = body.replace("12.50", "99.50").into_bytes();
        self.expect("a changed body", &other, &[401], "");
        let mut moved = self.delivery("moved-time", body);
        moved.timestamp = Some((unix_seconds() - 1).to_string());
        self.expect("a changed timestamp", &moved, &[401], "");
        let mut renamed = self.delivery("renamed", body);
        renamed.id = Some("renamed-otherwise".to_owned());
        self.expect("a changed id", &renamed, &[401], "");
        let mut garbage = self.delivery("garbage", body);
        garbage.signature = Some("v1,*** v1, v2 ,".to_owned());
        self.expect("a signature that is none", &garbage, &[401], "");
        let mut short = self.delivery("short", body);
        short.signature = short.signature.map(|signature| signature[..signature.len() / 2].to_owned());
        self.expect("half a signature", &short, &[401], "");

        for (name, seconds) in [("an old timestamp", -360), ("a timestamp to come", 360)] {
            let mut stale = self.delivery(&format!("stale{seconds}"), body);
            stale.timestamp = Some((unix_seconds() + seconds).to_string());
            self.sign(&mut stale);
            self.expect(name, &stale, &[401], "");
        }
        let mut vague = self.delivery("vague", body);
        vague.timestamp = Some("yesterday".to_owned());
        self.sign(&mut vague);
        self.expect("a timestamp that is none", &vague, &[400], "");

        let without = self.delivery("without", body);
        self.expect("no id", &Delivery { id: None, ..without.clone() }, &[400], "");
        self.expect("no timestamp", &Delivery { timestamp: None, ..without.clone() }, &[400], "");
        self.expect("no signature", &Delivery { signature: None, ..without }, &[400], "");

        let mut rotated = self.delivery("rotated", body);
        let old = BASE64_STANDARD.encode([9; 32]);
        rotated.signature = rotated.signature.map(|new| format!("v2,x v1,{old} {new}"));
        self.expect("two signatures, the second right", &rotated, &[200], "ok");

        let foreign =
            self.delivery("foreign", "{\"type\":\"größe.測\",\"payload\":\"\u{1F680}\u{7f} \u{2028}\"}");
        self.expect("a body with bytes beyond ASCII", &foreign, &[200], "ok");

        // No receiver can process this, and having failed it must take the next attempt under the same id as new.
        let broken = self.delivery_of("broken", b"{\"type\":\"\xff\xfe".to_vec());
        self.expect("a body that cannot be processed", &broken, &[500], "");
        self.expect("the same, still not remembered", &broken, &[500], "");
        let mended = self.delivery("broken", body);
        self.expect("its id with a body that can", &mended, &[200], "ok");

        let frame = r#"{"type":"large","payload":""}"#;
        let fill = "x".repeat(BODY_BYTES_MAX - frame.len());
        let largest = self.delivery("largest", &frame.replace("\"\"}", &format!("\"{fill}\"}}")));
        self.expect("a body of 1 MiB", &largest, &[200], "ok");
        self.check("a declared length over 1 MiB", &[413], "", |address| {
            exchange(
                address,
                format!("{}content-length: {}\r\n\r\n", head("POST"), BODY_BYTES_MAX + 1).as_bytes(),
            )
        });
        // 411 is right for a receiver that takes no chunks; reading on without a limit is not.
        self.check("chunks that add up to more", &[411, 413], "", |address| {
            let mut request = format!("{}transfer-encoding: chunked\r\n\r\n", head("POST")).into_bytes();
            for size in [BODY_BYTES_MAX / 2, BODY_BYTES_MAX / 2, 1] {
                request.extend(format!("{size:x}\r\n").into_bytes());
                request.resize(request.len() + size, b'x');
                request.extend(b"\r\n");
            }
            exchange(address, &request)
        });
        self.check("a method other than POST", &[405], "", |address| {
            exchange(address, format!("{}\r\n", head("GET")).as_bytes())
        });
    }

    fn delivery(&self, id: &str, body: &str) -> Delivery {
        self.delivery_of(id, body.as_bytes().to_vec())
    }

    fn delivery_of(&self, id: &str, body: Vec<u8>) -> Delivery {
        let timestamp = Some(unix_seconds().to_string());
        let mut delivery = Delivery { id: Some(format!("evt_{id}")), timestamp, signature: None, body };
        self.sign(&mut delivery);
        delivery
    }

    fn sign(&self, delivery: &mut Delivery) {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        for part in [&delivery.id, &delivery.timestamp] {
            mac.update(part.as_deref().unwrap_or_default().as_bytes());
            mac.update(b".");
        }
        mac.update(&delivery.body);
        delivery.signature = Some(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())));
    }

    fn expect(&mut self, name: &str, delivery: &Delivery, statuses: &[u16], text: &str) {
        self.check(name, statuses, text, |address| post(address, delivery));
    }

    fn check(
        &mut self,
        name: &str,
        statuses: &[u16],
        text: &str,
        ask: impl FnOnce(SocketAddr) -> io::Result<(u16, String)>,
    ) {
        self.done += 1;
        match ask(self.address) {
            Ok((status, answer)) if statuses.contains(&status) && answer.contains(text) => {}
            Ok((status, answer)) => {
                self.failed += 1;
                eprintln!("{name}: expected {statuses:?} {text:?}, got {status} {answer:?}");
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("{name}: expected {statuses:?} {text:?}, got no answer: {error}");
            }
        }
    }
}

fn post(address: SocketAddr, delivery: &Delivery) -> io::Result<(u16, String)> {
    let mut request = head("POST");
    let trio = [
        ("webhook-id", &delivery.id),
        ("webhook-timestamp", &delivery.timestamp),
        ("webhook-signature", &delivery.signature),
    ];
    for (name, value) in trio {
        if let Some(value) = value {
            write!(request, "{name}: {value}\r\n").expect("a string takes any text");
        }
    }
    write!(request, "content-length: {}\r\n\r\n", delivery.body.len()).expect("a string takes any text");
    let mut request = request.into_bytes();
    request.extend_from_slice(&delivery.body);
    exchange(address, &request)
}

fn head(method: &str) -> String {
    format!(
        "{method} /hooks/orders?a=b HTTP/1.1\r\nhost: receiver\r\ncontent-type: application/json\r\nconnection: close\r\n"
    )
}

/// Sends the bytes and reads the answer. A receiver may answer and hang up before it has been sent everything, so an
/// error while writing counts only when no answer came.
fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, SOCKET_TIME_MAX)?;
    stream.set_read_timeout(Some(SOCKET_TIME_MAX))?;
    stream.set_write_timeout(Some(SOCKET_TIME_MAX))?;
    let written = stream.write_all(request);

    let mut received = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = match stream.read(&mut piece) {
            Ok(count) => count,
            Err(error) => return Err(written.err().unwrap_or(error)),
        };
        received.extend_from_slice(&piece[..count]);
        if let Some(answer) = answer(&String::from_utf8_lossy(&received), count == 0) {
            return Ok(answer);
        }
        if count == 0 {
            return Err(written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// The status and the text of an answer, once all of it is there. A declared length or a last chunk tells that before
/// the connection ends: some servers go on reading for a while what they have refused.
fn answer(received: &str, ended: bool) -> Option<(u16, String)> {
    let (head, body) = received.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let declared = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim().parse::<usize>().ok()?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    let whole = match declared {
        Some(length) => body.len() >= length,
        None => ended || body.ends_with("0\r\n\r\n"),
    };
    whole.then(|| (status, body.trim().to_owned()))
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970");
    i64::try_from(since.as_secs()).expect("seconds since 1970 fit")
}
