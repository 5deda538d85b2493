//! What can go wrong with a private server, said so that the reader knows what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why a private server could not be started, stopped or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server's binaries are not on this machine.
    #[error("{server} was not found, install it with one of:\n{install}")]
    Missing { server: &'static str, install: &'static str },
    /// The only binaries found are older than what the product works with.
    #[error(
        "{} is version {found}, at least {needed} is needed, install it with one of:\n{install}",
        program.display()
    )]
    TooOld { program: PathBuf, found: String, needed: &'static str, install: &'static str },
    /// The data was made by another major version of Postgres.
    #[error(
        "{} was made by Postgres {major}, which is not installed: install that version, or remove the directory to start empty",
        data.display()
    )]
    OtherVersion { data: PathBuf, major: String },
    /// Somebody else is using this directory at this moment.
    #[error("{} is already in use by process {pid}", dir.display())]
    InUse { dir: PathBuf, pid: String },
    /// The data is there but the password that was made with it is gone.
    #[error("{} is missing but {} exists: put it back, or remove the data to start empty", password.display(), data.display())]
    NoPassword { password: PathBuf, data: PathBuf },
    /// A file operation failed.
    #[error("could not {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A program could not be run at all.
    #[error("could not run {}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A helper program ran and failed.
    #[error("{tool} failed ({status}):\n{output}")]
    Tool { tool: &'static str, status: ExitStatus, output: String },
    /// Root started us, Postgres refuses root, and there is no other user to run it as.
    #[error("postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`")]
    NoUser,
    /// No free port could be had from the system.
    #[error("no free port on 127.0.0.1")]
    Port(#[source] io::Error),
    /// The system gave no random bytes for the password.
    #[error("no random bytes")]
    Random(#[source] getrandom::Error),
    /// The server ended before it answered.
    #[error("{server} ended while starting, the end of {} says:\n{tail}", log.display())]
    Ended { server: &'static str, log: PathBuf, tail: String },
    /// The server runs but did not answer in time.
    #[error("{server} did not answer within {seconds} s, the end of {} says:\n{tail}", log.display())]
    Silent { server: &'static str, seconds: u64, log: PathBuf, tail: String },
    /// The server did not end when told to.
    #[error("{server} (process {pid}) does not stop")]
    Stuck { server: &'static str, pid: u32 },
}

/// For `map_err`: a file operation, with what was being done to which path.
pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// For `map_err`: a program that could not be run.
pub(crate) fn run(program: &Path) -> impl FnOnce(io::Error) -> Error {
    let program = program.to_owned();
    move |source| Error::Run { program, source }
}
