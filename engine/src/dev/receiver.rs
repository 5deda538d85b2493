//! The demo's endpoint: verifies each webhook's signature and says what came.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc};

use super::Error;
use crate::deliver::sign::Signer;

/// Webhooks larger than this are not verified.
const BODY_MAX: usize = 64 << 20;

/// One webhook that came in.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) event_id: String,
    pub(super) verified: bool,
}

/// A listening socket whose port is known before the webhook's secret is.
pub(super) struct Receiver {
    listener: TcpListener,
}

impl Receiver {
    /// Binds `port`, or a free one for 0.
    pub(super) async fn bind(port: u16) -> Result<Receiver, Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(Error::Receiver)?;
        Ok(Receiver { listener })
    }

    pub(super) fn port(&self) -> Result<u16, Error> {
        Ok(self.listener.local_addr().map_err(Error::Receiver)?.port())
    }

    /// Serves for as long as the process lives. What nobody takes from `received` is only printed.
    pub(super) async fn run(self, secret: String, received: mpsc::Sender<Received>) {
        let signer = Arc::new(Signer::new(&secret));
        while let Ok((stream, _)) = self.listener.accept().await {
            let (signer, received) = (signer.clone(), received.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let (signer, received) = (signer.clone(), received.clone());
                    async move { Ok::<_, Infallible>(answer(request, &signer, &received).await) }
                });
                // A connection that breaks is the dispatcher's to retry.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    signer: &Signer,
    received: &mpsc::Sender<Received>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from_static(b"thank you")));
    let Ok(body) = Limited::new(body, BODY_MAX).collect().await else {
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return response;
    };
    let body = body.to_bytes();
    let expected = signer.standard(header("webhook-id"), header("webhook-timestamp"), &body);
    let verified =
        header("webhook-signature") == expected && header("x-eventpulse-signature") == signer.seed(&body);
    let news = Received { event_id: header("x-eventpulse-event-id").to_owned(), verified };
    if received.try_send(news).is_err() {
        let verdict = if verified { "signature verified" } else { "SIGNATURE WRONG" };
        println!("  received {} ({}), {verdict}", header("x-eventpulse-event-type"), header("webhook-id"));
    }
    if !verified {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
    }
    response
}
