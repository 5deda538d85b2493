//! The data directory of a private Postgres: made once, whole or not at all, with its password beside it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::error::{file, run};
use crate::home::{Home, give};
use crate::user::{Account, become_account};
use crate::watchdog::clean_environment;

/// The one user, who owns everything.
pub(crate) const USER: &str = "eventpulse";
const DATABASE: &str = "eventpulse";

/// Binaries, data and password that fit together.
pub(crate) struct Cluster {
    bin: PathBuf,
    data: PathBuf,
    dir: PathBuf,
    account: Option<Account>,
    password: String,
}

/// Gives the data directory within `home`.
pub(crate) fn data(home: &Home) -> PathBuf {
    home.path().join("data")
}

impl Cluster {
    /// Opens the cluster in `home`, making it first when there is none.
    pub(crate) fn open(bin: PathBuf, home: &Home) -> Result<Cluster, Error> {
        let mut cluster = Cluster {
            bin,
            data: data(home),
            dir: home.path().to_owned(),
            account: home.account(),
            password: String::new(),
        };
        let path = cluster.dir.join("password");
        if cluster.data.exists() {
            cluster.password = match fs::read_to_string(&path) {
                Ok(text) => text.trim().to_owned(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NoPassword { password: path, data: cluster.data });
                }
                Err(e) => return Err(file("read", &path)(e)),
            };
        } else {
            cluster.password = new_password(&path, cluster.account)?;
            cluster.make(&path)?;
        }
        Ok(cluster)
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Gives the best setting that this server accepts: lz4 is cheapest, but needs Postgres 15 built with it.
    pub(crate) fn wal_compression(&self) -> &'static str {
        let lz4 = "wal_compression=lz4";
        let asked = self
            .command("postgres")
            .arg("-D")
            .arg(&self.data)
            .args(["-c", lz4, "-C", "wal_compression"])
            .stdin(Stdio::null())
            .output();
        match asked {
            Ok(output) if output.status.success() => lz4,
            _ => "wal_compression=on",
        }
    }

    /// Makes the data directory under another name, complete with its database, and then renames it:
    /// whatever interrupts us, `data` is whole when it exists.
    fn make(&self, password: &Path) -> Result<(), Error> {
        let new = self.dir.join("data.new");
        match fs::remove_dir_all(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove", &new)(e)),
            _ => {}
        }
        let mut initdb = self.command("initdb");
        initdb
            .arg("-D")
            .arg(&new)
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .args([format!("--username={USER}").as_ref(), OsStr::new("--pwfile")])
            .arg(password);
        finish("initdb", initdb, "")?;

        // In single-user mode an error would only be printed, unless it is told to end on one.
        let mut single = self.command("postgres");
        single.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(&new).arg("postgres");
        finish("postgres", single, &format!("CREATE DATABASE {DATABASE}\n"))?;
        fs::rename(&new, &self.data).map_err(file("create", &self.data))
    }

    /// Prepares one of the server's programs to run as the server does.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        // The account may not be able to enter the directory that we were started in.
        command.current_dir(&self.dir);
        become_account(&mut command, self.account);
        clean_environment(&mut command);
        command
    }
}

/// Makes a password and leaves it in a file that only the server's account can read.
fn new_password(path: &Path, account: Option<Account>) -> Result<String, Error> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    // Hexadecimal, as it goes into a URL.
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove", path)(e)),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{password}"))
        .map_err(file("write", path))?;
    give(path, account)?;
    Ok(password)
}

/// Runs a tool to its end with `input`, which must fit into a pipe's buffer.
fn finish(tool: &'static str, mut command: Command, input: &str) -> Result<(), Error> {
    let program = PathBuf::from(command.get_program());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(run(&program))?;
    // Dropping the pipe after the write is the end of input. A tool that ended early is told by its status.
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(run(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(Error::Tool { tool, status: output.status, output: String::from_utf8_lossy(&text).trim().to_owned() })
}
