//! hyper, and next to nothing on it: the floor under any gateway. It reads a body, splits it without a tree, hashes
//! the key, and answers 150 bytes.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.headers().get("x-api-key").map(|key| Sha256::digest(key.as_bytes()));
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let seen = match serde_json::from_slice::<Event<'_>>(&body) {
        // Used, so that neither is left out by the compiler.
        Ok(event) => event.kind.len() + event.payload.get().len() + key.map_or(0, |key| usize::from(key[0])),
        Err(_) => 0,
    };
    let text = format!(
        "{{\"ok\":true,\"event\":{{\"id\":{seen:0>15},\"type\":\"order.created\",\"createdAt\":\"2026-01-01T00:00:00.000Z\",\"pad\":\"{:38}\"}}}}",
        ""
    );
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = eventpulse_loadtest::listen(0)?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}
