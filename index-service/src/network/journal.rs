//! The members on disk: one event a line, in `members.jsonl` in the network's folder.
//!
//! ```text
//! DIR/
//!   members.jsonl        mode 0600; the first line has the version of the format
//!   members.generation   the number of the last acknowledged event
//!   members.lock         locked by the process that appends
//!   members.shared       with several indexes: the number of the last event that all of them know
//! ```
//!
//! A change takes the lock, reads what other processes appended, decides, appends one line and
//! syncs it. So `potluck network invite` works on the folder of a running index, and the index sees
//! the new code when it next reads. A line without its end is from a process that died: it was
//! never acknowledged, and the next change overwrites it.
//!
//! A revoked member must not come back because of a damaged disk. So each line has a checksum of
//! itself and of all lines before it, and the number of the last acknowledged event is in a file of
//! its own ([`potluck_core::generation`]): a changed, lost, repeated or moved line is an error, and
//! so is a file that lost its end or is an older copy. Unlike registrations, members do not come
//! back by themselves, so the program stops and says what to do instead of starting with none.
//!
//! Invariant: the members in memory are the result of the lines up to `position`.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{durable, generation::GenerationFile};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::network::{
    journal::event_line::EventLine,
    membership::{Event, Membership},
};

mod event_line;
#[cfg(test)]
mod tests;

/// Name of the file.
pub(crate) const MEMBERS: &str = "members.jsonl";

/// Name of the lock.
const LOCK: &str = "members.lock";

/// Name of the file with the number of the last acknowledged event.
const GENERATION: &str = "members.generation";

/// Name of the file with the number of the last event that is in the log of all indexes.
const SHARED: &str = "members.shared";

/// The version of the format. A reader refuses later ones.
const VERSION: u32 = 2;

/// The version without checksums. The next change rewrites such a file.
const WITHOUT_SUMS: u32 = 1;

/// What stands between an event and its checksum in a line; a `"` and a `}` follow.
const SUM: &str = ",\"sum\":\"";

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
    /// The file has fewer events than were acknowledged.
    #[error(
        "{} has {found} of {acknowledged} changes: it lost its end or is an older copy, so that \
         revoked members could come back; restore the newest copy, or remove {} to go on without \
         the lost changes, and revoke again", path.display(), generation.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// The file with the number of acknowledged events.
        generation: PathBuf,
        /// Number of events in the file.
        found: u64,
        /// Number of acknowledged events.
        acknowledged: u64,
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
    position: Position,
    /// With several indexes: the number of the last event that is in their log.
    shared: Option<u64>,
    /// Events after that one.
    unshared: Vec<Event>,
}

/// What was read of the file: its complete lines.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    bytes: u64,
    lines: usize,
    version: u32,
    /// Number of events since the network was made, also of those that are no longer in the file.
    generation: u64,
    /// Number of lines, of those at the start, that stand for all events up to that in the header.
    unread_snapshot: u64,
    sum: LineSum,
}

/// The checksum of a line and of all lines before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct LineSum([u8; 8]);

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    potluck_members: u32,
    /// Number of events before the file was rewritten.
    #[serde(default)]
    generation: u64,
    /// Number of lines that stand for them.
    #[serde(default)]
    snapshot: u64,
}

impl Journal {
    /// Opens the members in the folder of a network; there are none if there is no file.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn open(folder: &Path) -> Result<Self, JournalError> {
        Self::open_with(folder, None)
    }

    /// Opens the members of a network with several indexes. A folder that was restored has no record of
    /// what is in their log: then every event counts as shared.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn open_shared(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(SHARED);
        let read = GenerationFile::read(&path);
        let shared = read.map_err(|source| JournalError::System { path, source })?;
        Self::open_with(folder, Some(shared.unwrap_or(u64::MAX)))
    }

    fn open_with(folder: &Path, shared: Option<u64>) -> Result<Self, JournalError> {
        let mut journal = Self {
            shared,
            unshared: Vec::new(),
            path: folder.join(MEMBERS),
            lock: folder.join(LOCK),
            members: Membership::default(),
            file: None,
            position: Position::default(),
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
        // Read before the file: another process may append meanwhile.
        let acknowledged = self.acknowledged()?;
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound && self.file.is_none() => {
                return self.check_complete(0, acknowledged).map(|()| false);
            }
            Err(source) => return Err(self.system(source)),
        };
        let metadata = file.metadata().map_err(|source| self.system(source))?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if identity == self.file && metadata.len() == self.position.bytes {
            return Ok(false);
        }
        let (mut members, mut position) = (self.members.clone(), self.position);
        let mut unshared = self.unshared.clone();
        if identity != self.file || metadata.len() < self.position.bytes {
            (members, position) = (Membership::default(), Position::default());
            unshared.clear();
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(position.bytes))
            .and_then(|_| file.read_to_end(&mut bytes))
            .map_err(|source| self.system(source))?;
        let complete = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let before = position.lines;
        for line in bytes[..complete].split_inclusive(|byte| *byte == b'\n') {
            let is_single = position.unread_snapshot == 0;
            let event = position.read_line(line).map_err(|reason| JournalError::Damaged {
                path: self.path.clone(),
                line: position.lines,
                reason,
            })?;
            if let Some(event) = event {
                if is_single && self.shared.is_some_and(|shared| position.generation > shared) {
                    unshared.push(event.clone());
                }
                members.apply(event);
            }
        }
        // A file that ends in its snapshot lacks some of all events before it.
        let found = match position.unread_snapshot {
            0 => position.generation,
            _ => 0,
        };
        self.check_complete(found, acknowledged.max(position.generation))?;
        (self.members, self.position, self.file) = (members, position, identity);
        self.unshared = unshared;
        Ok(position.lines > before)
    }

    /// Fails if the file has fewer events than were acknowledged.
    fn check_complete(&self, found: u64, acknowledged: u64) -> Result<(), JournalError> {
        match found < acknowledged {
            true => Err(JournalError::Lost {
                path: self.path.clone(),
                generation: self.path.with_file_name(GENERATION),
                found,
                acknowledged,
            }),
            false => Ok(()),
        }
    }

    /// The number of the last acknowledged event; 0 if it is not known.
    fn acknowledged(&self) -> Result<u64, JournalError> {
        let path = self.path.with_file_name(GENERATION);
        let read = GenerationFile::read(&path).map(Option::unwrap_or_default);
        read.map_err(|source| JournalError::System { path, source })
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
        if self.position.version == WITHOUT_SUMS {
            self.rewrite(&self.members.clone())?;
        }
        let (answer, event) = decide(&self.members)?;
        if let Some(event) = event {
            self.append(&[event])?;
        }
        Ok(answer)
    }

    /// Events that this or another process on this machine appended and that are not in the log of all
    /// indexes.
    pub(crate) fn unshared(&self) -> &[Event] {
        &self.unshared
    }

    /// Records that all events are in the log of all indexes.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn mark_shared(&mut self) -> Result<(), JournalError> {
        let path = self.path.with_file_name(SHARED);
        let generation = self.position.generation;
        GenerationFile::open(&path)
            .and_then(|mut file| file.record(generation))
            .map_err(|source| JournalError::System { path, source })?;
        self.shared = Some(generation);
        self.unshared.clear();
        Ok(())
    }

    /// Replaces the members. The caller has the lock.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn replace(&mut self, members: &Membership) -> Result<(), JournalError> {
        if self.members == *members {
            return Ok(());
        }
        self.position.generation += 1;
        self.rewrite(members)?;
        self.record_generation();
        Ok(())
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
        if self.position.lines <= 2 * needed + SLACK_LINES {
            return Ok(());
        }
        self.rewrite(&members)
    }

    /// Replaces the file by one with only these members. The caller has the lock.
    fn rewrite(&mut self, members: &Membership) -> Result<(), JournalError> {
        let (mut text, mut sum) = header(self.position.generation, members.snapshot().count());
        for event in members.snapshot() {
            text.push_str(&line(&event, &mut sum));
        }
        durable::write(&self.path, text.as_bytes(), 0o600).map_err(|source| self.system(source))?;
        self.file = None;
        self.refresh().map(drop)
    }

    /// Locks the file against other processes until the handle is dropped.
    ///
    /// # Errors
    /// [`JournalError::System`].
    pub(crate) fn take_lock(&self) -> Result<File, JournalError> {
        let system = |source| JournalError::System {
            path: self.lock.clone(),
            source,
        };
        let lock = open_private(&self.lock).map_err(system)?;
        lock.lock().map_err(system)?;
        Ok(lock)
    }

    /// Appends events, durable before this returns. The caller has the lock and has read all lines.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(crate) fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        let is_new = self.position.bytes == 0;
        let (mut text, mut sum) = match is_new {
            true => header(0, 0),
            false => (String::new(), self.position.sum),
        };
        for event in events {
            text.push_str(&line(event, &mut sum));
        }
        let position = self.position.bytes;
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
                self.position.version = VERSION;
                self.position.bytes += text.len() as u64;
                self.position.lines += events.len() + usize::from(is_new);
                self.position.generation += events.len() as u64;
                self.position.sum = sum;
                self.record_generation();
                events.iter().for_each(|event| self.members.apply(event.clone()));
                Ok(())
            }
            Err(source) => {
                // What is in the file is unknown: read all of it again.
                self.position = Position::default();
                self.members = Membership::default();
                self.file = None;
                self.unshared.clear();
                let _ = self.refresh();
                Err(self.system(source))
            }
        }
    }

    /// Records that the last event is durable. A failure only weakens the check at the next start.
    fn record_generation(&self) {
        let path = self.path.with_file_name(GENERATION);
        let recorded =
            GenerationFile::open(&path).and_then(|mut file| file.record(self.position.generation));
        if let Err(error) = recorded {
            tracing::warn!(
                path = %path.display(), %error,
                "cannot write down the number of the last change of the members: the next start \
                 would not notice if it were lost"
            );
        }
    }

    fn system(&self, source: io::Error) -> JournalError {
        JournalError::System {
            path: self.path.clone(),
            source,
        }
    }
}

impl Position {
    /// Reads the next line, and returns its event; the first line has none.
    ///
    /// # Errors
    /// The reason why the line is damaged.
    fn read_line(&mut self, line: &[u8]) -> Result<Option<Event>, String> {
        self.lines += 1;
        self.bytes += line.len() as u64;
        if self.lines == 1 {
            let header: Header = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            if !(WITHOUT_SUMS..=VERSION).contains(&header.potluck_members) {
                return Err(format!("it does not name version {VERSION} of the format"));
            }
            self.version = header.potluck_members;
            (self.generation, self.unread_snapshot) = (header.generation, header.snapshot);
            self.sum = LineSum::default().of_next(line);
            return Ok(None);
        }
        let text = match self.version {
            // A line never contains this in a text, where quotes are escaped.
            WITHOUT_SUMS if line.windows(SUM.len()).any(|part| part == SUM.as_bytes()) => {
                return Err("it has a checksum, but the first line names version 1".to_owned());
            }
            WITHOUT_SUMS => line.to_vec(),
            _ => self.verify(line).ok_or("its checksum is wrong")?,
        };
        let event: EventLine = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        match self.unread_snapshot {
            0 => self.generation += 1,
            _ => self.unread_snapshot -= 1,
        }
        Ok(Some(event.into()))
    }

    /// The line without its checksum; `None` if that is wrong.
    fn verify(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let (text, end) = line.split_at_checked(line.len().checked_sub(SUM.len() + 16 + 3)?)?;
        let found = end.strip_prefix(SUM.as_bytes())?.strip_suffix(b"\"}\n")?;
        let text = [text, b"}"].concat();
        let sum = self.sum.of_next(&text);
        if found != hex::encode(sum.0).as_bytes() {
            return None;
        }
        self.sum = sum;
        Some(text)
    }
}

impl LineSum {
    /// The checksum of the next line.
    fn of_next(self, line: &[u8]) -> Self {
        let mut hash = sha2::Sha256::new();
        hash.update(self.0);
        hash.update(line);
        let hash: [u8; 32] = hash.finalize().into();
        let (parts, _) = hash.as_chunks();
        Self(parts[0])
    }
}

/// The first line of a file, and its checksum.
fn header(generation: u64, snapshot: usize) -> (String, LineSum) {
    let header = Header {
        potluck_members: VERSION,
        generation,
        snapshot: snapshot as u64,
    };
    let mut text = serde_json::to_string(&header).expect("a header has only numbers");
    text.push('\n');
    let sum = LineSum::default().of_next(text.as_bytes());
    (text, sum)
}

/// The text of an event.
pub(crate) fn encode(event: &Event) -> String {
    let line = EventLine::from(event.clone());
    serde_json::to_string(&line).expect("an event has only text and numbers")
}

/// The event with this text.
///
/// # Errors
/// The reason why it is not an event.
pub(crate) fn decode(text: &str) -> Result<Event, String> {
    let event: EventLine = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(event.into())
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

/// The line of an event. Updates `sum`, which is that of the line before.
fn line(event: &Event, sum: &mut LineSum) -> String {
    let mut text = encode(event);
    *sum = sum.of_next(text.as_bytes());
    // An object, which has fields.
    text.pop();
    format!("{text}{SUM}{}\"}}\n", hex::encode(sum.0))
}
