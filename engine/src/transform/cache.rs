//! Compiled modules on disk, in a folder that is ours alone: machine code is run from it.
//!
//! A file is its own SHA-256 and then the artefact, so that one that was cut short or went bad is noticed and made again. It is
//! read whole, and what was checked is what is loaded: nobody can change it in between.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};

use super::{Error, Hash};

/// Bytes of all files; the ones not used for longest go first.
const BYTES_MAX: u64 = 1 << 30;

/// What a process that was killed left behind while writing.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Begins every file, and changes with its form.
const MAGIC: &[u8; 8] = b"EPWASM\x00\x01";
const HEAD_BYTES: usize = MAGIC.len() + 32;

pub(super) struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

impl Cache {
    /// # Errors
    /// When the folder cannot be made, or somebody else could write to it.
    pub(super) fn open(setting: &str) -> Result<Cache, Error> {
        let folder = if setting.is_empty() { default_folder() } else { PathBuf::from(setting) };
        let told = |problem: String| Error(format!("the cache folder {} {problem}", folder.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| told(format!("cannot be made: {error}")))?;
        ours_alone(&folder).map_err(told)?;
        Ok(Cache { folder, bytes_max: BYTES_MAX })
    }

    /// The artefact, if there is one and it is whole.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.folder.join(name);
        let mut file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let whole = bytes.get(HEAD_BYTES..).is_some_and(|artefact| {
            bytes[..MAGIC.len()] == *MAGIC && bytes[MAGIC.len()..HEAD_BYTES] == *Sha256::digest(artefact)
        });
        if !whole {
            tracing::warn!(file = %path.display(), "a compiled module on disk was damaged; it is compiled again");
            let _ = fs::remove_file(&path);
            return None;
        }
        // The time of the last use, for `trim`; without it the file is merely thought older.
        let _ = file.set_modified(SystemTime::now());
        bytes.drain(..HEAD_BYTES);
        Some(bytes)
    }

    /// A reader sees the whole file or none.
    pub(super) fn write(&self, name: &str, artefact: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("{name}.{}.{number}.tmp", std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(&Sha256::digest(artefact))?;
            file.write_all(artefact)?;
            drop(file);
            fs::rename(&temporary, self.folder.join(name))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        self.trim();
        written
    }

    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.folder.join(name));
    }

    /// Best effort: what cannot be looked at now is looked at with the next module.
    fn trim(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let now = SystemTime::now();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let Ok(used) = metadata.modified() else { continue };
            let path = entry.path();
            let temporary = path.extension().is_some_and(|extension| extension == "tmp");
            if temporary && now.duration_since(used).is_ok_and(|age| age > LEFTOVER_AGE) {
                let _ = fs::remove_file(path);
            } else if !temporary && metadata.is_file() {
                files.push((used, metadata.len(), path));
            }
        }
        let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if bytes <= self.bytes_max {
                break;
            }
            bytes -= len;
            let _ = fs::remove_file(path);
        }
    }
}

/// The name of a module's file: by what it was compiled from, and for which engine.
pub(super) fn file_name(hash: &Hash, fingerprint: u64) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}-{fingerprint:016x}")
}

fn default_folder() -> PathBuf {
    let set = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    match cache {
        Some(folder) => folder.join("eventpulse").join("transforms"),
        // A service without a home. Nobody else can have made a folder that passes the check below.
        None => env::temp_dir()
            .join(format!("eventpulse-{}", rustix::process::geteuid().as_raw()))
            .join("transforms"),
    }
}

fn ours_alone(folder: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(folder).map_err(|error| format!("cannot be looked at: {error}"))?;
    if !metadata.is_dir() {
        return Err("is not a folder".to_owned());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("belongs to user {} and not to the one this process runs as", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("can be written to by other users; machine code is run from it (chmod go-w)".to_owned());
    }
    // Who may rename a folder above can put another in its place. Where that is everybody, the sticky bit has to forbid it.
    let whole = folder.canonicalize().map_err(|error| format!("cannot be looked at: {error}"))?;
    for above in whole.ancestors().skip(1) {
        let mode = fs::metadata(above).map_err(|error| format!("cannot be looked at: {error}"))?.mode();
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(format!("is below {}, where anybody may exchange it", above.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("eventpulse-cache-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn open(folder: &Path) -> Result<Cache, Error> {
        Cache::open(folder.to_str().expect("a name in UTF-8"))
    }

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_not() {
        let folder = folder("damaged");
        let cache = open(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert!(cache.read("a").is_none());
        cache.write("a", b"machine code").unwrap();
        assert_eq!(cache.read("a").unwrap(), b"machine code");
        let path = folder.join("a");
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bad in [&good[..good.len() - 1], &good[..HEAD_BYTES], &good[..3], &[][..], &flipped] {
            fs::write(&path, bad).unwrap();
            assert!(cache.read("a").is_none(), "{} bytes", bad.len());
            assert!(!path.exists());
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = folder("shared");
        drop(open(&folder).unwrap());
        for mode in [0o720, 0o702, 0o777] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert!(open(&folder).is_err(), "{mode:o}");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(open(&folder).is_ok());
        let link = folder.join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(open(&link).is_err());
        let (above, below) = (folder.join("above"), folder.join("above/below"));
        drop(open(&below).unwrap());
        fs::set_permissions(&above, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&below).is_err());
        fs::set_permissions(&above, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(open(&below).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        // `/proc/1` is root's. For root itself the folder of a user is made, which only root can do.
        let folder = folder("foreign");
        let foreign = if rustix::process::geteuid().is_root() {
            drop(open(&folder).unwrap());
            std::os::unix::fs::chown(&folder, Some(65_534), None).unwrap();
            folder.clone()
        } else {
            PathBuf::from("/proc/1")
        };
        assert!(open(&foreign).is_err());
        let _ = fs::remove_dir_all(folder);
    }

    #[test]
    fn the_oldest_files_go_first() {
        let folder = folder("trim");
        let mut cache = open(&folder).unwrap();
        cache.bytes_max = 3 * (HEAD_BYTES as u64 + 10);
        for (age, name) in [(400, "a"), (300, "b"), (200, "c")] {
            cache.write(name, &[0; 10]).unwrap();
            let file = File::options().write(true).open(folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        // Use is what counts.
        assert!(cache.read("a").is_some());
        let leftover = folder.join("x.1.1.tmp");
        File::create(&leftover).unwrap().set_modified(SystemTime::now() - LEFTOVER_AGE * 2).unwrap();
        cache.write("d", &[0; 10]).unwrap();
        assert!(cache.read("b").is_none() && !leftover.exists());
        assert!(["a", "c", "d"].iter().all(|name| cache.read(name).is_some()));
        fs::remove_dir_all(folder).unwrap();
    }
}
