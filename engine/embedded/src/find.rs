//! Finds the servers' binaries: `PATH` first, then where Debian, Fedora and Homebrew put them.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::error::run;

const POSTGRES_INSTALL: &str = "  apt-get install -y postgresql        (Debian, Ubuntu)
  dnf install -y postgresql-server     (Fedora)
  brew install postgresql              (macOS)";

const REDIS_INSTALL: &str = "  apt-get install -y redis-server      (Debian, Ubuntu)
  dnf install -y valkey                (Fedora)
  brew install redis                   (macOS)";

const PROMETHEUS_INSTALL: &str =
    "  apt-get install -y prometheus        (Debian, Ubuntu; it starts a service, `scripts/test` does not)
  dnf install -y golang-github-prometheus   (Fedora)
  brew install prometheus              (macOS)";

/// The first Redis whose scripts may ask for the time and then write without more ado.
const REDIS_NEEDED: (u32, u32) = (7, 0);
const REDIS_NEEDED_TEXT: &str = "7.0";

/// Finds the directory that holds `postgres` and `initdb`: the newest, or the one whose major version made `data`.
pub(crate) fn postgres(data: &Path) -> Result<PathBuf, Error> {
    let mut found = dirs(&postgres_places())
        .filter(|dir| dir.join("postgres").is_file() && dir.join("initdb").is_file())
        .peekable();
    if found.peek().is_none() {
        return Err(Error::Missing { server: "Postgres", install: POSTGRES_INSTALL });
    }
    let Ok(made_by) = fs::read_to_string(data.join("PG_VERSION")) else {
        return Ok(found.next().expect("peeked"));
    };
    let major = made_by.trim();
    found
        .find(|dir| version(&dir.join("postgres")).is_ok_and(|text| major_of_postgres(&text) == major))
        .ok_or_else(|| Error::OtherVersion { data: data.to_owned(), major: major.to_owned() })
}

/// Finds `redis-server` or `valkey-server`, not older than the engine needs.
pub(crate) fn redis() -> Result<PathBuf, Error> {
    let mut too_old = None;
    for dir in dirs(&redis_places()) {
        // By these names only: on Debian the same binary is also `redis-check-rdb`, and acts by its name.
        for name in ["redis-server", "valkey-server"] {
            let program = dir.join(name);
            if !program.is_file() {
                continue;
            }
            let text = version(&program)?;
            match version_of_redis(&text) {
                Some((parts, found)) if parts < REDIS_NEEDED => {
                    too_old.get_or_insert((program, found));
                }
                // An unreadable version is let through: the server's own complaint would say more.
                _ => return Ok(program),
            }
        }
    }
    Err(match too_old {
        Some((program, found)) => {
            Error::TooOld { program, found, needed: REDIS_NEEDED_TEXT, install: REDIS_INSTALL }
        }
        None => Error::Missing { server: "Redis", install: REDIS_INSTALL },
    })
}

/// Finds `prometheus`, of whatever version.
pub(crate) fn prometheus() -> Result<PathBuf, Error> {
    dirs(&["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"])
        .map(|dir| dir.join("prometheus"))
        .find(|program| program.is_file())
        .ok_or(Error::Missing { server: "Prometheus", install: PROMETHEUS_INSTALL })
}

/// Lists directories beside `PATH`; a `*` ends a name of which every match counts, newest first.
fn postgres_places() -> [&'static str; 6] {
    [
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/usr/bin",
        "/opt/homebrew/opt/postgresql*/bin",
        "/usr/local/opt/postgresql*/bin",
        "/opt/homebrew/bin",
    ]
}

fn redis_places() -> [&'static str; 6] {
    [
        "/usr/bin",
        "/usr/sbin",
        "/usr/local/bin",
        "/opt/homebrew/bin",
        "/opt/homebrew/opt/redis/bin",
        "/opt/homebrew/opt/valkey/bin",
    ]
}

/// Gives the directories of `PATH`, then those of `places`.
fn dirs(places: &[&str]) -> impl Iterator<Item = PathBuf> + use<> {
    let path = env::var_os("PATH").unwrap_or_default();
    let from_path: Vec<_> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let known: Vec<_> = places.iter().flat_map(|place| expand(place)).collect();
    from_path.into_iter().chain(known)
}

fn expand(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let (parent, prefix) = before.rsplit_once('/').expect("places are absolute");
    let mut names: Vec<String> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    // By number, as 9 is older than 15; a name without a number is the distribution's current one.
    names.sort_by_key(|name| {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        std::cmp::Reverse(digits.parse().unwrap_or(u32::MAX))
    });
    names.iter().map(|name| PathBuf::from(format!("{parent}/{name}{after}"))).collect()
}

/// Runs `program --version`.
fn version(program: &Path) -> Result<String, Error> {
    let output = Command::new(program)
        .arg(OsStr::new("--version"))
        .stdin(Stdio::null())
        .output()
        .map_err(run(program))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads `postgres (PostgreSQL) 15.8 (Debian ...)` as `15`, and `17beta2` as `17`.
fn major_of_postgres(text: &str) -> &str {
    let number = text.split_ascii_whitespace().nth(2).unwrap_or_default();
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    &number[..end]
}

/// Reads `Redis server v=7.0.15 sha=...` as `((7, 0), "7.0.15")`.
fn version_of_redis(text: &str) -> Option<((u32, u32), String)> {
    let number = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("v="))?;
    let mut parts = number.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some(((major, minor), number.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)";
        assert_eq!(major_of_postgres(text), "15");
        assert_eq!(major_of_postgres("postgres (PostgreSQL) 17beta2"), "17");
        assert_eq!(major_of_postgres("what"), "");
        let old = version_of_redis("Redis server v=6.0.16 sha=00000000:0 malloc=x").expect("read");
        assert_eq!(old, ((6, 0), "6.0.16".to_owned()));
        assert!(old.0 < REDIS_NEEDED);
        let new = version_of_redis("Valkey server v=8.1.0 sha=0").expect("read");
        assert!(new.0 >= REDIS_NEEDED);
        assert_eq!(version_of_redis("nothing"), None);
    }

    #[test]
    fn missing_binaries_name_the_package_to_install() {
        let text = Error::Missing { server: "Redis", install: REDIS_INSTALL }.to_string();
        for line in ["apt-get install -y redis-server", "dnf install", "brew install"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn places_without_a_star_stand_as_they_are() {
        assert_eq!(expand("/usr/bin"), [PathBuf::from("/usr/bin")]);
        assert!(expand("/no/such/place-*/bin").is_empty());
    }
}
