//! One server process that cannot outlive us.
//!
//! The server is started by a small shell that has its own process group, so that Ctrl-C at the terminal
//! reaches us alone and we stop things in order. The shell's standard input is a pipe whose other end
//! we hold and never write to. However we end, the kernel closes our end; a second shell that only waits
//! for that then stops the server. The first shell waits for the server, so it ends when the server does,
//! and its end is how we notice.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Error;
use crate::error::run;
use crate::process;
use crate::user::{Account, become_account};

/// The signals are sent again each second: a signal that comes before the server has put up its handlers is
/// lost, as shells start background jobs with SIGINT ignored. SIGCONT follows each, for a server that a test
/// has halted. The server gets neither end of our pipes.
const SCRIPT: &str = r#"
gentle=$1 firm=$2 log=$3
shift 3
exec 3<&0 </dev/null
"$@" 3<&- >>"$log" 2>&1 &
server=$!
echo "$server"
exec >/dev/null
(
    read -r _ <&3
    sent=0
    while kill -"$gentle" "$server"; do
        kill -CONT "$server"
        sent=$((sent + 1))
        [ "$sent" -lt 30 ] || gentle=$firm
        sleep 1
    done
) &
watcher=$!
exec 3<&-
wait "$server"
code=$?
kill "$watcher"
wait "$watcher"
exit "$code"
"#;

/// Spawning one at a time: where a pipe cannot be made close-on-exec in one step, a server that is
/// spawned at the same moment would inherit the end of the pipe that must close with us.
static SPAWN: Mutex<()> = Mutex::new(());

/// How a kind of server is told to end.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    /// An orderly end.
    pub(crate) gentle: (&'static str, Signal),
    /// For when that takes too long; must still be safe for the data.
    pub(crate) firm: (&'static str, Signal),
}

/// What to run.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) account: Option<Account>,
    pub(crate) dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) stop: Stop,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    name: &'static str,
    shell: Child,
    /// Held for its end only; the watchdog acts when it closes.
    guard: Option<ChildStdin>,
    pid: u32,
    stop: Stop,
}

impl Server {
    /// Starts the program; it may end at once, see [`Server::ended`].
    pub(crate) fn spawn(program: Program) -> Result<Server, Error> {
        let shell_path = Path::new("/bin/sh");
        let mut command = Command::new(shell_path);
        command
            .args(["-c", SCRIPT, "watchdog"])
            .args([program.stop.gentle.0, program.stop.firm.0])
            .arg(&program.log)
            .arg(&program.path)
            .args(&program.args)
            .current_dir(&program.dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        become_account(&mut command, program.account);
        clean_environment(&mut command);

        let mut shell = {
            let _one = SPAWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            command.spawn().map_err(run(shell_path))?
        };
        let guard = shell.stdin.take();
        let stdout = shell.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let Some(pid) = read.ok().and_then(|_| line.trim().parse().ok()) else {
            // The shell could not even start a background job, which it does before it prints.
            let status = shell.wait().map_err(run(shell_path))?;
            return Err(Error::Tool {
                tool: program.name,
                status,
                output: "the shell that watches the server did not start it".to_owned(),
            });
        };
        Ok(Server { name: program.name, shell, guard, pid, stop: program.stop })
    }

    /// The server's own process id, not the shell's.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Says whether the server has ended, of itself or because it was told to.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// Ends the server in order and waits for it.
    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        if self.ended() {
            return Ok(());
        }
        process::signal(self.pid, self.stop.gentle.1);
        // A halted server, as a test may leave it, would not hear anything but a kill.
        process::signal(self.pid, Signal::CONT);
        if self.wait(Duration::from_secs(30)) {
            return Ok(());
        }
        process::signal(self.pid, self.stop.firm.1);
        if self.wait(Duration::from_secs(10)) {
            return Ok(());
        }
        // From here on the watchdog goes on trying, also after we are gone.
        self.guard = None;
        Err(Error::Stuck { server: self.name, pid: self.pid })
    }

    /// Ends the server and every process of its own at once, as a power cut would.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        if self.ended() {
            return Ok(());
        }
        // Halted first, so that no child is born between the look and the kill.
        process::signal(self.pid, Signal::STOP);
        let children = process::children(self.pid);
        for &pid in std::iter::once(&self.pid).chain(&children) {
            process::signal(pid, Signal::KILL);
        }
        let gone = self.wait(Duration::from_secs(10))
            && children.iter().all(|&pid| process::wait_gone(pid, Duration::from_secs(10)));
        if gone { Ok(()) } else { Err(Error::Stuck { server: self.name, pid: self.pid }) }
    }

    fn wait(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while !self.ended() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Takes away the settings that Postgres programs read from the environment, and fixes the language:
/// macOS refuses to start Postgres with no locale at all.
pub(crate) fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(log: &Path, script: &str) -> Server {
        Server::spawn(Program {
            name: "sleeper",
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            account: None,
            dir: "/".into(),
            log: log.to_owned(),
            stop: Stop { gentle: ("TERM", Signal::TERM), firm: ("KILL", Signal::KILL) },
        })
        .expect("spawn")
    }

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("eventpulse-{name}-{}.log", std::process::id()))
    }

    #[test]
    fn a_server_that_ends_by_itself_is_noticed() {
        let log = log("ends");
        let mut server = sleeper(&log, "echo said; exit 3");
        assert!(server.wait(Duration::from_secs(5)));
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "said\n");
        server.stop().expect("already gone");
        std::fs::remove_file(log).expect("remove");
    }

    #[test]
    fn closing_the_pipe_ends_the_server() {
        let log = log("pipe");
        let mut server = sleeper(&log, "exec sleep 60");
        let pid = server.pid();
        assert!(process::alive(pid));
        server.guard = None;
        assert!(process::wait_gone(pid, Duration::from_secs(5)));
        assert!(server.wait(Duration::from_secs(5)));
        // The server may have been ended before its output was even redirected.
        let _ = std::fs::remove_file(log);
    }

    #[test]
    fn kill_takes_the_children_too() {
        let log = log("kill");
        let mut server = sleeper(&log, "sleep 60 & sleep 60 & wait");
        let deadline = Instant::now() + Duration::from_secs(5);
        while process::children(server.pid()).len() < 2 {
            assert!(Instant::now() < deadline, "no children");
            std::thread::sleep(Duration::from_millis(5));
        }
        let children = process::children(server.pid());
        server.kill().expect("kill");
        assert!(!children.into_iter().any(process::alive));
        std::fs::remove_file(log).expect("remove");
    }
}
