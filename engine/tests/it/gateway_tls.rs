//! TLS on the gateway's port, and the operator's own port.

use std::{fs, sync::Arc};

use bytes::Bytes;
use eventpulse::{
    config::{Config, Roles, value::Maybe},
    engine::Engine,
    store::tls::{self, Trust},
};
use eventpulse_testkit::eventually;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    App, PATIENCE,
    certificates::Authority,
    config, database,
    process::{self, Process},
};

/// A gateway with a certificate for `localhost`.
async fn app(hint: &str, authority: &Authority, change: impl FnOnce(&mut Config)) -> App {
    let mut config = config(&database(hint).await);
    (config.gateway.tls_cert, config.gateway.tls_key) = authority.place("localhost", 30);
    change(&mut config);
    App::of(config, Roles::Api).await
}

/// A TCP connection to the gateway.
async fn connected(app: &App) -> TcpStream {
    TcpStream::connect(app.engine.gateway.expect("a gateway")).await.expect("a connection")
}

/// A connection that has seen a certificate of this authority for `localhost`.
async fn secured(app: &App, authority: &Authority, alpn: &[&str]) -> TlsStream<TcpStream> {
    let mut client = tls::client(Trust::Host, &[authority.root()]).expect("a client");
    client.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TlsConnector::from(Arc::new(client)).connect(name, connected(app).await).await;
    stream.expect("a handshake")
}

/// The certificate that the gateway shows.
async fn shown(app: &App, authority: &Authority) -> CertificateDer<'static> {
    let stream = secured(app, authority, &[]).await;
    let (_, session) = stream.get_ref();
    session.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

/// Asks for the health on an open connection, and leaves it open.
async fn is_well(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(stream.read_buf(&mut answer).await.expect("an answer") > 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
}

async fn until(app: &App, name: &str, value: f64) {
    eventually(name, PATIENCE, async || match app.metric(name) {
        now if now == value => Ok(()),
        now => Err(format!("{now} instead of {value}")),
    })
    .await;
}

fn handshakes(outcome: &str) -> String {
    format!("eventpulse_gateway_tls_handshakes_total{{outcome=\"{outcome}\"}}")
}

#[tokio::test]
async fn the_gateway_speaks_tls_in_both_versions_of_http() {
    let authority = Authority::new();
    let app = app("tls", &authority, |_| {}).await;
    is_well(&mut secured(&app, &authority, &["http/1.1"]).await).await;
    is_well(&mut secured(&app, &authority, &[]).await).await;
    let stream = secured(&app, &authority, &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("https://localhost/health").body(Empty::<Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.expect("a body").to_bytes().starts_with(b"{\"status\""));
    assert_eq!(app.metric(&handshakes("done")), 3.0);
    let days = app.metric("eventpulse_gateway_certificate_expires_seconds") / 86_400.0;
    assert!((29.0..=30.0).contains(&days), "{days}");

    // Plain HTTP gets an alert and the end, whether it reads on or not.
    let mut plain = connected(&app).await;
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    until(&app, &handshakes("failed"), 1.0).await;
    is_well(&mut secured(&app, &authority, &[]).await).await;
    app.stop().await;
}

#[tokio::test]
async fn a_certificate_is_replaced_while_connections_go_on() {
    let authority = Authority::new();
    let app =
        app("renewed", &authority, |c| c.gateway.tls_reload_every = std::time::Duration::from_millis(20))
            .await;
    let changes = |outcome| format!("eventpulse_gateway_certificate_changes_total{{outcome=\"{outcome}\"}}");
    let mut before = secured(&app, &authority, &[]).await;
    is_well(&mut before).await;
    let first = shown(&app, &authority).await;

    // A file that is of no use changes nothing, and is told of once however often it is seen.
    fs::write(authority.path("server.pem"), "no certificate").expect("written");
    until(&app, &changes("refused"), 1.0).await;
    assert_eq!(shown(&app, &authority).await, first);

    // The two files come one after the other; in between they do not fit together.
    authority.place("localhost", 90);
    until(&app, &changes("used"), 1.0).await;
    assert_ne!(shown(&app, &authority).await, first);
    eventually("the new end is shown", PATIENCE, async || {
        let days = app.metric("eventpulse_gateway_certificate_expires_seconds") / 86_400.0;
        if (89.0..=90.0).contains(&days) { Ok(()) } else { Err(days.to_string()) }
    })
    .await;
    is_well(&mut before).await;
    app.stop().await;
}

#[tokio::test]
async fn handshakes_are_bounded_in_number() {
    let authority = Authority::new();
    let app = app("handshakes", &authority, |c| {
        c.http.connections_max = 4;
        c.gateway.tls_handshake_timeout = PATIENCE * 2;
    })
    .await;
    let mut established = secured(&app, &authority, &[]).await;
    let _silent = [connected(&app).await, connected(&app).await];
    until(&app, "eventpulse_http_connections", 3.0).await;
    let mut third = connected(&app).await;
    until(&app, &handshakes("full"), 1.0).await;
    assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0, "it is closed without a word");
    is_well(&mut established).await;
    app.stop().await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let authority = Authority::new();
    let short = std::time::Duration::from_millis(100);
    let app = app("slow-handshake", &authority, |c| c.gateway.tls_handshake_timeout = short).await;
    let mut silent = connected(&app).await;
    until(&app, &handshakes("timed_out"), 1.0).await;
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    app.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_refuses_the_start() {
    let (one, other) = (Authority::new(), Authority::new());
    let mut config = config(&database("no-certificate").await);
    config.gateway.tls_cert = one.place("localhost", 30).0;
    let refused = async |config: Config| match Engine::start(config, Roles::Api).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(refused(config.clone()).await.contains("gateway.tls_key"));
    config.gateway.tls_key = other.place("localhost", 30).1;
    assert!(refused(config.clone()).await.contains("key"));
    config.gateway.tls_key = one.file();
    assert!(refused(config).await.contains("private key"));
}

/// Starts a process, and asks after its health by the command that containers use.
#[tokio::test]
async fn healthcheck_needs_no_certificate() {
    let authority = Authority::new();
    let (certificate, key) = authority.place("hooks.example", 30);
    let mut serve = process::serve(&database("tls-health").await, "--role api");
    serve.env("EVENTPULSE_GATEWAY__TLS_CERT", &certificate).env("EVENTPULSE_GATEWAY__TLS_KEY", &key);
    let serve = Process::spawn(serve);
    let port = serve.ready().await.rsplit(':').next().expect("a port").to_owned();
    let mut check = process::command("healthcheck --role api");
    check
        .env("PORT", &port)
        .env("EVENTPULSE_GATEWAY__TLS_CERT", &certificate)
        .env("EVENTPULSE_GATEWAY__TLS_KEY", &key);
    assert!(check.output().expect("it runs").status.success());
    let mut plain = process::command("healthcheck --role api");
    assert!(!plain.env("PORT", &port).output().expect("it runs").status.success());
    serve.kill();
}

#[tokio::test]
async fn with_a_port_of_its_own_metrics_are_nowhere_else() {
    let app =
        App::with("admin", |c| c.admin.address = Maybe(Some("127.0.0.1:0".parse().expect("an address"))))
            .await;
    let admin = app.engine.admin.expect("an address");
    let get = async |url: String| {
        let response = app.client.get(url).send().await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("text"))
    };
    assert_eq!(get(app.url("/metrics")).await.0, 404);
    assert_eq!(get(app.url("/health")).await, (200, r#"{"status":"ok","service":"api-gateway"}"#.to_owned()));
    let (status, text) = get(format!("http://{admin}/metrics")).await;
    assert!(status == 200 && text.contains("eventpulse_http_connections "), "{status}");
    assert!(text.contains("eventpulse_gateway_certificate_expires_seconds NaN"), "without TLS nothing ends");
    assert_eq!(get(format!("http://{admin}/health")).await.0, 200);
    assert_eq!(get(format!("http://{admin}/events")).await.0, 404);
    app.stop().await;
}
