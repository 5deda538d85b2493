//! A private Prometheus, for tests that ask it about the engine's metrics, rules and dashboard.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::Error;
use crate::find;
use crate::home::Home;
use crate::launch::launch;
use crate::watchdog::{Program, Server, Stop};

const NAME: &str = "prometheus";
const STOP: Stop = Stop { gentle: ("TERM", Signal::TERM), firm: ("KILL", Signal::KILL) };

/// A private Prometheus. Dropping it stops it.
pub struct Prometheus {
    // Fields drop in this order: the server ends before its directory is unlocked.
    _server: Server,
    port: u16,
    _home: Home,
}

impl Prometheus {
    /// Starts a private server under `dir` with the configuration in the file `config`, and waits, at most a minute, until it
    /// answers.
    ///
    /// # Errors
    /// When there is no binary, the directory is in use, or the server does not come up: the configuration may be wrong.
    pub fn start(dir: &Path, config: &Path) -> Result<Prometheus, Error> {
        let program = find::prometheus()?;
        let home = Home::open(dir, NAME, |_| Ok(None))?;
        let data = home.path().join("data");
        let spawn = |port: u16| {
            let option = |name: &str, value: &Path| {
                let mut option = OsString::from(name);
                option.push(value);
                option
            };
            let listen = format!("--web.listen-address=127.0.0.1:{port}");
            Server::spawn(Program {
                name: NAME,
                path: program.clone(),
                args: vec![
                    option("--config.file=", config),
                    option("--storage.tsdb.path=", &data),
                    listen.into(),
                    "--log.level=warn".into(),
                ],
                account: home.account(),
                dir: home.path().to_owned(),
                log: home.log(),
                stop: STOP,
            })
        };
        let ready = |port, _| answers(port, &data).unwrap_or(false);
        let (server, port) = launch(NAME, &home.log(), None, spawn, ready)?;
        Ok(Prometheus { _server: server, port, _home: home })
    }

    /// Gives the URL of the server, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Asks whether the server on `port` serves and is ours: whoever took the port has its data elsewhere.
fn answers(port: u16, data: &Path) -> std::io::Result<bool> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /api/v1/status/flags HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut reply = Vec::new();
    // Bounded: the flags are some kilobytes, and whoever sits on the port may talk for ever.
    stream.take(256 * 1024).read_to_end(&mut reply)?;
    let text = String::from_utf8_lossy(&reply);
    let ok = text.lines().next().is_some_and(|line| line.contains(" 200 "));
    Ok(ok && text.contains(&*data.to_string_lossy()))
}
