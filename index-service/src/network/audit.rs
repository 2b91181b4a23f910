//! The audit log: who joined, registered, removed and was refused, one JSON object a line.
//!
//! A thread writes the file, so that no call waits for it. Calls and the thread share a bounded
//! queue: if the disk is slower than the calls, entries are dropped, and the next line says how many.
//! A full file is renamed to `audit.log.1`, an older one to `audit.log.2`, and so on.
//!
//! Invariants: an entry has no secret, and the files together have a bounded size.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::OpenOptionsExt as _,
    },
    path::{self, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::SystemTime,
};

use potluck_core::{
    FileId, PeerId, durable,
    files::read_own,
    network::identity::{CertifiedIdentity, MemberId, Role},
};
use serde_json::{Map, Value, json};

/// Default name of the file.
pub(crate) const AUDIT: &str = "audit.log";

/// Name of the file in a network's folder that holds the path of another log of its index, for the
/// commands of its operator.
const LOCATION: &str = "audit.location";

/// Maximum length of that path, in bytes: that of Linux.
const MAX_PATH: u64 = 4096;

/// Size at which a file is renamed: about 60,000 lines.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Older files that are kept: with the current one 80 MiB.
const OLDER: u32 = 4;

/// Entries that may wait for the disk.
const QUEUE: usize = 1024;

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum AuditEntry {
    /// A member joined.
    Joined {
        /// The member.
        member: MemberId,
        /// The name that it chose.
        name: String,
        /// Its role.
        role: Role,
    },
    /// A peer got its certificate.
    PeerEnrolled,
    /// A certificate was renewed.
    Renewed {
        /// The member.
        member: MemberId,
        /// The peer; `None` for the member itself.
        peer: Option<PeerId>,
    },
    /// A code was made.
    Invited {
        /// The role of the members that it admits.
        role: Role,
        /// How many.
        uses: u32,
    },
    /// A member was revoked.
    Revoked {
        /// The member.
        member: MemberId,
    },
    /// The caller left the network.
    Left,
    /// A batch of files was registered.
    Registered {
        /// Number of files.
        files: usize,
        /// Number of names that were bound to them.
        names: usize,
        /// Whether the earlier registrations were replaced.
        replace: bool,
    },
    /// Files were unregistered.
    Unregistered {
        /// Number of registrations.
        files: u64,
        /// Whether the peer ended its lease.
        all: bool,
    },
    /// Names were removed.
    BindingsRemoved {
        /// The file.
        file: FileId,
        /// How many.
        removed: u64,
    },
    /// The registrations of another member's peer were removed.
    RegistrationsRemoved {
        /// The file; `None` for all files of the peer.
        file: Option<FileId>,
        /// The peer; `None` for all peers.
        peer: Option<PeerId>,
        /// How many.
        removed: u64,
    },
    /// A call was refused.
    Refused {
        /// The method.
        call: String,
        /// The stable reason.
        reason: &'static str,
    },
}

impl AuditEntry {
    fn to_json(&self) -> Value {
        match self {
            Self::Joined { member, name, role } => json!({
                "event": "joined", "member": member.to_string(), "name": name,
                "role": role.as_str(),
            }),
            Self::PeerEnrolled => json!({ "event": "peer_enrolled" }),
            Self::Renewed { member, peer } => json!({
                "event": "renewed", "member": member.to_string(), "peer": peer,
            }),
            Self::Invited { role, uses } => json!({
                "event": "invited", "role": role.as_str(), "uses": uses,
            }),
            Self::Revoked { member } => json!({
                "event": "revoked", "member": member.to_string(),
            }),
            Self::Left => json!({ "event": "left" }),
            Self::Registered {
                files,
                names,
                replace,
            } => json!({
                "event": "registered", "files": files, "names": names, "replace": replace,
            }),
            Self::Unregistered { files, all } => json!({
                "event": "unregistered", "files": files, "all": all,
            }),
            Self::BindingsRemoved { file, removed } => json!({
                "event": "bindings_removed", "file": file, "removed": removed,
            }),
            Self::RegistrationsRemoved { file, peer, removed } => json!({
                "event": "registrations_removed", "file": file, "of_peer": peer,
                "removed": removed,
            }),
            Self::Refused { call, reason } => json!({
                "event": "refused", "call": call, "reason": reason,
            }),
        }
    }
}

/// Who made a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    /// The identity that its certificate proves.
    pub(crate) identity: Option<CertifiedIdentity>,
    /// Its IP address.
    pub(crate) address: Option<std::net::IpAddr>,
}

#[derive(Debug)]
struct QueuedEntry {
    at: SystemTime,
    caller: Caller,
    entry: AuditEntry,
}

/// A handle to the log. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct AuditLog {
    /// `None` if nothing is recorded.
    queue: Option<SyncSender<QueuedEntry>>,
    dropped: Arc<AtomicU64>,
}

impl AuditLog {
    /// A log that records nothing.
    pub(crate) fn disabled() -> Self {
        Self {
            queue: None,
            dropped: Arc::default(),
        }
    }

    /// Opens the log in a file and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = AuditFile::open(path, MAX_BYTES)?;
        let (queue, entries) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_entries(file, &entries, &counter))?;
        Ok(Self {
            queue: Some(queue),
            dropped,
        })
    }

    /// Adds an entry, without waiting.
    pub(crate) fn record(&self, caller: Caller, entry: AuditEntry) {
        let Some(queue) = &self.queue else { return };
        let entry = QueuedEntry {
            at: SystemTime::now(),
            caller,
            entry,
        };
        if queue.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Stores which log the index of the network in `folder` writes; `None` for the default.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn store_location(folder: &Path, log: Option<&Path>) -> io::Result<()> {
    let location = folder.join(LOCATION);
    match log {
        Some(log) => durable::write(&location, path::absolute(log)?.as_os_str().as_bytes(), 0o600),
        None => match fs::remove_file(location) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// The log of the network in `folder`: that of its index if this machine has its folder, as it may
/// not where the index runs in a container.
pub(crate) fn location(folder: &Path) -> PathBuf {
    let stored = read_own(&folder.join(LOCATION), MAX_PATH).ok();
    let stored = stored.map(|path| PathBuf::from(OsString::from_vec(path)));
    let usable = stored.filter(|path| path.parent().is_some_and(Path::is_dir));
    usable.unwrap_or_else(|| folder.join(AUDIT))
}

/// Adds one entry to the log in a file, from a process other than the index. Its line has neither a
/// caller nor an address.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn append(path: PathBuf, entry: AuditEntry) -> io::Result<()> {
    // The index renames full files.
    let mut file = AuditFile::open(path, u64::MAX)?;
    let entry = QueuedEntry {
        at: SystemTime::now(),
        caller: Caller::default(),
        entry,
    };
    file.write(&line(&entry, 0))
}

fn write_entries(mut file: AuditFile, entries: &Receiver<QueuedEntry>, dropped: &AtomicU64) {
    let mut has_failed = false;
    for entry in entries {
        let written = file.write(&line(&entry, dropped.swap(0, Ordering::Relaxed)));
        if let Err(error) = &written
            && !has_failed
        {
            tracing::error!(%error, path = %file.path.display(), "cannot write the audit log");
        }
        has_failed = written.is_err();
    }
}

fn line(QueuedEntry { at, caller, entry }: &QueuedEntry, dropped: u64) -> String {
    let mut line = Map::new();
    line.insert(
        "time".to_owned(),
        humantime::format_rfc3339_millis(*at).to_string().into(),
    );
    if let Value::Object(entry) = entry.to_json() {
        line.extend(entry);
    }
    if let Some(identity) = &caller.identity {
        line.insert("by".to_owned(), identity.member.to_string().into());
        if let Some(peer) = identity.peer {
            line.insert("by_peer".to_owned(), peer.to_string().into());
        }
    }
    if let Some(address) = caller.address {
        line.insert("address".to_owned(), address.to_canonical().to_string().into());
    }
    if dropped > 0 {
        line.insert("dropped_before".to_owned(), dropped.into());
    }
    let mut text = Value::Object(line).to_string();
    text.push('\n');
    text
}

/// The current file.
#[derive(Debug)]
struct AuditFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl AuditFile {
    fn open(path: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            bytes,
            max_bytes,
        })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..OLDER).rev() {
            match fs::rename(self.older(n), self.older(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.older(1))?;
        *self = Self::open(self.path.clone(), self.max_bytes)?;
        Ok(())
    }

    fn older(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_have_a_bounded_size_and_no_line_is_split() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(AUDIT);
        let mut file = AuditFile::open(path.clone(), 100).unwrap();
        for n in 0..40 {
            file.write(&format!("{n:039}\n")).unwrap();
        }
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1 + OLDER as usize);
        let newest = fs::read_to_string(path).unwrap();
        assert_eq!(newest, format!("{:039}\n{:039}\n", 38, 39));
        let oldest = fs::read_to_string(dir.path().join("audit.log.4")).unwrap();
        assert!(oldest.starts_with(&format!("{:039}\n", 30)), "{oldest}");
    }

    #[test]
    fn the_operators_entries_go_to_the_log_of_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let default = dir.path().join(AUDIT);
        assert_eq!(location(dir.path()), default);
        let elsewhere = dir.path().join("log");
        let log = elsewhere.join("audit");
        store_location(dir.path(), Some(&log)).unwrap();
        assert_eq!(location(dir.path()), default, "there is no such folder here");
        fs::create_dir(elsewhere).unwrap();
        assert_eq!(location(dir.path()), log);
        for _ in 0..2 {
            store_location(dir.path(), None).unwrap();
            assert_eq!(location(dir.path()), default);
        }
    }

    #[test]
    fn a_line_says_when_who_what_and_how_many_lines_are_missing() {
        let entry = QueuedEntry {
            at: SystemTime::UNIX_EPOCH,
            caller: Caller {
                identity: Some(CertifiedIdentity {
                    member: MemberId([1; 16]),
                    peer: Some(PeerId([2; 32])),
                    role: Role::Reader,
                }),
                address: Some([192, 0, 2, 1].into()),
            },
            entry: AuditEntry::Registered {
                files: 3,
                names: 0,
                replace: true,
            },
        };
        let line: Value = serde_json::from_str(&line(&entry, 7)).unwrap();
        assert_eq!(line["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(line["event"], "registered");
        assert_eq!(line["files"], 3);
        assert_eq!(line["by"], "01".repeat(16));
        assert_eq!(line["by_peer"], "02".repeat(32));
        assert_eq!(line["address"], "192.0.2.1");
        assert_eq!(line["dropped_before"], 7);
    }
}
