//! The real binary in a process of its own, to be stopped and killed.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use eventpulse_testkit::{eventually, stack};

use super::PATIENCE;

/// A running `eventpulse`. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    /// What it wrote so far, to either stream.
    output: Arc<Mutex<String>>,
}

/// The binary with a clean environment, and the arguments of a command line.
pub(crate) fn command(line: &str) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_eventpulse")), line)
}

/// The same for a program of another name.
pub(crate) fn command_of(program: &Path, line: &str) -> Command {
    let mut command = Command::new(program);
    command.args(line.split_whitespace());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// The same for `serve` on free ports, with a database and the shared Redis.
pub(crate) fn serve(database: &str, line: &str) -> Command {
    let mut command = command(&format!("serve --port 0 --dispatcher-port 0 {line}"));
    command
        .env("DATABASE_URL", database)
        .env("REDIS_URL", stack().redis_url())
        .env("ALLOW_PRIVATE_TARGETS", "true")
        .env("EVENTPULSE_RETRY__SCHEDULE", "200ms,400ms");
    command
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Process {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let output = Arc::new(Mutex::new(String::new()));
        read(child.stdout.take().expect("piped"), output.clone());
        read(child.stderr.take().expect("piped"), output.clone());
        Process { child, output }
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().expect("the readers do not panic").clone()
    }

    /// Waits for a text in the output; returns the whole output.
    pub(crate) async fn says(&self, text: &str) -> String {
        eventually(&format!("the process says {text:?}"), PATIENCE * 2, async || {
            let output = self.output();
            if output.contains(text) { Ok(output) } else { Err(output) }
        })
        .await
    }

    /// Waits until it serves; returns the gateway's base URL, empty without that role.
    pub(crate) async fn ready(&self) -> String {
        let output = self.says(" ready ").await;
        let address = output.split("gateway=\"").nth(1).and_then(|rest| rest.split('"').next());
        match address {
            Some(address) if address != "-" => format!("http://{address}"),
            _ => String::new(),
        }
    }

    pub(crate) fn id(&self) -> i32 {
        rustix::process::Pid::from_child(&self.child).as_raw_pid()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    /// SIGKILL, and waits for it to be gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the process is there");
        self.child.wait().expect("it ended");
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        eventually("the process ends", PATIENCE + Duration::from_secs(30), async || {
            match self.child.try_wait().expect("a child") {
                Some(status) => Ok(status),
                None => Err(self.output.lock().expect("the readers do not panic").clone()),
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut output = output.lock().expect("the readers do not panic");
            output.push_str(&line);
            output.push_str(" \n");
        }
    });
}
