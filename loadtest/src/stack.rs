//! Everything that takes part in a load test: a private Postgres and Redis, the engine, the receiver, an account.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use eventpulse_embedded::{Postgres, Redis};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cpu::Pids;

/// Any error: these are tools, and their caller prints it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A setting of the engine as it is given on a command line.
///
/// # Errors
/// When it is not of the form NAME=VALUE: left out, it would be measured as if it had been set.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "not NAME=VALUE".to_owned())
}

/// How long a process may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The two servers. They end with the process that started them, however that ends.
pub struct Servers {
    pub postgres: Postgres,
    pub redis: Redis,
    pub dir: PathBuf,
}

impl Servers {
    /// # Errors
    /// When a server does not start; the message says what to install.
    pub fn start() -> Result<Servers, Error> {
        let dir = std::env::temp_dir().join(format!("eventpulse-load-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        // Postgres may run as another user.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(Servers { postgres: Postgres::start(&dir)?, redis: Redis::start(&dir)?, dir })
    }

    /// Both, and Postgres as one that has been at work for a while: it writes its log into files that it has, where a new one makes
    /// each first, which holds up every commit for some 5 to 80 ms.
    ///
    /// # Errors
    /// When a server does not start, or Postgres refuses.
    pub async fn start_warm() -> Result<Servers, Error> {
        let servers = Servers::start()?;
        let admin = crate::compare::parts::postgres(&servers.postgres.url("postgres")).await?;
        for _ in 0..2 {
            admin.batch_execute(FILL_LOG).await?;
            admin.batch_execute("CHECKPOINT").await?;
        }
        Ok(servers)
    }

    /// Makes an empty database and gives its URL.
    ///
    /// # Errors
    /// When Postgres refuses.
    pub async fn database(&self, name: &str) -> Result<String, Error> {
        let admin = crate::compare::parts::postgres(&self.postgres.url("postgres")).await?;
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        admin.batch_execute("CHECKPOINT").await?;
        Ok(self.postgres.url(name))
    }

    /// Stops both and removes what they kept.
    ///
    /// # Errors
    /// When one does not stop.
    pub fn stop(self) -> Result<(), Error> {
        self.postgres.stop()?;
        self.redis.stop()?;
        eventpulse_embedded::remove(&self.dir)?;
        Ok(())
    }
}

/// A gigabyte of the log, about as much as there is between two checkpoints under load. Those files are used again after the next.
const FILL_LOG: &str = "SELECT count(pg_logical_emit_message(false, 'warm', repeat('x', 1000000))) FROM generate_series(1, 1000)";

/// A child that is killed when it is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that prints its address on its first line.
    ///
    /// # Errors
    /// When it does not.
    pub fn that_says(program: &Path, arguments: &[&str]) -> Result<(Process, String), Error> {
        let mut child =
            Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        Ok((Process { child }, line.trim().to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, waits, and kills it in the end.
    pub fn stop(mut self) {
        let pid = self.pid().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that was built beside this one.
///
/// # Errors
/// When it is not there.
pub fn sibling(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is not built", path.display()).into()) }
}

/// A running engine with a database of its own.
pub struct Engine {
    pub process: Process,
    pub gateway: SocketAddr,
    pub dispatcher: Option<SocketAddr>,
    pub database_url: String,
}

fn free_port() -> Result<u16, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Engine {
    /// Migrates `database_url` and serves on free ports. `role` is `api`, `dispatcher` or `both`.
    ///
    /// # Errors
    /// When it does not come up; its log is in `dir`.
    pub fn start(
        program: &Path,
        role: &str,
        database_url: &str,
        redis_url: &str,
        settings: &[(String, String)],
        dir: &Path,
    ) -> Result<Engine, Error> {
        let (port, dispatcher_port) = (free_port()?, free_port()?);
        let mut environment: HashMap<String, String> = HashMap::from([
            ("DATABASE_URL".to_owned(), database_url.to_owned()),
            ("REDIS_URL".to_owned(), redis_url.to_owned()),
            ("PORT".to_owned(), port.to_string()),
            ("DISPATCHER_PORT".to_owned(), dispatcher_port.to_string()),
            ("ALLOW_PRIVATE_TARGETS".to_owned(), "true".to_owned()),
        ]);
        environment.extend(settings.iter().cloned());
        let migrated = Command::new(program).arg("migrate").envs(&environment).output()?;
        if !migrated.status.success() {
            let why = String::from_utf8_lossy(&migrated.stderr).into_owned();
            return Err(format!("{} migrate failed: {}", program.display(), why.trim()).into());
        }
        let mut command = Command::new(program);
        command.arg("serve").envs(&environment).stdin(Stdio::null());
        if role != "both" {
            command.args(["--role", role]);
        }
        let log = File::create(dir.join(format!("engine-{port}.log")))?;
        command.stdout(log.try_clone()?).stderr(log);
        let process = Process { child: command.spawn()? };
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        // A dispatcher alone has one port, and its metrics are there.
        let gateway = local(if role == "dispatcher" { dispatcher_port } else { port });
        let engine = Engine {
            process,
            gateway,
            dispatcher: (role != "api").then(|| local(dispatcher_port)),
            database_url: database_url.to_owned(),
        };
        engine.wait(dir)?;
        Ok(engine)
    }

    fn wait(&self, dir: &Path) -> Result<(), Error> {
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(self.gateway).is_err() {
            if std::time::Instant::now() > deadline {
                return Err(format!("the engine does not serve; its log is in {}", dir.display()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn pids(&self, servers: &Servers) -> Pids {
        Pids { engine: self.process.pid(), postgres: servers.postgres.pid(), redis: servers.redis.pid() }
    }
}

/// An account with one webhook.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    pub key: String,
    pub secret: String,
}

/// Registers an account whose webhook is `url`.
///
/// # Errors
/// When the gateway does not answer with 201.
pub async fn register(client: &reqwest::Client, gateway: SocketAddr, url: &str) -> Result<Account, Error> {
    let answer = register_as(client, gateway, None, &json!({ "name": "load", "url": url })).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("an answer without a key");
    Ok(Account { key: text(&answer["apiKey"])?, secret: text(&answer["webhook"]["secret"])? })
}

/// Registers a webhook, for a new account without a key, and gives the answer.
///
/// # Errors
/// When the gateway does not answer with 201.
pub async fn register_as(
    client: &reqwest::Client,
    gateway: SocketAddr,
    key: Option<&str>,
    body: &Value,
) -> Result<Value, Error> {
    let mut request = client.post(format!("http://{gateway}/register-webhook")).json(body);
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    Ok(request.send().await?.error_for_status()?.json().await?)
}

/// A client for the few requests that are not the load.
///
/// # Errors
/// When none can be made.
pub fn client() -> Result<reqwest::Client, Error> {
    Ok(reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?)
}

/// One counter, or several with different labels together, of a gateway's `/metrics`.
///
/// # Errors
/// When it does not answer.
pub async fn metric(client: &reqwest::Client, gateway: SocketAddr, name: &str) -> Result<f64, Error> {
    let text = client.get(format!("http://{gateway}/metrics")).send().await?.text().await?;
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    });
    Ok(values.sum())
}
