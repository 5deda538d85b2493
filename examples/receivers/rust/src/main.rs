//! A webhook receiver in Rust, on hyper.
//!
//! ```text
//! SECRET=whsec_... PORT=8090 cargo run
//! ```
//!
//! EventPulse also sends `X-EventPulse-Signature: sha256=<hex>`, an HMAC-SHA256 over the raw body alone, keyed with
//! the whole secret string, `whsec_` included. One of the two is enough; this one covers the id and the time as well.

mod seen;

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use sha2::Sha256;
use tokio::net::TcpListener;

use crate::seen::{Begun, Seen};

const BODY_BYTES_MAX: usize = 1024 * 1024;
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
const AGE_SECONDS_MAX: u64 = 5 * 60;
const REMEMBERED_MAX: usize = 10_000;

type Reply = Response<Full<Bytes>>;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
}

/// Your work goes here. Return an error, and the sender tries again later.
fn process(event: &Event) -> Result<(), Box<dyn Error + Send + Sync>> {
    if event.kind.is_empty() {
        return Err("the event has no type".into());
    }
    Ok(())
}

struct Receiver {
    key: Vec<u8>,
    seen: Seen,
}

impl Receiver {
    async fn receive(&self, request: Request<Incoming>) -> Reply {
        if request.method() != Method::POST {
            return closing(StatusCode::METHOD_NOT_ALLOWED, "POST only");
        }
        let (head, body) = request.into_parts();
        // Said before the first byte is read: a sender that declares too much may be waiting for leave to send it.
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return closing(StatusCode::PAYLOAD_TOO_LARGE, "body too large");
        }
        // The signature is over bytes: parse the body and print it again, and it no longer matches.
        let body =
            match tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await {
                Ok(Ok(body)) => body.to_bytes(),
                Ok(Err(error)) if error.is::<LengthLimitError>() => {
                    return closing(StatusCode::PAYLOAD_TOO_LARGE, "body too large");
                }
                Ok(Err(_)) | Err(_) => return closing(StatusCode::BAD_REQUEST, "body cut short"),
            };

        let (Some(id), Some(timestamp), Some(signatures)) = (
            header(&head.headers, "webhook-id"),
            header(&head.headers, "webhook-timestamp"),
            header(&head.headers, "webhook-signature"),
        ) else {
            return reply(StatusCode::BAD_REQUEST, "missing header");
        };
        let Ok(seconds) = timestamp.parse::<u64>() else {
            return reply(StatusCode::BAD_REQUEST, "bad timestamp");
        };
        if !self.signed(id, timestamp, &body, signatures) {
            return reply(StatusCode::UNAUTHORIZED, "bad signature");
        }
        // The window stops the replay of a recorded request after its id has been forgotten.
        if unix_seconds().abs_diff(seconds) > AGE_SECONDS_MAX {
            return reply(StatusCode::UNAUTHORIZED, "bad time");
        }

        // Ids are looked at only now: a stranger must not be able to mark one as seen.
        let busy = match self.seen.begin(id) {
            Begun::New(busy) => busy,
            Begun::Duplicate => {
                println!("duplicate id={id}");
                return reply(StatusCode::OK, "duplicate");
            }
            Begun::Busy => {
                // The first copy may still fail, so the second is not told that all is well; it is sent again.
                let mut reply = reply(StatusCode::SERVICE_UNAVAILABLE, "in progress");
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
                return reply;
            }
        };
        let outcome = serde_json::from_slice::<Event>(&body)
            .map_err(Into::into)
            .and_then(|event| process(&event).map(|()| event));
        match outcome {
            Ok(event) => {
                busy.remember();
                println!("received id={id} type={:?} bytes={}", event.kind, body.len());
                reply(StatusCode::OK, "ok")
            }
            // `busy` is dropped here without having been remembered: the next attempt is processed.
            Err(error) => {
                println!("failed id={id} {:?}", error.to_string());
                reply(StatusCode::INTERNAL_SERVER_ERROR, "processing failed")
            }
        }
    }

    fn signed(&self, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        // Several signatures stand side by side while a secret is being rotated; unknown versions are passed over.
        signatures
            .split(' ')
            .filter_map(|one| BASE64_STANDARD.decode(one.strip_prefix("v1,")?).ok())
            .any(|given| mac.clone().verify_slice(&given).is_ok()) // compares in constant time
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
}

fn reply(status: StatusCode, text: &str) -> Reply {
    let mut reply = Response::new(Full::from(format!("{text}\n")));
    *reply.status_mut() = status;
    reply
}

/// What follows an unread body cannot be understood, so that connection ends with this reply.
fn closing(status: StatusCode, text: &str) -> Reply {
    let mut reply = reply(status, text);
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn decode_secret(secret: &str) -> Option<Vec<u8>> {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    (key.len() >= 16).then_some(key)
}

async fn serve(receiver: Receiver) -> std::io::Result<()> {
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let port = env::var("PORT").unwrap_or_else(|_| "8090".to_owned());
    let listener = TcpListener::bind(format!("{host}:{port}")).await?;
    println!("listening on {}", listener.local_addr()?);

    let receiver = Arc::new(receiver);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: a pause lets other connections end.
                eprintln!("accept failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let receiver = Arc::clone(&receiver);
        tokio::spawn(async move {
            let service =
                service_fn(|request| async { Ok::<_, Infallible>(receiver.receive(request).await) });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(75))
                .serve_connection(TokioIo::new(stream), service);
            // A connection that breaks is the sender's to notice: without an answer it sends again.
            let _ = connection.await;
        });
    }
}

fn main() -> ExitCode {
    let Some(key) = env::var("SECRET").ok().and_then(|secret| decode_secret(&secret)) else {
        eprintln!("SECRET must read whsec_<base64>, as it was shown when the webhook was registered");
        return ExitCode::from(64);
    };
    let receiver = Receiver { key, seen: Seen::new(REMEMBERED_MAX) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(serve(receiver))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
