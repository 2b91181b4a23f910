//! The members on disk: one event a line, in `members.jsonl` in the network's folder.
//!
//! ```text
//! DIR/
//!   members.jsonl   mode 0600; the first line has the version of the format
//!   members.lock    locked by the process that appends
//! ```
//!
//! A change takes the lock, reads what other processes appended, decides, appends one line and syncs
//! it. So `potluck network invite` works on the folder of a running index, and the index sees the
//! new code when it next reads. A line without its end is from a process that died: it was never
//! acknowledged, and the next change overwrites it.
//!
//! Invariant: the members in memory are the result of the lines up to `position`.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use potluck_core::{
    PeerId, Sha256, durable,
    network::identity::{MemberId, Role},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::network::membership::{
    Enrolment, Event, Invite, MemberEntry, MemberState, Membership, PeerEntry,
};

/// Name of the file.
pub(crate) const MEMBERS: &str = "members.jsonl";

/// Name of the lock.
const LOCK: &str = "members.lock";

/// The first line. A reader refuses another version.
const HEADER: &str = "{\"potluck_members\":1}\n";

/// Lines beyond twice the needed ones before the file is rewritten.
const SLACK_LINES: usize = 1_000;

/// The reason why the members cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system returned an error.
    #[error("cannot use {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line is not what this program writes.
    #[error(
        "line {line} of {} is damaged: {reason}; restore the file from a copy, or update potluck if \
         a newer version wrote it", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// The reason.
        reason: String,
    },
}

/// The members, and the file that keeps them.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    lock: PathBuf,
    members: Membership,
    /// Which file was read, by device and inode; `None` before the first time.
    file: Option<(u64, u64)>,
    /// Bytes of complete lines.
    position: u64,
    lines: usize,
}

impl Journal {
    /// Opens the members in the folder of a network; there are none if there is no file.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn open(folder: &Path) -> Result<Self, JournalError> {
        let mut journal = Self {
            path: folder.join(MEMBERS),
            lock: folder.join(LOCK),
            members: Membership::default(),
            file: None,
            position: 0,
            lines: 0,
        };
        journal.refresh()?;
        Ok(journal)
    }

    /// The members as last read.
    pub(crate) const fn members(&self) -> &Membership {
        &self.members
    }

    /// Reads what other processes appended; true if there was something.
    ///
    /// # Errors
    /// [`JournalError`]; the members are then as before.
    pub(crate) fn refresh(&mut self) -> Result<bool, JournalError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound && self.file.is_none() => {
                return Ok(false);
            }
            Err(source) => return Err(self.system(source)),
        };
        let metadata = file.metadata().map_err(|source| self.system(source))?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if identity == self.file && metadata.len() == self.position {
            return Ok(false);
        }
        let (mut members, mut position, mut lines) =
            (self.members.clone(), self.position, self.lines);
        if identity != self.file || metadata.len() < self.position {
            (members, position, lines) = (Membership::default(), 0, 0);
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(position))
            .and_then(|_| file.read_to_end(&mut bytes))
            .map_err(|source| self.system(source))?;
        let complete = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let before = lines;
        for line in bytes[..complete].split_inclusive(|byte| *byte == b'\n') {
            lines += 1;
            let damaged = |reason: String| JournalError::Damaged {
                path: self.path.clone(),
                line: lines,
                reason,
            };
            if lines == 1 {
                if line != HEADER.as_bytes() {
                    return Err(damaged("it does not name version 1 of the format".to_owned()));
                }
                continue;
            }
            let line: EventLine =
                serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
            members.apply(line.into());
        }
        position += complete as u64;
        (self.members, self.position, self.lines) = (members, position, lines);
        self.file = identity;
        Ok(lines > before)
    }

    /// Makes a change, durable before this returns. `decide` sees the latest members.
    ///
    /// # Errors
    /// Those of `decide`, after which nothing has changed; [`JournalError`].
    pub(crate) fn change<T, E: From<JournalError>>(
        &mut self,
        decide: impl FnOnce(&Membership) -> Result<(T, Option<Event>), E>,
    ) -> Result<T, E> {
        let _lock = self.take_lock()?;
        self.refresh()?;
        let (answer, event) = decide(&self.members)?;
        if let Some(event) = event {
            self.append(&event)?;
            self.members.apply(event);
        }
        Ok(answer)
    }

    /// Forgets what no longer matters, and rewrites the file if many of its lines are obsolete.
    ///
    /// # Errors
    /// [`JournalError`]; the file is then as before.
    pub(crate) fn compact(&mut self, now: u64) -> Result<(), JournalError> {
        let _lock = self.take_lock()?;
        self.refresh()?;
        let mut members = self.members.clone();
        members.prune(now);
        let needed = members.snapshot().count();
        if self.lines <= 2 * needed + SLACK_LINES {
            return Ok(());
        }
        let mut text = HEADER.to_owned();
        for event in members.snapshot() {
            text.push_str(&line(event));
        }
        durable::write(&self.path, text.as_bytes(), 0o600).map_err(|source| self.system(source))?;
        self.file = None;
        self.refresh().map(drop)
    }

    /// Locks the file against other processes until the handle is dropped.
    fn take_lock(&self) -> Result<File, JournalError> {
        let system = |source| JournalError::System {
            path: self.lock.clone(),
            source,
        };
        let lock = open_private(&self.lock).map_err(system)?;
        lock.lock().map_err(system)?;
        Ok(lock)
    }

    fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        let is_new = self.position == 0;
        let mut text = if is_new { HEADER.to_owned() } else { String::new() };
        text.push_str(&line(event.clone()));
        let position = self.position;
        let written = open_private(&self.path).and_then(|mut file| {
            // The rest of a line whose writer died.
            file.set_len(position)?;
            file.seek(SeekFrom::Start(position))?;
            if let Err(error) = file.write_all(text.as_bytes()).and_then(|()| file.sync_data()) {
                let _ = file.set_len(position);
                return Err(error);
            }
            if is_new && let Some(folder) = self.path.parent() {
                durable::sync_folder(folder)?;
            }
            let metadata = file.metadata()?;
            Ok((metadata.dev(), metadata.ino()))
        });
        match written {
            Ok(identity) => {
                self.file = Some(identity);
                self.position += text.len() as u64;
                self.lines += 1 + usize::from(is_new);
                Ok(())
            }
            Err(source) => {
                // What is in the file is unknown: read all of it again.
                (self.position, self.lines) = (0, 0);
                self.members = Membership::default();
                self.file = None;
                let _ = self.refresh();
                Err(self.system(source))
            }
        }
    }

    fn system(&self, source: io::Error) -> JournalError {
        JournalError::System {
            path: self.path.clone(),
            source,
        }
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn line(event: Event) -> String {
    let line = EventLine::from(event);
    let mut text = serde_json::to_string(&line).expect("an event has only text and numbers");
    text.push('\n');
    text
}

/// A value that is stored as the text that people see.
#[derive(Debug)]
struct Text<T>(T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Bytes, stored as hex digits.
#[derive(Debug)]
struct Hex(Vec<u8>);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl FromStr for Hex {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::decode(text).map(Self)
    }
}

/// An [`Event`] as it is stored. A later version may add fields with a default.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventLine {
    Invited {
        secret_hash: Text<Sha256>,
        invited_by: Option<Text<MemberId>>,
        role: Text<Role>,
        uses: u32,
        expires: u64,
    },
    Joined {
        member: Text<MemberId>,
        name: String,
        role: Text<Role>,
        secret_hash: Text<Sha256>,
        invited_by: Option<Text<MemberId>>,
        at: u64,
        certificate: Text<Hex>,
        expires: u64,
    },
    Certified {
        member: Text<MemberId>,
        peer: Option<Text<PeerId>>,
        expires: u64,
    },
    Revoked {
        member: Text<MemberId>,
        left: bool,
        at: u64,
    },
    PeerLeft {
        peer: Text<PeerId>,
        at: u64,
    },
    PeerListed {
        peer: Text<PeerId>,
        until: u64,
    },
    Restored {
        member: Text<MemberId>,
        name: String,
        role: Text<Role>,
        state: StateWord,
        joined: u64,
        own_expires: u64,
        expires: u64,
        invited_by: Option<Text<MemberId>>,
        peers: Vec<(Text<PeerId>, u64)>,
        secret_hash: Text<Sha256>,
        certificate: Text<Hex>,
        certificate_expires: u64,
        listed_until: Option<u64>,
    },
    Numbered {
        revocations_number: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateWord {
    Active,
    Revoked,
    Left,
}

impl From<Event> for EventLine {
    fn from(event: Event) -> Self {
        match event {
            Event::Invited {
                secret_hash,
                invite:
                    Invite {
                        invited_by,
                        role,
                        uses,
                        expires,
                    },
            } => Self::Invited {
                secret_hash: Text(secret_hash),
                invited_by: invited_by.map(Text),
                role: Text(role),
                uses,
                expires,
            },
            Event::Joined {
                member,
                name,
                role,
                secret_hash,
                invited_by,
                at,
                certificate,
                expires,
            } => Self::Joined {
                member: Text(member),
                name,
                role: Text(role),
                secret_hash: Text(secret_hash),
                invited_by: invited_by.map(Text),
                at,
                certificate: Text(Hex(certificate)),
                expires,
            },
            Event::Certified {
                member,
                peer,
                expires,
            } => Self::Certified {
                member: Text(member),
                peer: peer.map(Text),
                expires,
            },
            Event::Revoked { member, left, at } => Self::Revoked {
                member: Text(member),
                left,
                at,
            },
            Event::PeerLeft { peer, at } => Self::PeerLeft { peer: Text(peer), at },
            Event::PeerListed { peer, until } => Self::PeerListed {
                peer: Text(peer),
                until,
            },
            Event::Restored {
                member,
                entry,
                listed_until,
            } => {
                let entry = *entry;
                Self::Restored {
                    member: Text(member),
                    name: entry.name,
                    role: Text(entry.role),
                    state: match entry.state {
                        MemberState::Active => StateWord::Active,
                        MemberState::Revoked => StateWord::Revoked,
                        MemberState::Left => StateWord::Left,
                    },
                    joined: entry.joined,
                    own_expires: entry.own_expires,
                    expires: entry.expires,
                    invited_by: entry.invited_by.map(Text),
                    peers: entry
                        .peers
                        .into_iter()
                        .map(|(peer, PeerEntry { expires })| (Text(peer), expires))
                        .collect(),
                    secret_hash: Text(entry.enrolment.secret_hash),
                    certificate: Text(Hex(entry.enrolment.certificate)),
                    certificate_expires: entry.enrolment.expires,
                    listed_until,
                }
            }
            Event::Numbered { revocations_number } => Self::Numbered { revocations_number },
        }
    }
}

impl From<EventLine> for Event {
    fn from(line: EventLine) -> Self {
        match line {
            EventLine::Invited {
                secret_hash,
                invited_by,
                role,
                uses,
                expires,
            } => Self::Invited {
                secret_hash: secret_hash.0,
                invite: Invite {
                    invited_by: invited_by.map(|by| by.0),
                    role: role.0,
                    uses,
                    expires,
                },
            },
            EventLine::Joined {
                member,
                name,
                role,
                secret_hash,
                invited_by,
                at,
                certificate,
                expires,
            } => Self::Joined {
                member: member.0,
                name,
                role: role.0,
                secret_hash: secret_hash.0,
                invited_by: invited_by.map(|by| by.0),
                at,
                certificate: certificate.0.0,
                expires,
            },
            EventLine::Certified {
                member,
                peer,
                expires,
            } => Self::Certified {
                member: member.0,
                peer: peer.map(|peer| peer.0),
                expires,
            },
            EventLine::Revoked { member, left, at } => Self::Revoked {
                member: member.0,
                left,
                at,
            },
            EventLine::PeerLeft { peer, at } => Self::PeerLeft { peer: peer.0, at },
            EventLine::PeerListed { peer, until } => Self::PeerListed { peer: peer.0, until },
            EventLine::Restored {
                member,
                name,
                role,
                state,
                joined,
                own_expires,
                expires,
                invited_by,
                peers,
                secret_hash,
                certificate,
                certificate_expires,
                listed_until,
            } => Self::Restored {
                member: member.0,
                entry: Box::new(MemberEntry {
                    name,
                    role: role.0,
                    state: match state {
                        StateWord::Active => MemberState::Active,
                        StateWord::Revoked => MemberState::Revoked,
                        StateWord::Left => MemberState::Left,
                    },
                    joined,
                    own_expires,
                    expires,
                    invited_by: invited_by.map(|by| by.0),
                    peers: peers
                        .into_iter()
                        .map(|(peer, expires)| (peer.0, PeerEntry { expires }))
                        .collect(),
                    enrolment: Enrolment {
                        secret_hash: secret_hash.0,
                        certificate: certificate.0.0,
                        expires: certificate_expires,
                    },
                }),
                listed_until,
            },
            EventLine::Numbered { revocations_number } => Self::Numbered { revocations_number },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::network::membership::tests::{Step, decide, steps};

    const NOW: u64 = 1_800_000_000;

    fn make(journal: &mut Journal, step: &Step, now: u64) {
        let done: Result<(), JournalError> =
            journal.change(|members| Ok(((), decide(members, step, now))));
        done.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn two_processes_see_the_same_members_also_after_a_restart(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            let mut journals = [Journal::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap()];
            let mut now = NOW;
            for (n, step) in steps.iter().enumerate() {
                if let Step::Wait(seconds) = step {
                    now += seconds;
                }
                make(&mut journals[n % 2], step, now);
            }
            for journal in &mut journals {
                journal.refresh().unwrap();
            }
            let again = Journal::open(dir.path()).unwrap();
            prop_assert_eq!(journals[0].members(), journals[1].members());
            prop_assert_eq!(again.members(), journals[0].members());
        }
    }

    #[test]
    fn a_line_without_an_end_is_ignored_and_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MEMBERS);
        let mut journal = Journal::open(dir.path()).unwrap();
        make(&mut journal, &Step::Invite(None, 1, 0, 1, 60), NOW);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let complete = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&complete[..], b"{\"event\":\"revo"].concat()).unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        make(&mut journal, &Step::Enroll(1, 0), NOW);
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.members(), journal.members());
        assert_eq!(again.members().members(None).count(), 1);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (text, line) in [("{}\n", 1), (&*format!("{HEADER}\n"), 2)] {
            std::fs::write(dir.path().join(MEMBERS), text).unwrap();
            let error = Journal::open(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line} of ")), "{error}");
        }
    }

    #[test]
    fn a_file_with_many_obsolete_lines_is_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        make(&mut journal, &Step::Invite(None, 1, 2, 1, 60), NOW);
        make(&mut journal, &Step::Enroll(1, 0), NOW);
        let mut other = Journal::open(dir.path()).unwrap();
        let before = journal.members().clone();
        journal.lines = 3 * SLACK_LINES;
        journal.compact(NOW).unwrap();
        assert!(journal.lines < 10);
        assert_eq!(*journal.members(), before);
        // Another process notices that the file is a new one.
        make(&mut other, &Step::Invite(Some(0), 2, 0, 1, 60), NOW);
        assert!(journal.refresh().unwrap());
        assert_eq!(journal.members(), other.members());
    }
}
