//! A TCP proxy with a stable port, to put trouble between the engine and a server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::background::Background;
use crate::wait::patiently;

/// What happens to what passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// New connections are refused, as if nothing listened. Those that are open go on.
    Refuse,
    /// Connections are accepted, also upstream, but nothing moves, neither way.
    Stall,
    /// Everything passes, each byte this much later, in both directions.
    Delay(Duration),
}

/// A proxy on 127.0.0.1. Dropping it closes its port and its connections.
pub struct TcpProxy {
    addr: SocketAddr,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    _thread: Background,
}

enum Order {
    Set(Mode),
    CutAll,
}

impl TcpProxy {
    /// Starts on a free port, in [`Mode::Pass`].
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start(upstream: SocketAddr) -> TcpProxy {
        let (orders, inbox) = mpsc::channel(16);
        let (tell, told) = oneshot::channel();
        let thread = Background::run("proxy", async move {
            let socket = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
            let listener = socket.and_then(listen).expect("a free port");
            let addr = listener.local_addr().expect("a bound socket has one");
            let _ = tell.send(addr);
            run(addr, listener, upstream, inbox).await;
        });
        TcpProxy { addr: told.await.expect("the proxy has a port"), orders, _thread: thread }
    }

    /// Gives the address to connect to, which never changes.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes the mode; in force for old and new connections when this returns.
    pub async fn set(&self, mode: Mode) {
        self.order(Order::Set(mode)).await;
    }

    /// Resets all open connections, on both sides. They are gone when this returns.
    pub async fn cut_all(&self) {
        self.order(Order::CutAll).await;
    }

    async fn order(&self, order: Order) {
        let (done, wait) = oneshot::channel();
        let sent = self.orders.send((order, done)).await;
        sent.expect("the proxy lives as long as its handle");
        wait.await.expect("the proxy does as it is told");
    }
}

/// Binds with an address that may still have old connections, without listening: callers are refused, and
/// the port is nobody else's.
fn bound(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(1024)
}

async fn run(
    addr: SocketAddr,
    listener: TcpListener,
    upstream: SocketAddr,
    mut inbox: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
) {
    let (mode, _) = watch::channel(Mode::Pass);
    let mode = Arc::new(mode);
    let mut cut = watch::channel(()).0;
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    let mut refusing = None;
    loop {
        tokio::select! {
            // An order is in force for every connection that comes after it.
            biased;
            order = inbox.recv() => {
                let Some((order, done)) = order else { return };
                match order {
                    Order::Set(Mode::Refuse) => {
                        if listener.take().is_some() {
                            refusing = Some(patiently(|| bound(addr)).await.expect("the port was ours a moment ago"));
                        }
                        mode.send_replace(Mode::Refuse);
                    }
                    Order::Set(new) => {
                        mode.send_replace(new);
                        if let Some(socket) = refusing.take() {
                            listener = Some(listen(socket).expect("a bound socket can listen"));
                        }
                    }
                    Order::CutAll => {
                        // The old sender's end is the signal; those who come later listen to the new one.
                        cut = watch::channel(()).0;
                        while connections.join_next().await.is_some() {}
                    }
                }
                let _ = done.send(());
            }
            accepted = accept(listener.as_ref()) => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(connection(client, upstream, mode.subscribe(), cut.subscribe()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Carries one connection until both directions have ended, one has failed, or it is cut.
async fn connection(
    mut client: TcpStream,
    upstream: SocketAddr,
    mode: watch::Receiver<Mode>,
    mut cut: watch::Receiver<()>,
) {
    let connected = tokio::select! {
        connected = TcpStream::connect(upstream) => connected.ok(),
        _ = cut.changed() => None,
    };
    let Some(mut server) = connected else {
        // The nearest to a refusal that is possible after accepting.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::try_join!(carry(from_client, to_server, mode.clone()), carry(from_server, to_client, mode),)
        };
        tokio::select! {
            result = both => result.is_ok(),
            _ = cut.changed() => false,
        }
    };
    if !ended {
        // With no time to linger, closing sends a reset, which is how a lost peer looks.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// How many pieces may be under way with a delay; more than that and the reader waits.
const PIECES_MAX: usize = 1024;

/// Carries one direction. Reading and writing are apart, so that a delay adds to latency only.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mode: watch::Receiver<Mode>) -> io::Result<()> {
    let (queue, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let mut reader_mode = mode.clone();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            moving(&mut reader_mode).await;
            let size = from.read(&mut buffer).await?;
            let delay = match *reader_mode.borrow() {
                Mode::Delay(delay) => delay,
                _ => Duration::ZERO,
            };
            let piece = (Instant::now() + delay, buffer[..size].to_vec());
            // An empty piece is the end, and is delayed like the rest.
            if queue.send(piece).await.is_err() || size == 0 {
                return Ok(());
            }
        }
    };
    let mut writer_mode = mode;
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            moving(&mut writer_mode).await;
            if piece.is_empty() {
                break;
            }
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Waits while everything is stalled.
async fn moving(mode: &mut watch::Receiver<Mode>) {
    if mode.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
        // The proxy is going down, and this connection with it.
        sleep(Duration::MAX).await;
    }
}
