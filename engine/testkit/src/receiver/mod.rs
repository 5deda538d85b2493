//! A receiver of webhooks that records what comes and replies as a test's script says.
//!
//! It has its own thread and counts with atomics, so that it takes tens of thousands of requests a second
//! and is not what a bench measures.

mod reply;
mod serve;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::background::Background;
use crate::wait::patiently;

pub use reply::Reply;

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The path with its query.
    pub path: String,
    pub headers: HeaderMap,
    /// Empty in [`Receiver::requests`] when bodies are not kept; a script always sees it.
    pub body: Bytes,
    /// When the whole request was there.
    pub at: Instant,
    /// How many requests came before this one, since the start or the last [`Receiver::clear`].
    pub n: usize,
}

/// An HTTP server on 127.0.0.1. Dropping it closes its port and its connections.
pub struct Receiver {
    addr: SocketAddr,
    state: Arc<State>,
    _thread: Background,
}

type Script = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;

pub(crate) struct State {
    script: RwLock<Option<Script>>,
    keep_bodies: AtomicBool,
    requests: Mutex<Vec<Recorded>>,
    count: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
}

impl Receiver {
    /// Starts on a free port.
    pub async fn start() -> Receiver {
        Receiver::start_on(0).await
    }

    /// Starts on a given port, such as that of a receiver which was dropped before; 0 is any free one.
    ///
    /// # Panics
    /// When the port cannot be had within two seconds.
    pub async fn start_on(port: u16) -> Receiver {
        let listener = patiently(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .await
        .unwrap_or_else(|e| panic!("port {port} for a receiver: {e}"));
        let addr = listener.local_addr().expect("a bound socket has one");
        let state = Arc::new(State {
            script: RwLock::new(None),
            keep_bodies: AtomicBool::new(true),
            requests: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
        });
        let thread = Background::run("receiver", serve::run(listener, Arc::clone(&state)));
        Receiver { addr, state, _thread: thread }
    }

    /// Gives the URL of `path`, which starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives a copy of all requests in the order in which they arrived.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.requests().clone()
    }

    /// Gives the number of requests; cheap, so fit for polling.
    pub fn count(&self) -> usize {
        self.state.count.load(Ordering::Acquire)
    }

    /// Gives the highest number of requests that were open at the same time.
    pub fn concurrency_max(&self) -> usize {
        self.state.in_flight_max.load(Ordering::Relaxed)
    }

    /// Forgets what was recorded and counted. The script stays.
    pub fn clear(&self) {
        let mut requests = self.state.requests();
        requests.clear();
        self.state.count.store(0, Ordering::Release);
        let open = self.state.in_flight.load(Ordering::Relaxed);
        self.state.in_flight_max.store(open, Ordering::Relaxed);
    }

    /// Decides each reply from here on. It is called in the order of [`Recorded::n`], one
    /// at a time; it must not block, nor ask for [`Receiver::requests`], which wait for it.
    pub fn script(&self, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) {
        let mut place = self.state.script.write().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::new(script));
    }

    /// Chooses whether bodies stay in memory. A load of millions of requests turns it off.
    pub fn keep_bodies(&self, keep: bool) {
        self.state.keep_bodies.store(keep, Ordering::Relaxed);
    }
}

impl State {
    /// Records a request and gives the reply to it.
    fn take(&self, path: String, headers: HeaderMap, body: Bytes) -> Reply {
        let script = self.script.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Everything under the one lock, so that `n`, the order of the list and the count agree.
        let mut requests = self.requests();
        let mut recorded = Recorded { path, headers, body, at: Instant::now(), n: requests.len() };
        let reply = script.map_or_else(Reply::ok, |script| script(&recorded));
        if !self.keep_bodies.load(Ordering::Relaxed) {
            recorded.body = Bytes::new();
        }
        requests.push(recorded);
        self.count.store(requests.len(), Ordering::Release);
        reply
    }

    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Recorded>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
