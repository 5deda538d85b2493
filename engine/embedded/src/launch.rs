//! Starts a server and waits until it answers, on another port when the first was taken in between.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::home::tail;
use crate::port;
use crate::watchdog::Server;

/// How long a server may take. Recovery of a large log after a crash is the slow case.
const START_MAX: Duration = Duration::from_secs(60);
/// Losing the race for a port five times means that something else is wrong.
const PORTS_MAX: u32 = 5;

/// Spawns with `spawn(port)` until `ready(port, pid)`. With `fixed`, only that port will do.
pub(crate) fn launch(
    name: &'static str,
    log: &Path,
    fixed: Option<u16>,
    spawn: impl Fn(u16) -> Result<Server, Error>,
    ready: impl Fn(u16, u32) -> bool,
) -> Result<(Server, u16), Error> {
    let deadline = Instant::now() + START_MAX;
    let mut tries = 1;
    loop {
        let port = fixed.map_or_else(port::free, Ok)?;
        let mut server = spawn(port)?;
        while !server.ended() {
            if ready(port, server.pid()) {
                return Ok((server, port));
            }
            if Instant::now() >= deadline {
                return Err(Error::Silent {
                    server: name,
                    seconds: START_MAX.as_secs(),
                    log: log.to_owned(),
                    tail: tail(log),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Looking at the port is surer than looking for words in the log.
        if tries == PORTS_MAX || !port::taken(port) {
            return Err(Error::Ended { server: name, log: log.to_owned(), tail: tail(log) });
        }
        if fixed.is_some() {
            std::thread::sleep(Duration::from_millis(200) * tries);
        }
        tries += 1;
    }
}
