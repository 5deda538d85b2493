//! OTLP over HTTP: one POST an export, each on a connection of its own. There is about one a second, and a connection that is kept
//! would have to be watched.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::config::{self, roots};

/// From connect to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an answer that are looked at.
const ANSWER_MAX: usize = 64 << 10;

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Why an export did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the collector cannot be reached")]
    Call(#[source] Problem),
    #[error("the collector does not answer")]
    Late,
    #[error("the collector answers {0}")]
    Status(StatusCode),
}

impl Error {
    /// Whether the same export may be taken later: what OTLP says is so, and what had no answer.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Error::Call(_) | Error::Late => true,
            Error::Status(status) => [429, 502, 503, 504].contains(&status.as_u16()),
        }
    }
}

/// Where spans go.
pub struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// None where no collector is set.
    ///
    /// # Errors
    /// Says which setting cannot be used, and why.
    pub fn of(config: &config::Trace) -> Result<Option<Endpoint>, String> {
        let Some(base) = config.url()? else { return Ok(None) };
        let problem = |what: &str| format!("trace.endpoint {what}");
        let host = base.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = base.scheme_str() == Some("https");
        let tls = if secure {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| problem("has a host that no certificate can name"))?;
            Some((tls(&config.roots).map_err(|what| format!("trace.roots {what}"))?, name))
        } else {
            None
        };
        let path = format!("{}/v1/traces", base.path().trim_end_matches('/'));
        let authority = base.authority().map(ToString::to_string).unwrap_or_default();
        let mut headers = config.headers()?;
        headers.push((HOST, HeaderValue::try_from(authority).map_err(|_| problem("has no host"))?));
        Ok(Some(Endpoint {
            uri: path.parse().map_err(|_| problem("has a path that cannot be used"))?,
            port: base.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            host,
            headers,
            tls,
        }))
    }

    /// Makes one export; returns the collector's answer.
    pub(super) async fn export(&self, body: Vec<u8>) -> Result<Bytes, Error> {
        tokio::time::timeout(PATIENCE, self.call(body.into())).await.map_err(|_| Error::Late)?
    }

    async fn call(&self, body: Bytes) -> Result<Bytes, Error> {
        let stream = TcpStream::connect((&*self.host, self.port)).await.map_err(|e| Error::Call(e.into()))?;
        match &self.tls {
            None => self.post(stream, body).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                self.post(stream.map_err(|e| Error::Call(e.into()))?, body).await
            }
        }
    }

    async fn post<S>(&self, stream: S, body: Bytes) -> Result<Bytes, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let call = |e: hyper::Error| Error::Call(e.into());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(call)?;
        let answered = async {
            let response = sender.send_request(self.request(body)).await.map_err(call)?;
            let status = response.status();
            if !status.is_success() {
                return Err(Error::Status(status));
            }
            let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            Ok(answer.map_err(Error::Call)?.to_bytes())
        };
        // The connection moves the bytes for as long as the answer is awaited, and ends with it.
        tokio::pin!(answered, connection);
        tokio::select! {
            biased;
            answer = &mut answered => answer,
            ended = &mut connection => {
                ended.map_err(call)?;
                answered.await
            }
        }
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("EventPulse/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.headers.iter().cloned());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        request
    }
}

/// Verifies against the public authorities, and against those in a file if there is one.
fn tls(extra_roots: &str) -> Result<TlsConnector, String> {
    let mut trusted = RootCertStore::empty();
    trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in roots::read(extra_roots)? {
        trusted.add(certificate).map_err(|error| format!("holds a certificate of no use: {error}"))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot be combined with TLS: {error}"))?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
