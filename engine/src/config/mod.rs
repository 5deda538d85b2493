//! Every setting: its name, unit, default, and what goes wrong at either end.
//!
//! Layers, later ones win: defaults, the TOML file named by `--config`, the environment (which wins over
//! `.env`), flags. `EVENTPULSE_SECTION__FIELD` names a field in the environment; the few well-known
//! variables (`DATABASE_URL`, `PORT`, ...) are listed in [`load::ALIASES`].

pub mod certificate;
pub mod keys;
pub mod list;
pub mod load;
pub mod proxy;
pub mod redis;
pub mod roots;
mod validate;
pub mod value;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::load::{Error, load};
use self::{
    list::List,
    value::{LogFormat, Schedule, Secret, span},
};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: $default,)* }
            }
        }
    };
}

// Behind the macro, which it uses.
mod edge;
mod trace;

pub use self::{
    edge::{Admin, Gateway, Metrics, Shutdown, Targets},
    trace::Trace,
};

/// Workers of one process.
const WORKERS_MAX: usize = 16;

section!(
    /// The whole configuration; `Config::default()` is the documentation of the defaults.
    Config {
        /// `DATABASE_URL`. Postgres 13 or later; Prisma's `?schema=` is understood. No default.
        database_url: Secret = Secret::default(),
        /// `REDIS_URL`. Redis 7.0 or later, or Valkey 8; `redis://`, `rediss://` or `unix://`, and for a cluster
        /// `redis+cluster://` or `rediss+cluster://` with some of its nodes, `host:port` separated by commas. No default.
        redis_url: Secret = Secret::default(),
        /// `EVENTPULSE_SECRETS_KEY`: 32 bytes in base64 that secrets of webhooks are encrypted with at rest; several, separated by
        /// commas, where the first encrypts and all decrypt. Lost, no delivery can be signed.
        secrets_key: Secret = Secret::default(),
        http: Http = Http::default(),
        gateway: Gateway = Gateway::default(),
        admin: Admin = Admin::default(),
        metrics: Metrics = Metrics::default(),
        registration: Registration = Registration::default(),
        targets: Targets = Targets::default(),
        ingest: Ingest = Ingest::default(),
        stream: Stream = Stream::default(),
        dispatch: Dispatch = Dispatch::default(),
        lane: Lane = Lane::default(),
        transform: Transform = Transform::default(),
        deliver: Deliver = Deliver::default(),
        retry: Retry = Retry::default(),
        dlq: Dlq = Dlq::default(),
        retention: Retention = Retention::default(),
        webhooks: Webhooks = Webhooks::default(),
        recover: Recover = Recover::default(),
        shutdown: Shutdown = Shutdown::default(),
        trace: Trace = Trace::default(),
        log: Log = Log::default(),
    }
);

section!(
    /// The HTTP servers of both roles.
    Http {
        /// Address both servers listen on. Anything but loopback asks for a decision on registration.
        listen: IpAddr = IpAddr::from([127, 0, 0, 1]),
        /// `PORT`: the gateway's port; 0 takes a free one.
        port: u16 = 3000,
        /// `DISPATCHER_PORT`: the dispatcher's port for `/health` and `/metrics`; 0 takes a free one.
        dispatcher_port: u16 = 4000,
        /// Largest request body in bytes. Larger ones are refused with 413 while they are read.
        body_bytes_max: usize = 1 << 20,
        /// Bytes that bodies above 16 KiB and their unread answers hold together. Past it such requests are refused
        /// at once. An account may hold half of it while others hold some, and three quarters while it is alone.
        held_bytes_max: usize = 256 << 20,
        /// Connections at once; past it new ones wait in the listen queue.
        connections_max: usize = 10_000,
        /// Time for a request's head, counted also while a kept-alive connection idles. Shorter than a
        /// load balancer's own idle time-out means it will reuse connections that are being closed.
        #[serde(with = "span")]
        header_timeout: Duration = Duration::from_secs(75),
        /// Time for a request's body. A slow uploader past it gets 408.
        #[serde(with = "span")]
        body_timeout: Duration = Duration::from_secs(30),
        /// How long a drain waits for open requests before it closes their connections.
        #[serde(with = "span")]
        drain_timeout: Duration = Duration::from_secs(10),
    }
);

section!(
    /// Who may create accounts.
    Registration {
        /// `REGISTRATION_TOKEN`: when set, creating an account needs `Authorization: Bearer <token>`.
        token: Secret = Secret::default(),
        /// `OPEN_REGISTRATION`: on an address other than loopback, lets anyone create accounts.
        open: bool = false,
        /// Webhooks one account may have.
        webhooks_max: i64 = 1000,
    }
);

section!(
    /// From request to commit.
    Ingest {
        /// Events waiting for a commit. Past it a producer gets 503 at once.
        queue_events_max: usize = 16_384,
        /// Events waiting for a commit once the queue has been long for 100 ms: what waits longer than a burst
        /// lasts is only delay. Smaller answers faster under overload, larger wastes fewer requests.
        standing_events_max: usize = 128,
        /// Bytes waiting for a commit. Past it a producer gets 503 at once.
        queue_bytes_max: usize = 64 << 20,
        /// Events of one group commit, at most 1,024 (one block of ids). Larger gains little, and who waits for the
        /// commit waits for all of it.
        batch_events_max: usize = 256,
        /// Payload bytes of one group commit; a batch always takes at least one event.
        batch_bytes_max: usize = 4 << 20,
        /// Group commits in flight at once, each with a connection of its own.
        commits_max: usize = 4,
        /// A Postgres whose quickest commits take longer, besides 8 us for each event, is far: there another commit starts
        /// beside one that has been in flight for so long. With a near one it takes sixteen times as long. Shorter makes
        /// batches smaller and dearer; longer leaves producers waiting for a slow disk.
        #[serde(with = "span")]
        commit_stagger: Duration = Duration::from_millis(2),
        /// Events of one `POST /send-events`.
        bulk_events_max: usize = 10_000,
        /// Bytes of the body of one `POST /send-events`. Each payload in it stays within `http.body_bytes_max`.
        bulk_bytes_max: usize = 16 << 20,
        /// How long a batch is tried before its producers get 503. Shorter turns a Postgres restart into
        /// refusals; longer keeps producers waiting for it.
        #[serde(with = "span")]
        commit_timeout: Duration = Duration::from_secs(5),
        /// How long a streamed batch waits for its mark, which is written with all others of that time. A batch that is
        /// delivered sooner needs none.
        #[serde(with = "span")]
        mark_flush: Duration = Duration::from_millis(250),
        /// Recent commits kept for a dispatcher in the same process, in events.
        ring_events_max: usize = 65_536,
        /// And in bytes.
        ring_bytes_max: usize = 64 << 20,
        /// API keys kept in memory; beyond it the least recently used are looked up again.
        keys_max: usize = 100_000,
    }
);

section!(
    /// Between commit and dispatch.
    Stream {
        /// Committed batches in memory that Redis has not taken yet. Past it they wait in Postgres alone
        /// and come back in order once Redis does.
        unsent_max: usize = 65_536,
        /// A PEM file of the certificate authorities that a `rediss://` server may have; empty for the public ones.
        roots: String = String::new(),
        /// Longest wait for a Redis reply. An XADD past it counts as unknown and is sent again for check.
        #[serde(with = "span")]
        reply_timeout: Duration = Duration::from_secs(2),
    }
);

section!(
    /// The dispatcher.
    Dispatch {
        /// Threads that dispatch, each with its own connections and lanes. Bounds hold for all of them together, and a webhook's
        /// limits are divided among them. 0 is one for every four cores, and 16 at most.
        workers: usize = 0,
        /// Deliveries held at once, from read to record. Bounds memory; too small starves fast endpoints.
        held_max: usize = 16_384,
        /// Payload bytes held at once.
        held_bytes_max: usize = 128 << 20,
        /// Of `held_max`, what retries may take beside it.
        retries_held_max: usize = 4096,
        /// An entry whose deliveries are not all settled by then is acked, and the rest stand in `scheduled`.
        #[serde(with = "span")]
        hold: Duration = Duration::from_secs(2),
        /// A consumer without a beat for so long is dead, and its entries are claimed.
        #[serde(with = "span")]
        dead_after: Duration = Duration::from_secs(15),
        /// How often this consumer beats.
        #[serde(with = "span")]
        beat: Duration = Duration::from_secs(2),
        /// Beyond a request's time-out, how long its outcome may take to be recorded before the delivery is made again.
        #[serde(with = "span")]
        margin: Duration = Duration::from_secs(30),
        /// How long a drain waits for requests in flight.
        #[serde(with = "span")]
        grace: Duration = Duration::from_secs(20),
    }
);

impl Dispatch {
    /// How many workers there are.
    pub fn workers(&self) -> usize {
        match self.workers {
            0 => {
                std::thread::available_parallelism().map_or(1, |cores| cores.get() / 4).clamp(1, WORKERS_MAX)
            }
            set => set,
        }
    }
}

section!(
    /// One webhook's lane in one process.
    Lane {
        /// Requests in flight to one webhook, over all dispatchers. A lane begins with 4, adds one with each success and
        /// halves on a time-out.
        in_flight_max: usize = 64,
        /// Deliveries waiting in memory behind them; what exceeds it is parked in `scheduled`. At most half of
        /// `dispatch.held_max`, so that one webhook cannot take all of it.
        queue_max: usize = 8192,
        /// Deliveries of all fast lanes together that wait beyond `queue_max` beside their open stream entries, 40 bytes each.
        /// One webhook has at most half. Further ones are parked in `scheduled`, which costs Postgres more than a delivery. 0
        /// parks all.
        deferred_max: usize = 524_288,
        /// Deliveries of one webhook that may wait in `scheduled`; beyond it the oldest end as dead letters. 0 sets no bound:
        /// then one dead endpoint may fill the disk.
        backlog_max: usize = 1_000_000,
        /// Failures in a row that open a webhook's circuit breaker; a time-out counts as four. 0 switches breakers off.
        breaker_failures: u32 = 16,
        /// From opening to the first probe; each further one waits twice as long. Shorter notices sooner that an endpoint
        /// is back, longer leaves it alone.
        #[serde(with = "span")]
        probe_first: Duration = Duration::from_secs(1),
        /// Longest time between two probes.
        #[serde(with = "span")]
        probe_max: Duration = Duration::from_secs(30),
        /// Lanes without work for so long are forgotten.
        #[serde(with = "span")]
        idle: Duration = Duration::from_secs(60),
    }
);

section!(
    /// Webhooks' own WASM modules.
    Transform {
        /// Threads of either kind, quick and patient, that run modules in each process, from 2 to 16. 0 is one for every core.
        /// No webhook has more than half.
        threads: usize = 0,
        /// CPU time of one call. A module that takes longer is stopped.
        #[serde(with = "span")]
        deadline: Duration = Duration::from_millis(50),
        /// Linear memory of one call, in bytes.
        memory_bytes_max: usize = 64 << 20,
        /// Likewise for modules that bring a language's runtime.
        large_memory_bytes_max: usize = 256 << 20,
        /// Bytes of a module that may be uploaded.
        module_bytes_max: usize = 32 << 20,
        /// Modules above this size bring a language's runtime: they are compiled with less care, have more memory, and
        /// their instances are used again.
        large_from_bytes: usize = 4 << 20,
        /// Calls of one instance of such a module; they leak, so it must end.
        reuse_max: u32 = 256,
        /// Bytes of what a module gives back.
        output_bytes_max: usize = 1 << 20,
        /// Bytes of one line of a module's log, of which the end is cut, and of all lines of one call, of which the first are.
        log_line_bytes_max: usize = 1 << 10,
        log_bytes_max: usize = 8 << 10,
        /// Calls that wait for a thread; past it deliveries wait in their lanes.
        queue_max: usize = 1024,
        /// CPU time that one webhook's module may take of all threads' together, in percent over time. What is beyond waits.
        cpu_share_percent: u32 = 25,
        /// Failures of a module in a row after which its webhook is paused; 0 for never.
        suspend_after: u32 = 100,
        /// CPU time for compiling one module, and the address space of the process that does it.
        #[serde(with = "span")]
        compile_timeout: Duration = Duration::from_secs(60),
        compile_bytes_max: usize = 4 << 30,
        /// Folder for compiled modules, which nobody else may write to: machine code is run from it. Empty stands for
        /// `eventpulse/transforms` in the user's cache folder.
        cache_folder: String = String::new(),
        /// The program whose subcommand `compile-transform` compiles modules: this one. For programs that are not `eventpulse`
        /// itself, such as tests; nothing outside of the code can set it.
        #[serde(skip)]
        compiler: Option<PathBuf> = None,
        /// Versions kept of one webhook; the oldest that is not in use goes first.
        versions_max: i64 = 20,
    }
);

section!(
    /// The HTTP client.
    Deliver {
        /// One attempt, from looking the name up to the last byte of the reply.
        #[serde(with = "span")]
        timeout: Duration = Duration::from_secs(15),
        /// For DNS, TCP and TLS together, and for a proxy's answer.
        #[serde(with = "span")]
        connect_timeout: Duration = Duration::from_secs(5),
        /// Idle connections are closed after it; Node's servers close theirs after 5 s.
        #[serde(with = "span")]
        idle: Duration = Duration::from_secs(4),
        /// Connections are not used again past this age, so that a name which moved is looked up again.
        #[serde(with = "span")]
        age_max: Duration = Duration::from_secs(300),
        /// Idle connections to all endpoints together; past it those used least recently are closed. Each takes a file
        /// descriptor; too few, and most deliveries open a connection.
        idle_max: usize = 4096,
        /// `http://host:port` of a proxy that all calls go through by CONNECT, with `user:password@` if it wants them.
        proxy: Secret = Secret::default(),
        /// Name servers, each `address:port`, in place of those of `/etc/resolv.conf`. Ones that know no internal names
        /// tell tenants nothing of them.
        name_servers: List<SocketAddr> = List::default(),
        /// A PEM file of certificate authorities that endpoints may have beside the public ones.
        extra_roots: String = String::new(),
        /// Bytes of a reply that are read; the rest closes the connection.
        reply_bytes_max: usize = 64 << 10,
        /// Bytes of a successful reply kept in the attempt.
        success_bytes_kept: usize = 256,
        /// Bytes of any other reply kept in the attempt.
        failure_bytes_kept: usize = 4096,
    }
);

section!(
    /// What happens after a failed attempt.
    Retry {
        /// Waits between attempts, comma separated; one more attempt than there are waits.
        schedule: Schedule = Schedule::standard(),
        /// Each wait is stretched by up to this many percent, so that failures do not come back together.
        jitter_percent: u32 = 10,
        /// How far ahead of time scheduled work is brought into Redis.
        #[serde(with = "span")]
        horizon: Duration = Duration::from_secs(60),
        /// Members of `due`, at most. The rest stands in Postgres.
        due_max: usize = 100_000,
        /// Longest wait that an endpoint's Retry-After may ask for.
        #[serde(with = "span")]
        retry_after_max: Duration = Duration::from_secs(3600),
    }
);

section!(
    /// Dead letters.
    Dlq {
        /// Dead letters older than this are removed; 0 keeps them for ever. Shorter loses what nobody looked at in time,
        /// longer takes disk.
        #[serde(with = "span")]
        retention: Duration = Duration::from_secs(30 * 86_400),
    }
);

section!(
    /// How long events are kept.
    Retention {
        /// Events are removed once all of their partition, 67 million ids, are older than this and settled, with their attempts
        /// and dead letters; 0 keeps them for ever.
        #[serde(with = "span")]
        events: Duration = Duration::from_secs(30 * 86_400),
    }
);

section!(
    /// What becomes of webhooks.
    Webhooks {
        /// A webhook from which nothing but failures came for so long is disabled; 0 for never. Shorter gives up on an
        /// endpoint that is merely down for a weekend.
        #[serde(with = "span")]
        disable_after: Duration = Duration::from_secs(5 * 86_400),
    }
);

section!(
    /// Takeover, sweep and safety.
    Recover {
        /// Streamed batches are checked for what is missing after it. Longer than any healthy backlog.
        #[serde(with = "span")]
        sweep_after: Duration = Duration::from_secs(60),
        /// How often the sweep looks, and the upkeep.
        #[serde(with = "span")]
        sweep_every: Duration = Duration::from_secs(5),
        /// Beats of ours that must pass without one of another instance's before its batches are taken over.
        dead_after_beats: u32 = 10,
        /// Whether to start under settings of Postgres and Redis with which promises are not kept.
        allow_unsafe: bool = false,
    }
);

section!(
    /// Logging.
    Log {
        /// A filter such as `info` or `eventpulse=debug`.
        filter: String = "info,refinery_core=warn,tokio_postgres=warn".to_owned(),
        /// `text` for people, `json` for what collects logs: one object a line.
        format: LogFormat = LogFormat::Text,
    }
);

/// Which parts of the engine a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    Both,
    Api,
    Dispatcher,
}

impl Roles {
    pub fn api(self) -> bool {
        self != Roles::Dispatcher
    }

    pub fn dispatcher(self) -> bool {
        self != Roles::Api
    }

    pub fn name(self) -> &'static str {
        match self {
            Roles::Both => "api,dispatcher",
            Roles::Api => "api",
            Roles::Dispatcher => "dispatcher",
        }
    }
}

impl Config {
    /// The configuration as TOML, secrets as `***`.
    pub fn dump(&self) -> String {
        toml::to_string(self).expect("every section serialises to a TOML table")
    }
}
