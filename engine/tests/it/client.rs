//! The client against servers that behave and servers that do not. Needs neither Postgres nor Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use eventpulse::{
    config::{self, value::Secret},
    deliver::{
        Client,
        outcome::{Call, Failure, Reply as Answer},
        post::{Endpoint, Post},
    },
    metrics::Metrics,
};
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use http_body_util::Full;
use hyper::{Request, Response, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::PATIENCE;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

pub(crate) struct Caller {
    client: Client,
    metrics: Arc<Metrics>,
}

impl Caller {
    fn new() -> Caller {
        Caller::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut config::Deliver)) -> Caller {
        Caller::to(config::Targets { allow_private: true, ..config::Targets::default() }, change)
    }

    pub(crate) fn to(targets: config::Targets, change: impl FnOnce(&mut config::Deliver)) -> Caller {
        // Nothing is to end by the clock but where a test says so.
        let mut settings =
            config::Deliver { idle: PATIENCE, connect_timeout: PATIENCE, ..config::Deliver::default() };
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let client = Client::new(&settings, Duration::from_secs(60), &targets, metrics.clone());
        Caller { client: client.expect("the settings are valid"), metrics }
    }

    async fn call(&self, url: &str) -> Call {
        self.call_within(url, PATIENCE).await
    }

    async fn call_within(&self, url: &str, timeout: Duration) -> Call {
        self.send(url, Bytes::from_static(b"{}"), timeout).await
    }

    async fn send(&self, url: &str, body: Bytes, timeout: Duration) -> Call {
        let endpoint = Endpoint::new(url.parse().expect("a URL"), vec![]).expect("it has a host");
        self.client.call(Post::new(&Arc::new(endpoint), body), timeout).await
    }

    pub(crate) async fn ok(&self, url: &str) -> Answer {
        let reply = self.call(url).await.result.expect("a reply");
        assert_eq!(reply.status, 200);
        reply
    }

    pub(crate) async fn failure(&self, url: &str) -> Failure {
        self.call(url).await.result.expect_err("no reply")
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let name = format!("eventpulse_deliver_{name}");
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    fn opened(&self) -> f64 {
        self.metric("connections_opened_total")
    }

    async fn until(&self, name: &str, value: f64) {
        eventually(name, PATIENCE, async || match self.metric(name) {
            now if now == value => Ok(()),
            now => Err(format!("{now} instead of {value}")),
        })
        .await;
    }
}

/// Reads one request; false when the connection ends instead.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n{}") {
        match stream.read_buf(&mut seen).await {
            Ok(n) if n > 0 => {}
            _ => return false,
        }
    }
    true
}

/// Serves every connection by `serve`, which gets its number; gives the URL.
async fn server<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        for n in 0.. {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(serve(stream, n));
        }
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.n % 2 == 0 { Reply::ok() } else { Reply::ok().with_body("thank you") });
    let caller = Caller::new();
    for _ in 0..10 {
        caller.ok(&receiver.url("/")).await;
    }
    assert_eq!(caller.opened(), 1.0);
    assert_eq!(caller.metric("connections_reused_total"), 9.0);
    assert_eq!(caller.metric("connections_idle"), 1.0);
    assert_eq!(receiver.requests()[0].headers["host"], receiver.addr().to_string().as_str());
}

#[tokio::test]
async fn a_wave_of_calls_opens_a_connection_each_at_most_and_the_next_wave_none() {
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::ok().with_delay(Duration::from_millis(20)));
    let caller = Arc::new(Caller::new());
    let mut opened = None;
    for _ in 0..3 {
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let (caller, url) = (caller.clone(), receiver.url("/"));
                tokio::spawn(async move { caller.ok(&url).await })
            })
            .collect();
        for call in calls {
            call.await.expect("no panic");
        }
        let now = *opened.get_or_insert_with(|| caller.opened());
        assert!(now <= 64.0, "{now}");
        assert_eq!(caller.opened(), now);
        caller.until("connections_idle", now).await;
    }
    assert_eq!(caller.metric("in_flight"), 0.0);
}

#[tokio::test]
async fn a_connection_is_not_kept_longer_than_its_peer_keeps_it() {
    let receiver = Receiver::start().await;
    receiver.script(|r| match r.path.as_str() {
        "/short" => Reply::ok().with_header("keep-alive", "timeout=1"),
        "/close" => Reply::ok().with_header("connection", "close"),
        _ => Reply::ok().with_header("keep-alive", "timeout=60"),
    });
    for (path, connections) in [("/long", 1.0), ("/short", 3.0), ("/close", 3.0)] {
        let caller = Caller::new();
        for _ in 0..3 {
            caller.ok(&receiver.url(path)).await;
        }
        assert_eq!(caller.opened(), connections, "{path}");
    }
}

#[tokio::test]
async fn idle_and_old_and_surplus_connections_are_closed() {
    let receiver = Receiver::start().await;
    let caller = Caller::with(|c| c.idle = Duration::from_millis(20));
    caller.ok(&receiver.url("/")).await;
    caller.until("connections_closed_total{reason=\"idle\"}", 1.0).await;
    assert_eq!(caller.metric("connections_idle"), 0.0);

    let caller = Caller::with(|c| c.age_max = Duration::from_nanos(1));
    caller.ok(&receiver.url("/")).await;
    caller.ok(&receiver.url("/")).await;
    assert_eq!(caller.metric("connections_closed_total{reason=\"age\"}"), 2.0);

    let (second, third) = (Receiver::start().await, Receiver::start().await);
    let caller = Caller::with(|c| c.idle_max = 2);
    for receiver in [&receiver, &second, &receiver, &third] {
        caller.ok(&receiver.url("/")).await;
    }
    assert_eq!(caller.metric("connections_closed_total{reason=\"evicted\"}"), 1.0);
    assert_eq!(caller.metric("connections_idle"), 2.0);
    // The second was the one used least recently.
    caller.ok(&receiver.url("/")).await;
    assert_eq!(caller.opened(), 3.0);
}

/// Node closes idle connections after five seconds, and others at a restart. Such a connection once took the next request
/// with it, which then cost an attempt.
#[tokio::test]
async fn a_connection_that_its_peer_closed_fails_no_call() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let url = server(move |mut stream, _| {
        let counted = counted.clone();
        async move {
            if request(&mut stream).await {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(OK).await;
            }
        }
    })
    .await;
    let caller = Caller::new();
    for n in 1..=20 {
        caller.ok(&url).await;
        if n % 2 == 0 {
            caller.until("connections_idle", 0.0).await;
        }
    }
    assert_eq!(requests.load(Ordering::Relaxed), 20);
    assert_eq!(caller.opened(), 20.0);
}

/// After the first byte the endpoint may have acted on the request, so sending it again has to be an attempt of its own.
#[tokio::test]
async fn half_a_reply_is_a_failure_and_the_request_is_not_sent_again() {
    for half in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-le", b"nonsense\r\n\r\n"] {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let url = server(move |mut stream, _| {
            let counted = counted.clone();
            async move {
                while request(&mut stream).await {
                    let reply = if counted.fetch_add(1, Ordering::Relaxed) == 0 { OK } else { half };
                    let _ = stream.write_all(reply).await;
                    if reply != OK {
                        return;
                    }
                }
            }
        })
        .await;
        let caller = Caller::new();
        caller.ok(&url).await;
        let failure = caller.failure(&url).await;
        assert!(matches!(failure, Failure::Broken(_)), "{failure:?}");
        assert_eq!(requests.load(Ordering::Relaxed), 2);
        assert_eq!(caller.opened(), 1.0);
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_or_closes_at_once_has_failed() {
    let caller = Caller::new();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failure = caller.failure(&format!("http://{gone}/")).await;
    assert!(matches!(failure, Failure::Connect(_)), "{failure:?}");
    let url = server(|stream, _| async move { drop(stream) }).await;
    let failure = caller.failure(&url).await;
    assert!(matches!(failure, Failure::Broken(_)), "{failure:?}");
    assert!(caller.opened() <= 3.0);
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_connection_behind() {
    let closed = Arc::new(AtomicUsize::new(0));
    let (seen, mut arrived) = tokio::sync::mpsc::channel(8);
    let counted = closed.clone();
    let url = server(move |mut stream, _| {
        let (counted, seen) = (counted.clone(), seen.clone());
        async move {
            assert!(request(&mut stream).await);
            seen.send(()).await.unwrap();
            let _ = stream.read_u8().await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let caller = Caller::new();
    tokio::select! {
        call = caller.call(&url) => panic!("{call:?}"),
        _ = arrived.recv() => {}
    }
    let call = caller.call_within(&url, Duration::from_millis(50)).await;
    assert!(matches!(call.result, Err(Failure::TimedOut)), "{call:?}");
    eventually("both connections are closed", PATIENCE, async || match closed.load(Ordering::Relaxed) {
        2 => Ok(()),
        n => Err(format!("{n} are")),
    })
    .await;
    assert_eq!(caller.metric("in_flight"), 0.0);
    assert_eq!(caller.metric("connections_idle"), 0.0);
}

#[tokio::test]
async fn a_replys_status_decides_however_slow_or_long_its_body() {
    let receiver = Receiver::start().await;
    receiver.script(|r| match r.path.as_str() {
        "/slow" => Reply::slow_body("x".repeat(1000), 1, Duration::from_secs(1)),
        "/long" => Reply::status(500).with_body("x".repeat(12)),
        _ => Reply::ok().with_body("x".repeat(10)),
    });
    let caller = Caller::with(|c| c.reply_bytes_max = 10);
    let call = caller.call_within(&receiver.url("/slow"), Duration::from_secs(2)).await;
    assert_eq!(call.result.expect("a reply").status, 200);
    let reply = caller.call(&receiver.url("/long")).await.result.expect("a reply");
    assert_eq!((reply.status.as_u16(), reply.body.len()), (500, 10));
    assert_eq!(caller.opened(), 2.0);
    // What just fits was read to its end.
    for _ in 0..2 {
        assert_eq!(caller.ok(&receiver.url("/fits")).await.body.len(), 10);
    }
    assert_eq!(caller.opened(), 3.0);
}

/// More than the buffers of both sockets take. The rest of it was never sent, and the event counted as delivered.
#[tokio::test]
async fn a_receiver_that_answers_first_and_reads_after_gets_all_of_it() {
    const BODY: usize = 32 << 20;
    let got = Arc::new(AtomicUsize::new(0));
    let counted = got.clone();
    let url = server(move |mut stream, _| {
        let counted = counted.clone();
        async move {
            stream.write_all(OK).await.expect("it reads");
            let mut bytes = vec![0; 64 << 10];
            while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                counted.fetch_add(n, Ordering::Relaxed);
            }
        }
    })
    .await;
    let caller = Caller::new();
    let call = caller.send(&url, vec![b'x'; BODY].into(), PATIENCE).await;
    assert_eq!(call.result.expect("a reply").status, 200);
    eventually("all of it has arrived", PATIENCE, async || match got.load(Ordering::Relaxed) {
        n if n > BODY => Ok(()),
        n => Err(format!("{n} bytes")),
    })
    .await;
}

#[tokio::test]
async fn a_head_of_one_byte_at_a_time_runs_out_of_time() {
    let url = server(|mut stream, _| async move {
        request(&mut stream).await;
        for byte in OK {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    let call = Caller::new().call_within(&url, Duration::from_millis(300)).await;
    assert!(matches!(call.result, Err(Failure::TimedOut)), "{call:?}");
}

#[tokio::test]
async fn names_are_looked_up_and_their_addresses_checked() {
    let receiver = Receiver::start().await;
    let url = format!("http://localhost:{}/", receiver.addr().port());
    Caller::new().ok(&url).await;
    let caller = Caller::to(config::Targets::default(), |_| {});
    for url in [url, receiver.url("/"), "http://[::1]:9/".to_owned()] {
        assert!(matches!(caller.failure(&url).await, Failure::Blocked), "{url}");
    }
    assert_eq!(caller.metric("targets_blocked_total"), 3.0);
    let failure = Caller::new().failure("http://nowhere.invalid/").await;
    assert!(matches!(failure, Failure::Dns(_)), "{failure:?}");
}

/// A certificate authority in a file, and a server's side of TLS with a certificate for `localhost` from it.
struct Authority {
    roots: std::path::PathBuf,
    server: Arc<rustls::ServerConfig>,
}

impl Authority {
    fn new(hint: &str, alpn: &[&[u8]]) -> Authority {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let roots = std::env::temp_dir().join(format!("eventpulse-{hint}-{}.pem", std::process::id()));
        std::fs::write(&roots, issuer.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Authority { roots, server: Arc::new(server) }
    }

    fn caller(&self, change: impl FnOnce(&mut config::Deliver)) -> Caller {
        Caller::with(|c| {
            c.extra_roots = self.roots.to_str().unwrap().to_owned();
            change(c);
        })
    }

    /// An endpoint that answers 200 with the protocol's name, once `together` requests are there. Gives its port.
    async fn serve(&self, streams_max: u32, together: usize) -> u16 {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.server.clone());
        let barrier = Arc::new(tokio::sync::Barrier::new(together));
        let url = server(move |stream, _| {
            let (acceptor, barrier) = (acceptor.clone(), barrier.clone());
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let barrier = barrier.clone();
                    async move {
                        if request.uri().path() == "/together" {
                            barrier.wait().await;
                        }
                        let body = Bytes::from(format!("{:?}", request.version()));
                        Ok::<_, hyper::Error>(Response::new(Full::new(body)))
                    }
                });
                let io = TokioIo::new(stream);
                if is_h2 {
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.max_concurrent_streams(streams_max).serve_connection(io, service).await;
                } else {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(io, service).await;
                }
            }
        })
        .await;
        url.trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.roots);
    }
}

async fn at_once(caller: &Arc<Caller>, n: usize, url: &str) {
    let calls: Vec<_> = (0..n)
        .map(|_| {
            let (caller, url) = (caller.clone(), url.to_owned());
            tokio::spawn(async move { caller.ok(&url).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic");
    }
}

#[tokio::test]
async fn http2_shares_one_connection() {
    let authority = Authority::new("shared", &[b"h2", b"http/1.1"]);
    let port = authority.serve(100, 40).await;
    let caller = Arc::new(authority.caller(|_| {}));
    at_once(&caller, 40, &format!("https://localhost:{port}/together")).await;
    let reply = caller.ok(&format!("https://localhost:{port}/")).await;
    assert_eq!(reply.body, b"HTTP/2.0");
    assert_eq!(caller.opened(), 1.0);
    assert_eq!(caller.metric("connections_idle"), 1.0);
}

#[tokio::test]
async fn http2_opens_another_connection_past_the_peers_limit() {
    let authority = Authority::new("limit", &[b"h2"]);
    let port = authority.serve(4, 6).await;
    let caller = Arc::new(authority.caller(|_| {}));
    caller.ok(&format!("https://localhost:{port}/")).await;
    // Six at once are there only if they come over two connections.
    at_once(&caller, 6, &format!("https://localhost:{port}/together")).await;
    assert_eq!(caller.opened(), 2.0);
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let authority = Authority::new("idle", &[b"h2"]);
    let port = authority.serve(4, 1).await;
    let caller = authority.caller(|c| c.idle = Duration::from_millis(20));
    caller.ok(&format!("https://localhost:{port}/")).await;
    caller.until("connections_closed_total{reason=\"idle\"}", 1.0).await;
    assert_eq!(caller.metric("connections_idle"), 0.0);
}

#[tokio::test]
async fn http1_is_spoken_over_tls_where_the_peer_has_no_other() {
    let authority = Authority::new("http1", &[b"http/1.1"]);
    let port = authority.serve(0, 8).await;
    let caller = Arc::new(authority.caller(|_| {}));
    // Nobody waits for a connection that cannot be shared.
    at_once(&caller, 8, &format!("https://localhost:{port}/together")).await;
    for _ in 0..3 {
        assert_eq!(caller.ok(&format!("https://localhost:{port}/")).await.body, b"HTTP/1.1");
    }
    assert_eq!(caller.opened(), 8.0);
}

#[tokio::test]
async fn certificates_are_verified() {
    let authority = Authority::new("verified", &[b"h2"]);
    let port = authority.serve(100, 1).await;
    let failure = Caller::new().failure(&format!("https://localhost:{port}/")).await;
    assert!(matches!(failure, Failure::Tls(_)), "an unknown authority: {failure:?}");
    let failure = authority.caller(|_| {}).failure(&format!("https://127.0.0.1:{port}/")).await;
    assert!(matches!(failure, Failure::Tls(_)), "another name: {failure:?}");
}

#[tokio::test]
async fn a_handshake_that_stalls_runs_out_of_time() {
    let url = server(|mut stream, _| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let caller = Caller::with(|c| c.connect_timeout = Duration::from_millis(100));
    let failure = caller.failure(&url.replace("http:", "https:")).await;
    assert!(matches!(failure, Failure::NotConnected), "{failure:?}");
}

/// A proxy that wants `user:pass word` and connects to whatever port it is asked for, here. Gives its port.
async fn connect_proxy(asked: Arc<std::sync::Mutex<Vec<String>>>) -> String {
    let url = server(move |mut stream, _| {
        let asked = asked.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut head).await {
                    Ok(n) if n > 0 => {}
                    _ => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let place = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
            asked.lock().unwrap().push(place.to_owned());
            if !head.contains("proxy-authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n") {
                let _ = stream.write_all(b"HTTP/1.1 407 No\r\n\r\n").await;
                return;
            }
            let port: u16 = place.rsplit_once(':').unwrap().1.parse().unwrap();
            let mut endpoint = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Yes\r\nvia: test\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut endpoint).await;
        }
    })
    .await;
    url.trim_end_matches('/').trim_start_matches("http://").to_owned()
}

#[tokio::test]
async fn a_proxy_takes_calls_of_either_scheme_and_resolves_their_names() {
    let receiver = Receiver::start().await;
    let authority = Authority::new("proxy", &[b"h2"]);
    let port = authority.serve(100, 1).await;
    let asked = Arc::default();
    let proxy = connect_proxy(Arc::clone(&asked)).await;
    let caller = authority.caller(|c| c.proxy = Secret::new(format!("http://user:pass%20word@{proxy}")));
    let plain = format!("example.invalid:{}", receiver.addr().port());
    caller.ok(&format!("http://{plain}/")).await;
    caller.ok(&format!("http://{plain}/")).await;
    caller.ok(&format!("https://localhost:{port}/")).await;
    assert_eq!(*asked.lock().unwrap(), [plain, format!("localhost:{port}")]);
    assert_eq!(caller.metric("connections_reused_total"), 1.0);
}

#[tokio::test]
async fn a_proxy_that_gives_no_way_is_told_apart() {
    let asked = Arc::default();
    let proxy = connect_proxy(Arc::clone(&asked)).await;
    let caller = Caller::with(|c| c.proxy = Secret::new(format!("http://{proxy}")));
    let failure = caller.failure("http://example.invalid/").await;
    assert!(matches!(failure, Failure::Proxy(_)), "{failure:?}");
    // An address that is written out is refused before the proxy is asked.
    let caller = Caller::to(config::Targets::default(), |c| c.proxy = Secret::new(format!("http://{proxy}")));
    for url in ["http://127.0.0.1/", "http://[::1]/", "http://localhost/"] {
        assert!(matches!(caller.failure(url).await, Failure::Blocked), "{url}");
    }
    assert_eq!(asked.lock().unwrap().len(), 1);

    let endless =
        server(|mut stream, _| async move { while stream.write_all(&[b'x'; 1024]).await.is_ok() {} }).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for proxy in [endless.trim_end_matches('/').to_owned(), format!("http://{gone}")] {
        let caller = Caller::with(|c| c.proxy = Secret::new(proxy));
        let failure = caller.failure("http://example.invalid/").await;
        assert!(matches!(failure, Failure::Proxy(_)), "{failure:?}");
    }
}
