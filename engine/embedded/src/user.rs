//! The account that Postgres runs as. Only root has to care: Postgres refuses to run as root.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// An account other than root that root hands its server to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Account {
    /// Picks the account for a server whose data is, or will be, at `data`; none unless we are root.
    pub(crate) fn pick(data: &Path) -> Result<Option<Account>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        // Data that exists keeps its owner: a user `postgres` may have appeared since.
        if let Ok(found) = std::fs::metadata(data)
            && found.uid() != 0
        {
            return Ok(Some(Account { uid: found.uid(), gid: found.gid() }));
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let account = named(&passwd, "postgres").or_else(|| named(&passwd, "nobody"));
        account.map(Some).ok_or(Error::NoUser)
    }

    /// Says whether this account can enter `dir`. Asking a process of the account covers what modes
    /// alone do not tell, such as access lists and read-only mounts.
    pub(crate) fn can_enter(self, dir: &Path) -> bool {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "cd \"$1\"", "sh"])
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        become_account(&mut command, Some(self));
        command.status().is_ok_and(|status| status.success())
    }
}

/// Lets `command` run as `account`, or as we are. Our own further groups are dropped with the user.
pub(crate) fn become_account(command: &mut Command, account: Option<Account>) {
    if let Some(Account { uid, gid }) = account {
        command.gid(gid).uid(uid);
    }
}

/// Finds `name` in the text of a passwd file. Never root, whatever it is called there.
fn named(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        (uid != 0).then_some(Account { uid, gid })
    })
}

/// Reads an id; macOS writes that of `nobody` as -2.
fn id(text: &str) -> Option<u32> {
    let wide: i64 = text.parse().ok()?;
    u32::try_from(wide).ok().or_else(|| i32::try_from(wide).ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_from_passwd() {
        let passwd = "# text\nroot:x:0:0:root:/root:/bin/sh\nnobody:*:-2:-2::/:/bin/false\n\
                      postgres:x:101:104:admin:/var:/bin/bash\nevil:x:0:5::/:/bin/sh\nshort:x\n";
        assert_eq!(named(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(named(passwd, "nobody"), Some(Account { uid: u32::MAX - 1, gid: u32::MAX - 1 }));
        assert_eq!(named(passwd, "evil"), None);
        assert_eq!(named(passwd, "short"), None);
        assert_eq!(named(passwd, "absent"), None);
    }
}
