//! The demo account, kept in the data directory and used again next time.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use serde::{Deserialize, Serialize};

use super::Error;

/// What the demo needs to know of its account. The file is readable for its owner only.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Account {
    pub(super) api_key: String,
    pub(super) secret: String,
    pub(super) receiver_port: u16,
}

impl Account {
    /// The account of an earlier run; none when there is no file, or one that cannot be read.
    pub(super) fn read(dir: &Path) -> Option<Account> {
        serde_json::from_str(&fs::read_to_string(dir.join("demo.json")).ok()?).ok()
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join("demo.json");
        let text = serde_json::to_string_pretty(self).expect("three plain fields serialise");
        // The mode counts only for a new file.
        let _ = fs::remove_file(&path);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| Error::File { path: path.display().to_string(), source })
    }
}

/// Forgets the account of an earlier run.
pub(super) fn forget(dir: &Path) -> Result<(), Error> {
    let path = dir.join("demo.json");
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}
