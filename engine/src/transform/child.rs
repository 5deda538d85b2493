//! The process that compiles a module, seen from here: started, fed, and what its end means.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};

use super::{
    CompileError, Rejected,
    check::rejected,
    compile::{Order, Verdict},
};

/// Bytes of machine code from one byte of a module, and beside those of a small one. It is two to three of an ordinary one.
const EXPANSION_MAX: usize = 8;
const ARTEFACT_BYTES: usize = 16 << 20;
const STDERR_BYTES_MAX: u64 = 4 << 10;

/// The process counts its own CPU time and ends itself. Beyond this many times that, and this time, the machine had none to
/// give it: it is nice to others.
const WALL_FACTOR: u32 = 10;
const WALL_MIN: Duration = Duration::from_secs(120);

/// Every code there is, so that a verdict's text becomes one of ours.
const CODES: [&str; 6] = [
    "not_wasm",
    "no_transform_export",
    "forbidden_import",
    "memory_over_limit",
    "too_complex",
    "does_not_compile",
];

/// # Cancel safety
/// Dropping it kills the process.
pub(super) async fn compile(program: &Path, order: &Order, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    let failed = |what: &str, error: io::Error| CompileError::Failed(format!("{what}: {error}"));
    let mut child = Command::new(program)
        .arg("compile-transform")
        // Nothing of ours is for it, secrets least of all.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("its process could not be started", error))?;
    let wall = Duration::from_secs(order.cpu_seconds).saturating_mul(WALL_FACTOR).max(WALL_MIN);
    let Ok(spoken) = timeout(wall, speak(&mut child, order, wasm)).await else {
        return Err(CompileError::Failed(format!(
            "the machine was too busy: its process did not end within {} s",
            wall.as_secs()
        )));
    };
    let (stdout, stderr, status) =
        spoken.map_err(|error| failed("its process could not be read from", error))?;
    if stdout.len() >= spoken_bytes_max(wasm) {
        let message = format!("the module becomes more than {} MiB of machine code", stdout.len() >> 20);
        return Err(rejected("too_complex", message).into());
    }
    if !status.success() {
        return Err(ended_badly(status, order, &stderr));
    }
    verdict(stdout)
}

async fn speak(child: &mut Child, order: &Order, wasm: &[u8]) -> io::Result<(Vec<u8>, String, ExitStatus)> {
    let pipe = || io::Error::other("a pipe is missing");
    let mut stdin = child.stdin.take().ok_or_else(pipe)?;
    let stdout = child.stdout.take().ok_or_else(pipe)?;
    let stderr = child.stderr.take().ok_or_else(pipe)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    let write = async move {
        // A process that is gone says why by its end.
        let _ = stdin.write_all(&line).await;
        let _ = stdin.write_all(wasm).await;
    };
    // Each pipe is closed when it has given what is read of it: a process that writes more is not waited for.
    let spoken_max = spoken_bytes_max(wasm) as u64;
    let ((), out, err) = tokio::join!(write, read(stdout, spoken_max), read(stderr, STDERR_BYTES_MAX));
    Ok((out?, String::from_utf8_lossy(&err?).into_owned(), child.wait().await?))
}

async fn read(pipe: impl AsyncRead + Unpin, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.take(bytes_max).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn spoken_bytes_max(wasm: &[u8]) -> usize {
    wasm.len().saturating_mul(EXPANSION_MAX).saturating_add(ARTEFACT_BYTES)
}

fn verdict(mut stdout: Vec<u8>) -> Result<Vec<u8>, CompileError> {
    let nonsense = || CompileError::Failed("its process gave no verdict".to_owned());
    let line = stdout.iter().position(|byte| *byte == b'\n').ok_or_else(nonsense)?;
    match serde_json::from_slice(&stdout[..line]).map_err(|_| nonsense())? {
        Verdict::Compiled => {
            stdout.drain(..=line);
            Ok(stdout)
        }
        Verdict::Rejected { code, message } => {
            let code = CODES.into_iter().find(|known| *known == code).unwrap_or("does_not_compile");
            Err(Rejected { code, message: super::output::text(&message) }.into())
        }
    }
}

/// A module that ends its compiler is not tried again: it would do the same tomorrow.
fn ended_badly(status: ExitStatus, order: &Order, stderr: &str) -> CompileError {
    let ended_by = |signal: Signal| status.signal() == Some(signal.as_raw());
    if ended_by(Signal::XCPU) {
        let message = format!("compiling the module takes more than {} s", order.cpu_seconds);
        return rejected("too_complex", message).into();
    }
    // What Rust does without memory, and what happens when the stack cannot grow for want of it.
    if ended_by(Signal::SEGV) || ended_by(Signal::ABORT) && stderr.contains("memory allocation") {
        let message =
            format!("compiling the module takes more than {} MiB of memory", order.address_bytes_max >> 20);
        return rejected("too_complex", message).into();
    }
    // A panic of the compiler is exit code 101.
    if ended_by(Signal::ABORT) || status.code() == Some(101) {
        crate::logs::warn_seldom!(%status, stderr, "the compiler failed on a module");
        return rejected("does_not_compile", "the module makes the compiler fail".to_owned()).into();
    }
    let last = stderr.trim_end().lines().last().unwrap_or("it said nothing");
    CompileError::Failed(format!("its process ended with {status}: {last}"))
}
