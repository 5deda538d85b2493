//! Where a server keeps its files, and who may use them: `<dir>/<name>/` and the lock `<dir>/<name>.lock`.
//!
//! The lock belongs to the open file, so the kernel frees it with the process, whatever happened to it.
//! When the server runs under another account that cannot enter `dir` (root's home, say), the files live in
//! a place that it can enter and `<dir>/<name>` is a symlink to them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::Error;
use crate::error::file;
use crate::process;
use crate::user::Account;

/// How much of the log's end goes into an error.
const TAIL_LINES: usize = 15;
const TAIL_BYTES_MAX: u64 = 16 * 1024;
/// How often the lock of an owner that is gone is tried again, every ten milliseconds.
const LOCK_TRIES_MAX: u32 = 50;

/// The locked directory of one server.
pub(crate) struct Home {
    path: PathBuf,
    /// Set for a server that runs under another account than ours.
    account: Option<Account>,
    _lock: Lock,
}

/// A held lock. Unlocked by name when dropped: closing the file is not enough while a child that another
/// thread has just forked still has a copy of it.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Home {
    /// Locks and prepares the home of server `name` under `dir`; `account` picks who owns it.
    pub(crate) fn open(
        dir: &Path,
        name: &str,
        account: impl FnOnce(&Path) -> Result<Option<Account>, Error>,
    ) -> Result<Home, Error> {
        fs::create_dir_all(dir).map_err(file("create", dir))?;
        let dir = dir.canonicalize().map_err(file("resolve", dir))?;
        let lock = lock(&dir, name)?;

        let place = dir.join(name);
        let account = account(&place)?;
        let path = match account {
            Some(account) if !usable(&place, &dir, account) => elsewhere(&place, account)?,
            _ => place,
        };
        make(&path, account)?;
        // Resolved, so that it compares equal to what the system says about a process.
        let path = path.canonicalize().map_err(file("resolve", &path))?;

        // The log of this run and of the one before are kept, so it cannot grow for ever.
        let home = Home { path, account, _lock: lock };
        let old = home.path.join("log.old");
        match fs::rename(home.log(), &old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file("rename to", &old)(e)),
            _ => Ok(home),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn account(&self) -> Option<Account> {
        self.account
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }
}

/// Removes what servers keep in `dir`, and nothing else that may be there.
///
/// # Errors
/// [`Error::InUse`] while a server of another process is running there.
pub fn remove(dir: &Path) -> Result<(), Error> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    for name in ["postgres", "redis"] {
        let _lock = lock(&dir, name)?;
        let place = dir.join(name);
        if let Ok(real) = place.canonicalize() {
            fs::remove_dir_all(&real).map_err(file("remove", &real))?;
        }
        if place.is_symlink() {
            fs::remove_file(&place).map_err(file("remove", &place))?;
        }
    }
    Ok(())
}

/// Reads the last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Takes the lock and writes our id into it, for whoever comes second.
fn lock(dir: &Path, name: &str) -> Result<Lock, Error> {
    let path = dir.join(format!("{name}.lock"));
    let mut held = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(file("open", &path))?;
    let mut tries = 0;
    loop {
        match held.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) => return Err(file("lock", &path)(e)),
            Err(TryLockError::WouldBlock) => {}
        }
        let owner = process::from_pid_file(&path);
        // A child that the owner forked just before it was killed has the lock until it executes its program.
        if owner.is_some_and(process::alive) || tries == LOCK_TRIES_MAX {
            return Err(Error::InUse {
                dir: dir.to_owned(),
                pid: owner.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string()),
            });
        }
        tries += 1;
        thread::sleep(Duration::from_millis(10));
    }
    held.set_len(0).and_then(|()| writeln!(held, "{}", std::process::id())).map_err(file("write", &path))?;
    Ok(Lock(held))
}

/// Says whether `account` can work in `place`: it exists and can be entered, or its parent can be.
fn usable(place: &Path, dir: &Path, account: Account) -> bool {
    match place.canonicalize() {
        Ok(real) => account.can_enter(real.parent().unwrap_or(&real)),
        // A symlink whose target has gone is made again, not followed.
        Err(_) => !place.is_symlink() && account.can_enter(dir),
    }
}

/// Makes a home where `account` can reach it and leaves a symlink to it at `place`.
fn elsewhere(place: &Path, account: Account) -> Result<PathBuf, Error> {
    let name = format!("{:016x}", hash(place.as_os_str().as_bytes()));
    let shared = Path::new("/var/lib/eventpulse");
    let path = match fs::create_dir_all(shared) {
        Ok(()) if account.can_enter(shared) => shared.join(name),
        _ => std::env::temp_dir().join(format!("eventpulse-{name}")),
    };
    // In a folder that all may write to, somebody may have put a directory or symlink of theirs there.
    if let Ok(found) = fs::symlink_metadata(&path)
        && !(found.is_dir() && [0, account.uid].contains(&found.uid()))
    {
        let foreign = io::Error::new(io::ErrorKind::PermissionDenied, "belongs to somebody else");
        return Err(file("use", &path)(foreign));
    }
    if place.is_symlink() {
        fs::remove_file(place).map_err(file("remove", place))?;
    }
    symlink(&path, place).map_err(file("create the symlink", place))?;
    Ok(path)
}

/// Makes the directory, for its owner alone.
fn make(path: &Path, account: Option<Account>) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(file("create", path)(e));
        }
        _ => {}
    }
    give(path, account)
}

/// Gives a file to the account that the server runs as.
pub(crate) fn give(path: &Path, account: Option<Account>) -> Result<(), Error> {
    match account {
        Some(Account { uid, gid }) => {
            chown(path, Some(uid), Some(gid)).map_err(file("change the owner of", path))
        }
        None => Ok(()),
    }
}

/// FNV-1a. A name that is the same for the same path in every build, no more.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_is_told_who_the_first_is() {
        let dir = std::env::temp_dir().join(format!("eventpulse-home-{}", std::process::id()));
        let first = Home::open(&dir, "x", |_| Ok(None)).expect("first");
        let second = Home::open(&dir, "x", |_| Ok(None)).err().expect("refused");
        let text = second.to_string();
        let told = format!("already in use by process {}", std::process::id());
        assert!(text.ends_with(&told), "{text}");
        Home::open(&dir, "y", |_| Ok(None)).expect("another server in the same directory");
        drop(first);
        Home::open(&dir, "x", |_| Ok(None)).expect("free again");
        fs::remove_dir_all(dir).expect("remove");
    }

    #[test]
    fn a_reset_removes_the_servers_and_leaves_the_rest() {
        let dir = std::env::temp_dir().join(format!("eventpulse-reset-{}", std::process::id()));
        let used = Home::open(&dir, "redis", |_| Ok(None)).expect("open");
        fs::write(dir.join("mine"), "x").expect("write");
        assert!(matches!(remove(&dir), Err(Error::InUse { .. })));
        drop(used);
        remove(&dir).expect("remove");
        assert!(!dir.join("redis").exists() && dir.join("mine").exists());
        fs::remove_dir_all(&dir).expect("clean up");
        remove(&dir).expect("nothing there");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let log = std::env::temp_dir().join(format!("eventpulse-tail-{}", std::process::id()));
        let text: String = (0..9000).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, text).expect("write");
        let tail = tail(&log);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 8999"), "{tail}");
        fs::remove_file(&log).expect("remove");
        assert_eq!(super::tail(&log), "");
    }
}
