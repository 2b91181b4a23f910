//! The snapshot of a folder: the paths that a walk found, and the kind of each.

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::OnceLock,
};

use potluck_core::{
    Problem, Reason,
    collection::{
        limits::MAX_ENTRIES,
        manifest::{EntryContent, Manifest},
    },
};

use crate::{
    catalog::stamp::{Stamp, stamp_of},
    fs::parallel::map_slices,
    library::{
        problems::{MAX_PROBLEMS, Refused, changed_while_hashing, unreadable},
        scan::omissions::{OmissionKind, Omissions},
    },
};

/// In a folder with more entries than this, `stat` is called on all files before hashing, so that
/// the total size is known early. In smaller folders hashing calls `stat` itself when it opens each
/// file.
const MAX_LAZY_STATS: usize = 128 * 1024;

/// All entries of a folder, sorted by path as in a manifest. All paths are in one string: a hundred
/// thousand strings would take several times the memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    text: String,
    entries: Vec<SnapshotEntry>,
    /// The entries of the folder that are left out.
    pub(crate) omitted: Omissions,
    /// Whether the file system may support neither modes nor links.
    may_lack_modes: bool,
    /// Whether files may be behind links.
    follows_links: bool,
}

/// An entry of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SnapshotEntry {
    /// The position and length of its path in the text.
    start: u32,
    len: u32,
    kind: EntryKind,
}

/// The kind of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// With its `stat`, once that was called.
    File(OnceLock<FileStat>),
    EmptyFolder,
    Link(Box<str>),
    /// A file that was removed since it was listed. Removed from the snapshot at once.
    Vanished,
}

/// The `stat` of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileStat {
    pub(crate) stamp: Stamp,
    /// Whether the owner may execute it.
    pub(crate) executable: bool,
}

impl FileStat {
    pub(crate) fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            stamp: stamp_of(metadata),
            executable: metadata.mode() & 0o100 != 0,
        }
    }
}

impl SnapshotEntry {
    /// The stamp of a file, if its `stat` was called.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        match self.kind {
            EntryKind::File(ref stat) => stat.get().map(|stat| stat.stamp),
            _ => None,
        }
    }

    /// The path of the entry in the snapshot's text.
    pub(crate) fn path<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..][..self.len as usize]
    }
}

impl Snapshot {
    /// Sets whether the file system may lack modes and links, and whether files may be behind
    /// links.
    pub(crate) const fn with_source(mut self, may_lack_modes: bool, follows_links: bool) -> Self {
        self.may_lack_modes = may_lack_modes;
        self.follows_links = follows_links;
        self
    }

    /// Whether the execute bits mean anything. They do not if the file system may lack modes and
    /// every file is executable. Counts only files whose `stat` was called.
    pub(crate) fn has_modes(&self) -> bool {
        let mut stat = self.files().filter_map(|(_, stat)| stat);
        !self.may_lack_modes || stat.any(|stat| !stat.executable)
    }

    /// Whether the file system supports links. If it may lack modes and the folder has no link, it
    /// is taken to support none.
    fn has_links(&self) -> bool {
        !self.may_lack_modes
            || self
                .entries
                .iter()
                .any(|entry| matches!(entry.kind, EntryKind::Link(_)))
    }

    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// The path of an entry.
    ///
    /// # Panics
    /// `index` is out of range.
    pub(crate) fn path(&self, index: usize) -> &str {
        self.entries[index].path(&self.text)
    }

    /// The stamp of a file, if its `stat` was called.
    ///
    /// # Panics
    /// `index` is out of range.
    pub(crate) fn stamp(&self, index: usize) -> Option<Stamp> {
        self.entries[index].stamp()
    }

    /// Sets the `stat` of a file, unless it is already known.
    ///
    /// # Panics
    /// `index` is out of range.
    pub(crate) fn set_stat(&self, index: usize, stat: FileStat) {
        if let EntryKind::File(cell) = &self.entries[index].kind {
            // The first `stat` counts.
            let _ = cell.set(stat);
        }
    }

    /// The stamps of all entries; meaningless for entries that are not files.
    pub(crate) fn all_stamps(&self) -> Vec<Stamp> {
        let stamps = self.entries.iter().map(|entry| entry.stamp().unwrap_or_default());
        stamps.collect()
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &EntryKind)> {
        self.entries
            .iter()
            .map(|entry| (entry.path(&self.text), &entry.kind))
    }

    /// The files: index and `stat`, if known.
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, Option<FileStat>)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| match &entry.kind {
                EntryKind::File(stat) => Some((index, stat.get().copied())),
                _ => None,
            })
    }

    /// Sum of the sizes of files whose `stat` is known, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.stamps().map(|stamp| stamp.size).sum()
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.files().filter_map(|(_, stat)| Some(stat?.stamp))
    }

    /// Adds an entry; false if the snapshot is full.
    pub(crate) fn push(&mut self, path: &str, kind: EntryKind) -> bool {
        let (Ok(start), Ok(len)) = (u32::try_from(self.text.len()), u32::try_from(path.len()))
        else {
            return false;
        };
        self.text.push_str(path);
        self.entries.push(SnapshotEntry { start, len, kind });
        self.len() <= MAX_ENTRIES
    }

    /// Adds all entries of another snapshot; false if the snapshot is full.
    pub(crate) fn append(&mut self, mut other: Self) -> bool {
        self.omitted.append(std::mem::take(&mut other.omitted));
        if self.entries.is_empty() {
            (self.text, self.entries) = (other.text, other.entries);
            return self.len() <= MAX_ENTRIES;
        }
        let Ok(before) = u32::try_from(self.text.len()) else {
            return false;
        };
        if u32::try_from(self.text.len() + other.text.len()).is_err() {
            return false;
        }
        self.text.push_str(&other.text);
        let moved = other.entries.into_iter().map(|entry| SnapshotEntry {
            start: before + entry.start,
            ..entry
        });
        self.entries.extend(moved);
        self.len() <= MAX_ENTRIES
    }

    /// Sorts the entries from this entry on in the order of a manifest.
    pub(crate) fn sort_from(&mut self, first: usize) {
        let text = &self.text;
        self.entries[first..].sort_unstable_by(|a, b| a.path(text).cmp(b.path(text)));
    }

    /// Sorts all entries in the order of a manifest. A stable sort, because it merges runs that are
    /// already sorted: the files of each folder.
    pub(crate) fn sorted(mut self) -> Self {
        let text = &self.text;
        self.entries.sort_by(|a, b| a.path(text).cmp(b.path(text)));
        self
    }

    /// Calls [`stat_all`](Self::stat_all) if the folder is too large to leave that to hashing.
    ///
    /// # Errors
    /// As [`walk`](super::walk::walk).
    pub(crate) fn stat_if_many(&mut self, root: &Path, threads: usize) -> Result<(), Vec<Refused>> {
        match self.len() > MAX_LAZY_STATS {
            true => self.stat_all(root, threads),
            false => Ok(()),
        }
    }

    /// Leaves out the entries at these indexes, which ascend.
    pub(crate) fn remove(&mut self, indexes: &[u32]) {
        let (mut at, mut removed) = (0, indexes.iter().peekable());
        self.entries.retain(|_| {
            let is_kept = removed.next_if(|index| **index == at).is_none();
            at += 1;
            is_kept
        });
    }

    /// Calls `stat` for each file, on this number of threads. Leaves out files that were removed
    /// meanwhile.
    ///
    /// # Errors
    /// As [`walk`](super::walk::walk).
    pub(crate) fn stat_all(&mut self, root: &Path, threads: usize) -> Result<(), Vec<Refused>> {
        let (text, follows_links) = (&self.text, self.follows_links);
        let mut problems = map_slices(&mut self.entries, threads, |entries| {
            let mut problems = Vec::new();
            let files = entries
                .iter_mut()
                .filter(|entry| matches!(entry.kind, EntryKind::File(_)));
            for entry in files {
                let path = root.join(entry.path(text));
                match stat_entry(&path, follows_links) {
                    Ok(file) => entry.kind = file,
                    Err(problem) if problem.reason == Reason::NotFound => {
                        entry.kind = EntryKind::Vanished
                    }
                    Err(problem) if problems.len() < MAX_PROBLEMS => problems.push((path, problem)),
                    Err(_) => {}
                }
            }
            problems
        });
        problems.truncate(MAX_PROBLEMS);
        self.entries.retain(|entry| {
            let is_vanished = entry.kind == EntryKind::Vanished;
            if is_vanished {
                let problem = Problem::new(Reason::NotFound, "it was removed");
                let path = root.join(entry.path(text));
                self.omitted.add(OmissionKind::Vanished, path, problem);
            }
            !is_vanished
        });
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems),
        }
    }
}

/// A hash over all paths, kinds and stamps.
pub(crate) fn fingerprint(snapshot: &Snapshot) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, kind) in snapshot.iter() {
        path.hash(&mut hasher);
        match kind {
            EntryKind::File(stat) => (0, stat.get()).hash(&mut hasher),
            EntryKind::EmptyFolder => 1.hash(&mut hasher),
            EntryKind::Link(target) => (2, target).hash(&mut hasher),
            EntryKind::Vanished => 3.hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// Whether a folder is still as in a manifest and its stamps.
pub(crate) fn is_same(snapshot: &Snapshot, manifest: &Manifest, stamps: &[Stamp]) -> bool {
    let (has_modes, has_links) = (snapshot.has_modes(), snapshot.has_links());
    // Links that the file system does not support are not expected.
    let mut expected = manifest
        .entries()
        .zip(stamps)
        .filter(|(entry, _)| has_links || !matches!(entry.content, EntryContent::Link { .. }));
    let are_same = snapshot.iter().all(|(path, kind)| {
        let Some((entry, known)) = expected.next() else {
            return false;
        };
        path == entry.path.as_str()
            && match (kind, entry.content) {
                (EntryKind::File(stat), EntryContent::File { executable, .. }) => {
                    let is_as_known = |stat: &FileStat| {
                        stat.stamp == *known && (stat.executable == executable || !has_modes)
                    };
                    stat.get().is_some_and(is_as_known)
                }
                (EntryKind::EmptyFolder, EntryContent::EmptyDirectory) => true,
                (EntryKind::Link(target), EntryContent::Link { target: expected }) => {
                    **target == *expected
                }
                _ => false,
            }
    });
    manifest.len() == stamps.len() && are_same && expected.next().is_none()
}

/// Time of the latest change in the folder, in nanoseconds since 1970.
pub(crate) fn latest_change(snapshot: &Snapshot) -> i64 {
    let changes = snapshot.stamps().map(|stamp| stamp.ctime.max(stamp.mtime));
    changes.max().unwrap_or(0)
}

/// Calls `stat` for a file. It must still be a regular file.
fn stat_entry(path: &Path, follows_links: bool) -> Result<EntryKind, Problem> {
    let metadata = match follows_links {
        true => path.metadata(),
        false => path.symlink_metadata(),
    };
    let metadata = metadata.map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok(EntryKind::File(FileStat::from_metadata(&metadata).into())),
        false => Err(changed_while_hashing()),
    }
}
