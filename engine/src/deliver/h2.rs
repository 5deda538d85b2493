//! An HTTP/2 connection and the task that drives it.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task::JoinSet,
    time::Instant,
};

use super::{h1::head::HEAD_BYTES_MAX, origin::Origin, pool::Pool};

/// Requests at once on one HTTP/2 connection, if its peer allows as many.
const STREAMS_MAX: usize = 128;

/// What a peer may send on a stream before we have read of it, and on a connection. Replies are small.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

fn ended(pool: &Weak<Pool>, origin: &Origin, id: u64) {
    if let Some(pool) = pool.upgrade() {
        pool.ended(origin, id);
    }
}

/// An HTTP/2 connection, shared. It closes when the last one who holds it drops it.
pub(super) struct H2 {
    pub(super) id: u64,
    pub(super) born: Instant,
    sender: http2::SendRequest<Full<Bytes>>,
    limit: Arc<Limit>,
    /// The driver and what it started, which end with it.
    _tasks: Tasks,
}

/// Streams at once that the peer allows. The driver reads it when it runs, which it does for requests and not for the
/// peer's settings, so the first reply has it look once more.
struct Limit {
    streams_max: AtomicUsize,
    known: AtomicBool,
    look: Notify,
}

type Tasks = Arc<Mutex<JoinSet<()>>>;

impl H2 {
    pub(super) async fn open<T>(io: T, pool: &Arc<Pool>, origin: &Origin) -> hyper::Result<Arc<H2>>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tasks = Tasks::default();
        // hyper's client refuses server push by itself.
        let (sender, mut connection) = http2::Builder::new(Executor(Arc::downgrade(&tasks)))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .handshake(TokioIo::new(io))
            .await?;
        let id = pool.next_id();
        let (home, origin) = (Arc::downgrade(pool), origin.clone());
        let limit = Arc::new(Limit {
            streams_max: AtomicUsize::new(connection.current_max_send_streams()),
            known: AtomicBool::new(false),
            look: Notify::new(),
        });
        let seen = limit.clone();
        spawn(&tasks, async move {
            let mut look = pin!(seen.look.notified());
            let driven = poll_fn(|cx| {
                // Asked for once, after the first reply.
                let _ = look.as_mut().poll(cx);
                let polled = Pin::new(&mut connection).poll(cx);
                seen.streams_max.store(connection.current_max_send_streams(), Ordering::Relaxed);
                polled.map(drop)
            });
            driven.await;
            ended(&home, &origin, id);
        });
        Ok(Arc::new(H2 { id, born: Instant::now(), sender, limit, _tasks: tasks }))
    }

    pub(super) fn sender(&self) -> http2::SendRequest<Full<Bytes>> {
        self.sender.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Requests at once that the peer allows now. A peer that allows none is asked nevertheless: the request waits
    /// its turn.
    pub(super) fn streams_max(&self) -> usize {
        self.limit.streams_max.load(Ordering::Relaxed).clamp(1, STREAMS_MAX)
    }

    /// Notes that the peer answered, so its settings are here too.
    pub(super) fn answered(&self) {
        if !self.limit.known.swap(true, Ordering::Relaxed) {
            self.limit.look.notify_one();
        }
    }
}

/// Runs what hyper starts for a connection in that connection's set of tasks.
#[derive(Clone)]
struct Executor(Weak<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        if let Some(tasks) = self.0.upgrade() {
            spawn(&tasks, async move {
                future.await;
            });
        }
    }
}

fn spawn(tasks: &Tasks, future: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
    // The set keeps what has ended until it is asked.
    while tasks.try_join_next().is_some() {}
    tasks.spawn(future);
}
