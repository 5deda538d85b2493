//! The proxy's modes, in front of a server that echoes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use eventpulse_testkit::TcpProxy;
use eventpulse_testkit::proxy::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    addr
}

async fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await?;
    assert_eq!(&reply, b"ping");
    Ok(())
}

#[tokio::test]
async fn everything_passes_and_an_orderly_end_stays_one() {
    let proxy = TcpProxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.expect("connect");
    round_trip(&mut stream).await.expect("pass");

    let sent = vec![7; 1 << 20];
    let (mut from, mut to) = stream.into_split();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        to.write_all(&copy).await.expect("write");
        to.shutdown().await.expect("half close");
    });
    let mut back = Vec::new();
    from.read_to_end(&mut back).await.expect("an orderly end");
    writer.await.expect("writer");
    assert!(back == sent);
}

#[tokio::test]
async fn refuse_keeps_the_port_and_the_open_connections() {
    let proxy = TcpProxy::start(echo().await).await;
    let mut open = TcpStream::connect(proxy.addr()).await.expect("connect");
    round_trip(&mut open).await.expect("pass");
    for _ in 0..3 {
        proxy.set(Mode::Refuse).await;
        let refused = TcpStream::connect(proxy.addr()).await;
        let error = refused.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        round_trip(&mut open).await.expect("still open");
        proxy.set(Mode::Pass).await;
        let mut new = TcpStream::connect(proxy.addr()).await.expect("connect");
        round_trip(&mut new).await.expect("pass again");
    }
}

#[tokio::test]
async fn stall_holds_everything_and_loses_nothing() {
    let proxy = TcpProxy::start(echo().await).await;
    let mut old = TcpStream::connect(proxy.addr()).await.expect("connect");
    round_trip(&mut old).await.expect("pass");
    proxy.set(Mode::Stall).await;
    let mut new = TcpStream::connect(proxy.addr()).await.expect("accepted");
    for stream in [&mut old, &mut new] {
        stream.write_all(b"ping").await.expect("write");
        let mut byte = [0; 4];
        let read = timeout(Duration::from_millis(100), stream.read_exact(&mut byte)).await;
        assert!(read.is_err(), "nothing moves");
    }
    proxy.set(Mode::Pass).await;
    for stream in [&mut old, &mut new] {
        let mut reply = [0; 4];
        let read = timeout(Duration::from_secs(5), stream.read_exact(&mut reply)).await;
        read.expect("moves again").expect("read");
        assert_eq!(&reply, b"ping");
    }
}

#[tokio::test]
async fn delay_adds_to_latency_only() {
    let proxy = TcpProxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.expect("connect");
    proxy.set(Mode::Delay(Duration::from_millis(100))).await;
    // The first read may have begun before the change; it looks at the mode when it ends.
    let start = Instant::now();
    round_trip(&mut stream).await.expect("pass");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(200), "both ways: {took:?}");

    // Ten pieces under way at once take about as long as one.
    let start = Instant::now();
    for _ in 0..10 {
        stream.write_all(b"ping").await.expect("write");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut reply = [0; 40];
    stream.read_exact(&mut reply).await.expect("read");
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1500), "not one by one: {took:?}");
}

#[tokio::test]
async fn cut_all_resets_what_is_open_and_spares_what_follows() {
    let proxy = TcpProxy::start(echo().await).await;
    for mode in [Mode::Pass, Mode::Stall] {
        let mut stream = TcpStream::connect(proxy.addr()).await.expect("connect");
        round_trip(&mut stream).await.expect("pass");
        proxy.set(mode).await;
        proxy.cut_all().await;
        let error = stream.read_u8().await.expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        proxy.set(Mode::Pass).await;
    }
    let mut next = TcpStream::connect(proxy.addr()).await.expect("connect");
    round_trip(&mut next).await.expect("pass");
}

#[tokio::test]
async fn an_upstream_that_is_down_looks_like_a_lost_peer() {
    let gone = echo_addr_of_nobody().await;
    let proxy = TcpProxy::start(gone).await;
    // The reset may come so early that connecting reports it.
    let talk = async {
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        round_trip(&mut stream).await
    };
    let error = talk.await.expect_err("lost");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

async fn echo_addr_of_nobody() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    listener.local_addr().expect("addr")
}
