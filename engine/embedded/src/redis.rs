//! A private Redis (or Valkey): an append-only file, no snapshots, nothing evicted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::Error;
use crate::find;
use crate::home::Home;
use crate::launch::launch;
use crate::port::{self, Kept};
use crate::process;
use crate::watchdog::{Program, Server, Stop};

const NAME: &str = "redis";
/// By what names its processes are known.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
const STOP: Stop = Stop { gentle: ("TERM", Signal::TERM), firm: ("KILL", Signal::KILL) };

/// A private Redis. Dropping it stops it.
pub struct Redis {
    // Fields drop in this order: the server ends before its directory is unlocked.
    server: Server,
    kept: Option<Kept>,
    port: u16,
    program: PathBuf,
    /// Beyond ours.
    args: Vec<String>,
    home: Home,
}

impl Redis {
    /// Starts a private server under `dir` and waits, at most a minute, until it answers.
    ///
    /// # Errors
    /// When there is no usable binary, the directory is in use, or the server does not come up.
    pub fn start(dir: &Path) -> Result<Redis, Error> {
        Redis::start_with(dir, &[])
    }

    /// Does the same with more arguments of the server, also at each [`Redis::restart`].
    ///
    /// # Errors
    /// As for [`Redis::start`].
    pub fn start_with(dir: &Path, args: &[&str]) -> Result<Redis, Error> {
        let program = find::redis()?;
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let home = Home::open(dir, NAME, |_| Ok(None))?;
        stop_leftover(&home)?;
        let (server, port) = run(&program, &home, &args, None)?;
        Ok(Redis { server, kept: None, port, program, args, home })
    }

    /// Gives the URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Gives the port, which stays the same over [`Redis::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives the process id of the server, or of the last one when it is down.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Stops the server in order and waits for it.
    ///
    /// # Errors
    /// When it does not end, even when told firmly.
    pub fn stop(mut self) -> Result<(), Error> {
        self.server.stop()
    }

    /// Ends the server at once, with no chance to write anything more. The port stays ours.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.server.kill()?;
        // Best effort: without it the port is very likely still free when it is wanted again.
        self.kept = port::keep(self.port).ok();
        Ok(())
    }

    /// Starts the server again on the same port and data, stopping it in order first if it runs.
    ///
    /// # Errors
    /// As for [`Redis::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.server.stop()?;
        stop_leftover(&self.home)?;
        self.kept = None;
        (self.server, _) = run(&self.program, &self.home, &self.args, Some(self.port))?;
        Ok(())
    }
}

fn pid_file(home: &Home) -> PathBuf {
    home.path().join("redis.pid")
}

/// Stops what an earlier run left behind; a pid file whose process is somebody else means nothing.
fn stop_leftover(home: &Home) -> Result<(), Error> {
    match process::from_pid_file(&pid_file(home)) {
        Some(pid) if process::belongs(pid, &PROGRAMS, home.path()) => {
            if process::stop(pid, STOP.gentle.1, STOP.firm.1) {
                Ok(())
            } else {
                Err(Error::Stuck { server: NAME, pid })
            }
        }
        _ => Ok(()),
    }
}

fn run(program: &Path, home: &Home, more: &[String], fixed: Option<u16>) -> Result<(Server, u16), Error> {
    let spawn = |port: u16| {
        let mut args: Vec<std::ffi::OsString> = vec!["--port".into(), port.to_string().into()];
        args.extend(["--dir".into(), home.path().into()]);
        args.extend(["--pidfile".into(), pid_file(home).into()]);
        // The title is left alone, as it tells the next run whose process this is where `/proc` cannot.
        let fixed = "--bind 127.0.0.1 --protected-mode yes --daemonize no --appendonly yes \
                     --appendfsync everysec --maxmemory-policy noeviction --set-proc-title no --save";
        args.extend(fixed.split_ascii_whitespace().map(Into::into));
        args.push("".into());
        args.extend(more.iter().map(Into::into));
        Server::spawn(Program {
            name: NAME,
            path: program.to_owned(),
            args,
            account: home.account(),
            dir: home.path().to_owned(),
            log: home.log(),
            stop: STOP,
        })
    };
    launch(NAME, &home.log(), fixed, spawn, |port, pid| answers(port, pid).unwrap_or(false))
}

/// Asks whether the server on `port` is ours and has loaded its data. Somebody else's Redis answers too
/// when it took the port, so the process id is compared.
fn answers(port: u16, pid: u32) -> std::io::Result<bool> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n")?;
    let mut reply = Vec::new();
    // Bounded: the section is about one kilobyte, and whoever sits on the port may talk for ever.
    stream.take(64 * 1024).read_to_end(&mut reply)?;
    let text = String::from_utf8_lossy(&reply);
    let ours = format!("process_id:{pid}");
    Ok(text.starts_with("+PONG") && text.lines().any(|line| line.trim_end() == ours))
}
