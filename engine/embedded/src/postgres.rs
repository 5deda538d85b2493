//! A private Postgres: its server process and the settings that it runs with.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::Error;
use crate::cluster::{self, Cluster, USER};
use crate::error::file;
use crate::find;
use crate::home::Home;
use crate::launch::launch;
use crate::port::{self, Kept};
use crate::process;
use crate::user::Account;
use crate::watchdog::{Program, Server, Stop};

const NAME: &str = "postgres";
/// By what names its processes are known.
const PROGRAMS: [&str; 2] = ["postgres", "postmaster"];
/// A fast shutdown, which does not wait for clients; then an immediate one, after which the log is replayed.
const STOP: Stop = Stop { gentle: ("INT", Signal::INT), firm: ("QUIT", Signal::QUIT) };

/// A private Postgres. Dropping it stops it.
pub struct Postgres {
    // Fields drop in this order: the server ends before its directory is unlocked.
    server: Server,
    kept: Option<Kept>,
    port: u16,
    cluster: Cluster,
    home: Home,
}

impl Postgres {
    /// Starts a private server under `dir` and waits, at most a minute, until it answers.
    ///
    /// A new directory is initialised first and gets an empty database `eventpulse`.
    ///
    /// # Errors
    /// When there is no usable binary, the directory is in use, or the server does not come up.
    pub fn start(dir: &Path) -> Result<Postgres, Error> {
        let home = Home::open(dir, NAME, Account::pick)?;
        let bin = find::postgres(&cluster::data(&home))?;
        stop_leftover(&home)?;
        let cluster = Cluster::open(bin, &home)?;
        let (server, port) = run(&cluster, &home, None)?;
        Ok(Postgres { server, kept: None, port, cluster, home })
    }

    /// Gives the URL of `database`, with the name and password of the one user there is.
    pub fn url(&self, database: &str) -> String {
        let password = self.cluster.password();
        let port = self.port;
        format!("postgres://{USER}:{password}@127.0.0.1:{port}/{database}")
    }

    /// Gives the port, which stays the same over [`Postgres::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives the process id of the postmaster, or of the last one when it is down.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Stops the server in order, without waiting for its clients, and waits for it.
    ///
    /// # Errors
    /// When it does not end, even when told firmly.
    pub fn stop(mut self) -> Result<(), Error> {
        self.server.stop()
    }

    /// Ends the postmaster and all its backends at once, as a crash would. The port stays ours.
    ///
    /// # Errors
    /// When they do not end.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.server.kill()?;
        // Best effort: without it the port is very likely still free when it is wanted again.
        self.kept = port::keep(self.port).ok();
        Ok(())
    }

    /// Starts the server again on the same port and data, stopping it in order first if it runs.
    ///
    /// # Errors
    /// As for [`Postgres::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.server.stop()?;
        stop_leftover(&self.home)?;
        self.kept = None;
        (self.server, _) = run(&self.cluster, &self.home, Some(self.port))?;
        Ok(())
    }
}

fn pid_file(home: &Home) -> PathBuf {
    cluster::data(home).join("postmaster.pid")
}

/// Stops what an earlier run left behind, so that two servers never meet on one data directory.
fn stop_leftover(home: &Home) -> Result<(), Error> {
    let data = cluster::data(home);
    let stuck = |pid| Error::Stuck { server: NAME, pid };
    let path = pid_file(home);
    if let Some(pid) = process::from_pid_file(&path) {
        if process::belongs(pid, &PROGRAMS, &data) {
            if !process::stop(pid, STOP.gentle.1, STOP.firm.1) {
                return Err(stuck(pid));
            }
        } else if process::alive(pid) {
            // The id went to somebody else. Postgres only sees that it is alive and would refuse to start.
            fs::remove_file(&path).map_err(file("remove", &path))?;
        }
    }
    // Backends whose postmaster was killed alone end by themselves, but not at once, and a new postmaster
    // refuses to start while one of them lives.
    for pid in process::working_in(&data, &PROGRAMS) {
        if !process::wait_gone(pid, Duration::from_secs(5)) {
            process::signal(pid, STOP.firm.1);
            if !process::wait_gone(pid, Duration::from_secs(5)) {
                return Err(stuck(pid));
            }
        }
    }
    Ok(())
}

fn run(cluster: &Cluster, home: &Home, fixed: Option<u16>) -> Result<(Server, u16), Error> {
    let compression = cluster.wal_compression();
    let spawn = |port: u16| {
        let mut args: Vec<OsString> = vec!["-D".into(), cluster::data(home).into()];
        args.extend(["-p".into(), port.to_string().into()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=on",
            "synchronous_commit=on",
            "full_page_writes=on",
            "shared_buffers=256MB",
            "max_wal_size=2GB",
            compression,
            "max_connections=200",
            "logging_collector=off",
            "log_destination=stderr",
        ] {
            args.extend(["-c".into(), setting.into()]);
        }
        Server::spawn(Program {
            name: NAME,
            path: cluster.program("postgres"),
            args,
            account: home.account(),
            dir: home.path().to_owned(),
            log: home.log(),
            stop: STOP,
        })
    };
    let pid_file = pid_file(home);
    launch(NAME, &home.log(), fixed, spawn, |port, pid| ready(&pid_file, port, pid))
}

/// Reads what the postmaster says about itself, as `pg_ctl` does: line 1 its id, 4 its port, 8 its state.
/// Unlike an answer on the port, this cannot come from somebody else's server.
fn ready(pid_file: &Path, port: u16, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let is = |n: usize, value: &str| lines.get(n) == Some(&value);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    is(0, &pid.to_string())
        && is(3, &port.to_string())
        && is(7, "ready")
        && TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1. The process that held the server is killed, and so is the watchdog, so the server lives on.
    /// 2. The lock is free, as the kernel gave it back, but `postmaster.pid` names a live postmaster.
    /// 3. The next start must stop that one and not be refused by it.
    #[test]
    fn a_server_that_nobody_holds_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let name = format!("eventpulse-leftover-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("create");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("mode");

        let Postgres { mut server, home, .. } = Postgres::start(&dir).expect("first");
        drop(home);
        assert!(!server.ended());
        let second = Postgres::start(&dir).expect("second");
        assert!(server.ended());
        assert_ne!(second.pid(), server.pid());
        second.stop().expect("stop");
        fs::remove_dir_all(dir).expect("remove");
    }
}
