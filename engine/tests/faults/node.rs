//! One `eventpulse` process.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use eventpulse_testkit::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Gateway,
    Dispatcher,
}

/// Settings for runs: everything that waits for a time waits for a short one.
const SETTINGS: &[(&str, &str)] = &[
    ("ALLOW_PRIVATE_TARGETS", "true"),
    ("EVENTPULSE_INGEST__COMMIT_TIMEOUT", "3s"),
    ("EVENTPULSE_STREAM__REPLY_TIMEOUT", "1s"),
    ("EVENTPULSE_DISPATCH__HOLD", "800ms"),
    ("EVENTPULSE_DISPATCH__BEAT", "500ms"),
    ("EVENTPULSE_DISPATCH__DEAD_AFTER", "3s"),
    // Longer than an outage of Postgres, or that would be a reason for repeats.
    ("EVENTPULSE_DISPATCH__MARGIN", "12s"),
    ("EVENTPULSE_DISPATCH__GRACE", "10s"),
    ("EVENTPULSE_DELIVER__TIMEOUT", "3s"),
    ("EVENTPULSE_DELIVER__CONNECT_TIMEOUT", "1s"),
    ("EVENTPULSE_RETRY__SCHEDULE", "300ms,600ms,1s,2s,4s,8s,8s"),
    ("EVENTPULSE_LANE__PROBE_MAX", "2s"),
    ("EVENTPULSE_RECOVER__SWEEP_AFTER", "4s"),
    ("EVENTPULSE_RECOVER__SWEEP_EVERY", "1s"),
    ("EVENTPULSE_RECOVER__DEAD_AFTER_BEATS", "4"),
];

/// Where the servers are, and the logs.
pub(crate) struct Place {
    pub(crate) database: String,
    pub(crate) redis: String,
    /// Of the servers.
    pub(crate) dir: PathBuf,
    pub(crate) logs: PathBuf,
}

/// A process, until it is dropped.
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) name: String,
    log: PathBuf,
    child: Child,
}

impl Node {
    /// Starts the binary with these failpoints and waits until it serves.
    pub(crate) async fn start(place: &Place, role: Role, name: &str, failpoints: &str) -> Node {
        let log = place.logs.join(format!("{name}.log"));
        let node = Node { role, name: name.to_owned(), child: spawn(place, role, &log, failpoints), log };
        eventually(&format!("{name} is ready"), PATIENCE, async || {
            let text = fs::read_to_string(&node.log).unwrap_or_default();
            if text.contains(" ready ") { Ok(()) } else { Err(text) }
        })
        .await;
        node
    }

    /// The base URL of its role's server.
    pub(crate) fn base(&self) -> String {
        let name = match self.role {
            Role::Gateway => "gateway=\"",
            Role::Dispatcher => "dispatcher=\"",
        };
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let address = text.rsplit(name).next().and_then(|rest| rest.split('"').next()).unwrap_or_default();
        format!("http://{address}")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// SIGKILL, and waits for it to be gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("it ended");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, within, async || {
            self.child.try_wait().expect("a child").ok_or_else(|| "it runs".to_owned())
        })
        .await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Bytes of memory it has, where the system tells.
    pub(crate) fn memory(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(place: &Place, role: Role, log: &Path, failpoints: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventpulse"));
    let role = match role {
        Role::Gateway => "api",
        Role::Dispatcher => "dispatcher",
    };
    command.args(["serve", "--port", "0", "--dispatcher-port", "0", "--role", role]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(SETTINGS.iter().copied());
    command
        .env("DATABASE_URL", &place.database)
        .env("REDIS_URL", &place.redis)
        .env("FAILPOINTS", failpoints)
        .env("EVENTPULSE_LOG__FILTER", std::env::var("FAULTS_LOG").unwrap_or_else(|_| "info".to_owned()))
        .env("EVENTPULSE_TRANSFORM__CACHE_FOLDER", concat!(env!("CARGO_TARGET_TMPDIR"), "/transforms"));
    let out = File::create(log).expect("a log");
    let err = out.try_clone().expect("a log");
    command.current_dir(&place.dir).stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().expect("the binary runs")
}
