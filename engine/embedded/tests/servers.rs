//! The promises of the private servers, on the real binaries: data survives, nothing is orphaned, leftovers are no obstacle.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use eventpulse_embedded::{Error, Postgres, Redis, alive};

/// A directory that the servers' account can enter, removed when the test has passed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = env::temp_dir().join(format!("eventpulse-embedded-{name}-{}", process::id()));
        fs::create_dir_all(&dir).expect("create");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("mode");
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Runs one statement and gives the first column of its first row.
fn sql(postgres: &Postgres, statement: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let url = postgres.url("eventpulse");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        let talk = tokio::spawn(connection);
        let messages = client.simple_query(statement).await?;
        drop(client);
        talk.await.expect("connection task")?;
        Ok(messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    })
}

fn resp(redis: &Redis, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn postgres_keeps_its_data_over_stop_kill_and_restart() {
    let scratch = Scratch::new("pg-data");
    let mut postgres = Postgres::start(&scratch.0).expect("start");
    let (port, first) = (postgres.port(), postgres.pid());
    sql(&postgres, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").expect("write");
    for (setting, value) in [("fsync", "on"), ("synchronous_commit", "on"), ("shared_buffers", "256MB")] {
        let shown = sql(&postgres, &format!("SHOW {setting}")).expect("show");
        assert_eq!(shown.as_deref(), Some(value), "{setting}");
    }

    postgres.kill().expect("kill");
    assert!(!alive(first));
    sql(&postgres, "SELECT 1").expect_err("down");
    postgres.restart().expect("restart after kill");
    assert_eq!(postgres.port(), port);
    assert_ne!(postgres.pid(), first);
    sql(&postgres, "INSERT INTO t VALUES (2)").expect("write again");

    postgres.restart().expect("restart while running");
    let url = postgres.url("eventpulse");
    let last = postgres.pid();
    postgres.stop().expect("stop");
    assert!(!alive(last));

    let postgres = Postgres::start(&scratch.0).expect("start again");
    let count = sql(&postgres, "SELECT count(*) FROM t").expect("read");
    assert_eq!(count.as_deref(), Some("2"));
    let password = |url: &str| url.split(['@']).next().map(str::to_owned);
    assert_eq!(password(&url), password(&postgres.url("eventpulse")));
}

#[test]
fn redis_keeps_its_data_over_stop_kill_and_restart() {
    let scratch = Scratch::new("redis-data");
    let mut redis = Redis::start(&scratch.0).expect("start");
    let (port, first) = (redis.port(), redis.pid());
    assert!(resp(&redis, "SET k 1").expect("set").starts_with("+OK"));
    let policy = resp(&redis, "CONFIG GET maxmemory-policy").expect("config");
    assert!(policy.contains("noeviction"), "{policy}");

    redis.restart().expect("restart while running");
    assert_eq!(redis.port(), port);
    assert_ne!(redis.pid(), first);
    assert!(resp(&redis, "GET k").expect("get").starts_with("$1\r\n1"));

    redis.kill().expect("kill");
    assert!(!alive(redis.pid()));
    resp(&redis, "PING").expect_err("down");
    redis.restart().expect("restart after kill");
    assert!(resp(&redis, "GET k").expect("get").starts_with("$1\r\n1"));
    let last = redis.pid();
    redis.stop().expect("stop");
    assert!(!alive(last));

    let redis = Redis::start(&scratch.0).expect("start again");
    assert!(resp(&redis, "GET k").expect("get").starts_with("$1\r\n1"));
}

#[test]
fn a_directory_has_one_user_at_a_time() {
    let scratch = Scratch::new("one-user");
    let redis = Redis::start(&scratch.0).expect("start");
    let refused = Redis::start(&scratch.0).err().expect("refused");
    assert!(matches!(&refused, Error::InUse { pid, .. } if *pid == process::id().to_string()));
    assert!(resp(&redis, "PING").expect("unharmed").starts_with("+PONG"));
}

#[test]
fn stale_pid_files_of_strangers_are_no_obstacle() {
    let scratch = Scratch::new("stale");
    let mut stranger = Command::new("sleep").arg("600").spawn().expect("sleep");
    let mut postgres = Postgres::start(&scratch.0).expect("postgres");
    postgres.kill().expect("kill");
    drop(postgres);
    let mut redis = Redis::start(&scratch.0).expect("redis");
    redis.kill().expect("kill");
    drop(redis);

    // Both were killed, so both files are still there; the process ids in them went to somebody else.
    for file in ["postgres/data/postmaster.pid", "redis/redis.pid"] {
        let path = scratch.0.join(file);
        let text = fs::read_to_string(&path).expect("pid file");
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        fs::write(&path, format!("{}\n{rest}", stranger.id())).expect("forge");
    }
    let postgres = Postgres::start(&scratch.0).expect("postgres again");
    let redis = Redis::start(&scratch.0).expect("redis again");
    assert!(sql(&postgres, "SELECT 1").is_ok());
    assert!(resp(&redis, "PING").is_ok());
    assert!(alive(stranger.id()));
    stranger.kill().expect("kill");
    stranger.wait().expect("reap");
}

#[test]
fn a_failed_start_shows_the_end_of_the_log() {
    let scratch = Scratch::new("broken");
    Postgres::start(&scratch.0).expect("start").stop().expect("stop");
    let config = scratch.0.join("postgres/data/postgresql.conf");
    fs::write(config, "no_such_setting = 1\n").expect("break");
    let error = Postgres::start(&scratch.0).err().expect("fails");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn a_killed_process_leaves_no_server() {
    let scratch = Scratch::new("orphans");
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hold"))
        .arg(&scratch.0)
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let stdout = BufReader::new(holder.stdout.take().expect("piped"));
    let pids: Vec<u32> = stdout
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let pids = line.strip_prefix("holding ")?.to_owned();
            Some(pids.split(' ').filter_map(|pid| pid.parse().ok()).collect())
        })
        .expect("the holder says what it holds");
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|&pid| alive(pid)));

    let refused = Redis::start(&scratch.0).err().expect("in use");
    assert!(matches!(&refused, Error::InUse { pid, .. } if *pid == holder.id().to_string()));

    holder.kill().expect("SIGKILL");
    holder.wait().expect("reap");
    // At once, while the old servers may still be on their way out.
    let postgres = Postgres::start(&scratch.0).expect("take over");
    let redis = Redis::start(&scratch.0).expect("take over");
    wait_until("the old servers are gone", || !pids.iter().any(|&pid| alive(pid)));
    assert!(sql(&postgres, "SELECT 1").is_ok());
    assert!(resp(&redis, "PING").is_ok());
}

#[test]
fn root_may_keep_the_data_where_postgres_cannot_go() {
    if !rustix::process::geteuid().is_root() {
        // Only root has to hand the server to another account.
        return;
    }
    let scratch = Scratch::new("closed");
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o700)).expect("mode");
    let postgres = Postgres::start(&scratch.0).expect("start");
    sql(&postgres, "CREATE TABLE t (n int)").expect("write");
    postgres.stop().expect("stop");
    let link = scratch.0.join("postgres");
    assert!(link.is_symlink());
    let real = link.canonicalize().expect("target");
    assert!(!real.starts_with(&scratch.0));

    let postgres = Postgres::start(&scratch.0).expect("start again");
    let count = sql(&postgres, "SELECT count(*) FROM t").expect("the same data");
    assert_eq!(count.as_deref(), Some("0"));
    postgres.stop().expect("stop");

    // Whoever clears the other place leaves a symlink to nothing, which starts empty.
    fs::remove_dir_all(&real).expect("remove");
    let postgres = Postgres::start(&scratch.0).expect("start empty");
    sql(&postgres, "SELECT * FROM t").expect_err("a new cluster");
    postgres.stop().expect("stop");
    fs::remove_dir_all(&real).expect("remove");
}
