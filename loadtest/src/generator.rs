//! Sends events and counts what they are answered. One thread, one task a connection.
//!
//! With a rate, latency counts from the moment a request was due, not from when a connection was free for it: a server
//! that stalls is charged for all that should have been sent meanwhile (Tene, "coordinated omission").

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::LocalSet,
    time::Instant,
};

use crate::{ticks::Ticks, wire};

/// Requests that may wait for a connection. More than any run needs; past it they count as dropped.
const WAITING_MAX: usize = 1_000_000;

/// What to send, and how.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    /// Keys of accounts, spread over the connections.
    pub keys: Vec<String>,
    /// Types, spread over the connections as the keys are; none for the usual one.
    pub kinds: Vec<String>,
    /// Bytes of an event.
    pub size: usize,
    /// Events of a request to `/send-events`; none for `/send-event`.
    pub bulk: Option<usize>,
    pub connections: usize,
    /// Requests a second; none for as many as are answered.
    pub rate: Option<f64>,
    /// Whether a request waits for a free connection, or is dropped as by a client with no connection to spare.
    pub drop_when_busy: bool,
    /// Not counted.
    pub warm_up: Duration,
    pub length: Duration,
}

/// What came of it, the warm-up left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub seconds: f64,
    /// Requests answered with 201 in the counted time, and those in the whole run.
    pub accepted: u64,
    pub accepted_in_all: u64,
    pub limited: u64,
    pub unavailable: u64,
    pub other: u64,
    pub broken: u64,
    pub dropped: u64,
    /// From when it was due to its answer.
    pub latency: Latency,
    /// From when it was due to when it was sent: what the generator itself was late, or had no connection free.
    pub lateness: Latency,
    /// Of requests that were refused.
    pub refusal: Latency,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

struct Shared {
    report: RefCell<Report>,
    accepted: RefCell<Histogram<u64>>,
    late: RefCell<Histogram<u64>>,
    refused: RefCell<Histogram<u64>>,
    /// When requests were due that no connection has taken yet.
    due: RefCell<VecDeque<Instant>>,
    idle: RefCell<usize>,
    given: Notify,
    start: Instant,
    /// The same moment in microseconds since 1970.
    start_micros: u64,
    counted_from: Instant,
    end: Instant,
}

/// Runs a load on a thread of its own and waits for its end.
///
/// # Errors
/// When no connection can be made.
pub fn run(load: Load) -> std::io::Result<Report> {
    let thread = std::thread::Builder::new().name("generator".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(LocalSet::new().run_until(drive(load)))
    })?;
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the generator panicked")))
}

async fn drive(load: Load) -> std::io::Result<Report> {
    let mut streams = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        let stream = TcpStream::connect(load.target).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let histogram = || RefCell::new(Histogram::new_with_bounds(1, 600_000_000, 3).expect("sensible bounds"));
    let start = Instant::now();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let counted_from = start + load.warm_up;
    let shared = Rc::new(Shared {
        report: RefCell::default(),
        accepted: histogram(),
        late: histogram(),
        refused: histogram(),
        due: RefCell::default(),
        idle: RefCell::new(0),
        given: Notify::new(),
        start,
        start_micros: micros(since_1970),
        counted_from,
        end: counted_from + load.length,
    });
    let mut tasks = Vec::new();
    for (i, stream) in streams.into_iter().enumerate() {
        let kind = load.kinds.get(i % load.kinds.len().max(1)).map_or(wire::KIND, String::as_str);
        let request = wire::request(&load.keys[i % load.keys.len()], kind, load.size, load.bulk);
        let sender = Sender {
            stream,
            target: load.target,
            request,
            shared: shared.clone(),
            paced: load.rate.is_some(),
            // The events of a larger request would each have to be found.
            stamps: load.bulk.is_none(),
        };
        tasks.push(tokio::task::spawn_local(sender.run()));
    }
    if let Some(rate) = load.rate {
        schedule(&shared, rate, load.drop_when_busy).await?;
    }
    for task in tasks {
        // Those that still wait for an answer have had their time.
        let _ = tokio::time::timeout_at(shared.end + Duration::from_secs(10), task).await;
    }
    let mut report = shared.report.borrow().clone();
    // What no connection was ever free for.
    report.dropped += shared.due.borrow().len() as u64;
    report.seconds = load.length.as_secs_f64();
    report.latency = Latency::of(&shared.accepted.borrow());
    report.lateness = Latency::of(&shared.late.borrow());
    report.refusal = Latency::of(&shared.refused.borrow());
    Ok(report)
}

/// Longest, so that the end is seen.
const TICK_MAX: Duration = Duration::from_millis(1);

/// The shortest time between two looks at what is due: one for each request of up to 5,000 a second.
const TICK_MIN: Duration = Duration::from_micros(200);

/// Says when requests are due, evenly, and catches up where several are.
async fn schedule(shared: &Rc<Shared>, rate: f64, drop_when_busy: bool) -> std::io::Result<()> {
    let mut ticks = Ticks::every(Duration::from_secs_f64(1.0 / rate).clamp(TICK_MIN, TICK_MAX))?;
    let mut n = 0u64;
    loop {
        ticks.next().await?;
        let now = Instant::now();
        loop {
            let due = shared.start + Duration::from_secs_f64(n as f64 / rate);
            if due > now || due >= shared.end {
                break;
            }
            n += 1;
            let waiting = shared.due.borrow().len();
            let room = if drop_when_busy { *shared.idle.borrow() } else { WAITING_MAX };
            if waiting < room {
                shared.due.borrow_mut().push_back(due);
                shared.given.notify_one();
            } else if due >= shared.counted_from {
                shared.report.borrow_mut().dropped += 1;
            }
        }
        if now >= shared.end {
            shared.given.notify_waiters();
            return Ok(());
        }
    }
}

/// One connection.
struct Sender {
    stream: TcpStream,
    target: SocketAddr,
    request: Vec<u8>,
    shared: Rc<Shared>,
    paced: bool,
    stamps: bool,
}

impl Sender {
    async fn run(mut self) {
        let mut buffer = Vec::with_capacity(16 << 10);
        while let Some(due) = self.next().await {
            if self.stamps {
                let after = micros(due - self.shared.start);
                wire::stamp(&mut self.request, self.shared.start_micros + after);
            }
            if due >= self.shared.counted_from {
                self.shared.late.borrow_mut().saturating_record(micros(due.elapsed()));
            }
            let outcome = self.exchange(&mut buffer).await;
            self.count(due, outcome.as_ref().ok().copied());
            if outcome.is_err() {
                match TcpStream::connect(self.target).await {
                    Ok(stream) => {
                        let _ = stream.set_nodelay(true);
                        self.stream = stream;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }

    /// When the next request is due; none at the end of the run.
    async fn next(&self) -> Option<Instant> {
        if !self.paced {
            let now = Instant::now();
            return (now < self.shared.end).then_some(now);
        }
        *self.shared.idle.borrow_mut() += 1;
        let due = loop {
            if let Some(due) = self.shared.due.borrow_mut().pop_front() {
                break Some(due);
            }
            if Instant::now() >= self.shared.end {
                break None;
            }
            let _ = tokio::time::timeout_at(self.shared.end, self.shared.given.notified()).await;
        };
        *self.shared.idle.borrow_mut() -= 1;
        due
    }

    async fn exchange(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<u16> {
        self.stream.write_all(&self.request).await?;
        buffer.clear();
        loop {
            if self.stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(answer) = wire::answer(buffer) {
                return Ok(answer.status);
            }
        }
    }

    fn count(&self, due: Instant, status: Option<u16>) {
        let mut report = self.shared.report.borrow_mut();
        if status == Some(201) {
            report.accepted_in_all += 1;
        }
        if due < self.shared.counted_from {
            return;
        }
        let took = micros(due.elapsed());
        let (count, histogram) = match status {
            Some(201) => (&mut report.accepted, &self.shared.accepted),
            Some(429) => (&mut report.limited, &self.shared.refused),
            Some(503) => (&mut report.unavailable, &self.shared.refused),
            Some(_) => (&mut report.other, &self.shared.refused),
            None => {
                report.broken += 1;
                return;
            }
        };
        *count += 1;
        histogram.borrow_mut().saturating_record(took);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
