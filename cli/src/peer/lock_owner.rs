//! Finds the process that holds the lock of the default home, to explain why a command cannot use
//! the home.
//!
//! Reads the lock file and `/proc`. It never takes the lock, because a peer that starts at that
//! moment would find the home locked.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use clap::{Args as _, Command};
use potluck_core::Reason;

use crate::{error::CommandError, options::GlobalOptions, peer::home::default_home};

/// Lock file within a home; contains the process id of the owner.
const LOCK: &str = "state/lock";

/// The commands that start a peer in the default home.
const VERBS_WITH_PEER: [&str; 9] = [
    "peer",
    "share",
    "register",
    "get",
    "ls",
    "list",
    "unshare",
    "unregister",
    "check",
];

/// The command that holds the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockOwner {
    pid: u32,
    /// `None`: the interactive prompt.
    verb: Option<&'static str>,
}

impl LockOwner {
    /// The owner of the default home's lock. `None` if it cannot be determined.
    pub(crate) fn find() -> Option<Self> {
        let home = default_home().ok()?;
        let text = potluck_core::files::read_own(&home.join(LOCK), 32).ok()?;
        let pid: u32 = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
        // The lock file outlives its writer, and another process may have the id now.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (pid != std::process::id())
            .then(|| Self::from_command_line(pid, &line))
            .flatten()
    }

    /// Parses a command line from `/proc`, in which each argument ends with a zero byte.
    fn from_command_line(pid: u32, line: &[u8]) -> Option<Self> {
        let words = line.strip_suffix(b"\0")?.split(|&byte| byte == 0);
        let words: Vec<_> = words.map(|word| OsStr::from_bytes(word).to_owned()).collect();
        let program = Path::new(words.first()?).file_name()?;
        if program == "potluck-peer" {
            return Some(Self {
                pid,
                verb: Some("peer"),
            });
        }
        if program != "potluck" {
            return None;
        }
        // Only the options before the verb are parsed.
        let parser =
            GlobalOptions::augment_args(Command::new("potluck")).allow_external_subcommands(true);
        let parsed = parser.try_get_matches_from(words).ok()?;
        let verb = match parsed.subcommand_name() {
            None => None,
            // Other commands never start a peer, so another process has the id now.
            Some(name) => Some(*VERBS_WITH_PEER.iter().find(|&&verb| verb == name)?),
        };
        Some(Self { pid, verb })
    }

    /// The owner and what it does with the home.
    pub(crate) fn description(&self) -> String {
        let pid = self.pid;
        match self.verb {
            Some("peer") => {
                format!(
                    "`potluck peer` (process {pid}) is running, but its control socket is elsewhere"
                )
            }
            Some(verb) => {
                format!("`potluck {verb}` (process {pid}) is running and uses the peer's home")
            }
            None => {
                format!("a `potluck` prompt (process {pid}) is running and uses the peer's home")
            }
        }
    }

    /// The error for a command that cannot run because of this owner.
    pub(crate) fn conflict(&self, reason: Reason) -> CommandError {
        let hint = match self.verb {
            Some("peer") => "give its control service with --peer unix:PATH or --peer HOST:PORT",
            _ => "stop it first, or run `potluck peer` instead, which all commands can use",
        };
        CommandError::new(reason, self.description()).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_known_from_its_command_line() {
        let verb = |line: &[u8]| LockOwner::from_command_line(7, line).map(|owner| owner.verb);
        assert_eq!(verb(b"/usr/bin/potluck\0-q\0share\0a b\0"), Some(Some("share")));
        assert_eq!(verb(b"potluck\0--index\0http://a:1\0peer\0"), Some(Some("peer")));
        assert_eq!(verb(b"potluck\0list\0"), Some(Some("list")));
        assert_eq!(verb(b"potluck\0check\0--all\0"), Some(Some("check")));
        assert_eq!(verb(b"potluck\0"), Some(None));
        assert_eq!(verb(b"potluck\0--index\0http://a:1\0"), Some(None));
        assert_eq!(verb(b"potluck-peer\0--home\0/x\0"), Some(Some("peer")));
        assert_eq!(verb(b"potluck\0search\0x\0"), None, "search starts no peer");
        assert_eq!(verb(b"/bin/sh\0share\0"), None, "another program");
        assert_eq!(verb(b""), None);
    }
}
