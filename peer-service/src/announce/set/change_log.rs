//! The log of changes to the announce set: one compact entry per id, in the order of the changes.
//! Pure.
//!
//! Invariants: entries are sorted by version; each id has at most one entry that is not obsolete,
//! and `positions` has its index; obsolete entries are at most a fraction of all.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::{HashTable, hash_table::Entry};
use potluck_core::FileId;

/// Obsolete entries are removed when they exceed one in this many.
const OBSOLETE_FRACTION: usize = 4;

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// The file is complete.
    Complete,
    /// Part of the file is here.
    Partial,
    /// The file was removed.
    Removed,
    /// Superseded by a later entry, or no longer needed.
    Obsolete,
}

/// A change of one id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogEntry {
    pub(crate) version: u64,
    pub(crate) id: FileId,
    pub(crate) kind: ChangeKind,
}

/// The change log.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    entries: Vec<LogEntry>,
    /// Index of each id's entry. Strangers may choose ids, so they are hashed with a random key.
    positions: HashTable<u32>,
    hasher: RandomState,
    last: u64,
    present: usize,
    removed: usize,
    obsolete: usize,
}

impl ChangeLog {
    /// Number of the last change.
    pub(crate) const fn last(&self) -> u64 {
        self.last
    }

    /// Number of files that are present.
    pub(crate) const fn present(&self) -> usize {
        self.present
    }

    /// The changes after this version, oldest first.
    pub(crate) fn after(&self, version: u64) -> impl Iterator<Item = &LogEntry> {
        let start = self.entries.partition_point(|entry| entry.version <= version);
        self.entries[start..]
            .iter()
            .filter(|entry| entry.kind != ChangeKind::Obsolete)
    }

    /// Reserves room for `all` entries exactly: doubling would briefly take twice the memory.
    pub(crate) fn reserve(&mut self, all: usize) {
        let (entries, hasher) = (&mut self.entries, &self.hasher);
        let more = all.saturating_sub(entries.len());
        entries.reserve_exact(more);
        self.positions
            .reserve(more, |&at| hasher.hash_one(entries[at as usize].id));
    }

    /// Adds or replaces an entry; false if this would replace a complete file with a partial one.
    pub(crate) fn put(&mut self, id: FileId, kind: ChangeKind) -> bool {
        if kind == ChangeKind::Partial
            && self
                .entry(&id)
                .is_some_and(|entry| entry.kind == ChangeKind::Complete)
        {
            return false;
        }
        self.push(id, kind);
        true
    }

    /// Removes a file. With `remember`, the log keeps an entry of the removal.
    pub(crate) fn remove(&mut self, id: &FileId, remember: bool) {
        if self
            .entry(id)
            .is_none_or(|entry| entry.kind == ChangeKind::Removed)
        {
            return;
        }
        if remember {
            self.push(*id, ChangeKind::Removed);
        } else {
            self.retire_id(id);
            self.last += 1;
        }
    }

    /// Drops the entries of removals up to this version.
    pub(crate) fn forget_removed(&mut self, up_to: u64) {
        if self.removed == 0 {
            return;
        }
        let gone = self.entries.iter().take_while(|entry| entry.version <= up_to);
        let gone = gone.filter(|entry| entry.kind == ChangeKind::Removed);
        for id in gone.map(|entry| entry.id).collect::<Vec<_>>() {
            self.retire_id(&id);
        }
        self.compact();
    }

    fn entry(&self, id: &FileId) -> Option<&LogEntry> {
        let entries = &self.entries;
        let at = self
            .positions
            .find(self.hasher.hash_one(id), |&at| entries[at as usize].id == *id)?;
        entries.get(*at as usize)
    }

    /// Makes the entry of an id obsolete, if it has one.
    fn retire_id(&mut self, id: &FileId) {
        let entries = &self.entries;
        let found = self
            .positions
            .find_entry(self.hasher.hash_one(id), |&at| entries[at as usize].id == *id);
        if let Ok(found) = found {
            let (at, _) = found.remove();
            self.retire(at);
        }
    }

    /// Makes the entry at this index obsolete. `positions` must no longer refer to it.
    fn retire(&mut self, at: u32) {
        match std::mem::replace(&mut self.entries[at as usize].kind, ChangeKind::Obsolete) {
            ChangeKind::Removed => self.removed -= 1,
            _ => self.present -= 1,
        }
        self.obsolete += 1;
    }

    /// Appends an entry, which replaces the id's earlier one.
    fn push(&mut self, id: FileId, kind: ChangeKind) {
        self.compact();
        self.last += 1;
        match kind {
            ChangeKind::Removed => self.removed += 1,
            _ => self.present += 1,
        }
        // A peer has far fewer than 2^32 files.
        let at = self.entries.len() as u32;
        let (entries, hasher) = (&self.entries, &self.hasher);
        let position = self.positions.entry(
            hasher.hash_one(id),
            |&at| entries[at as usize].id == id,
            |&at| hasher.hash_one(entries[at as usize].id),
        );
        match position {
            Entry::Vacant(position) => drop(position.insert(at)),
            Entry::Occupied(mut position) => {
                let old = std::mem::replace(position.get_mut(), at);
                self.retire(old);
            }
        }
        self.entries.push(LogEntry {
            version: self.last,
            id,
            kind,
        });
    }

    fn index(&mut self, at: u32) {
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash = |&at: &u32| hasher.hash_one(entries[at as usize].id);
        self.positions.insert_unique(hash(&at), at, hash);
    }

    /// Removes obsolete entries, if there are enough of them.
    fn compact(&mut self) {
        if self.obsolete <= self.entries.len() / OBSOLETE_FRACTION {
            return;
        }
        self.entries.retain(|entry| entry.kind != ChangeKind::Obsolete);
        self.entries
            .shrink_to(self.entries.len() + self.entries.len() / OBSOLETE_FRACTION);
        self.obsolete = 0;
        self.positions.clear();
        (0..self.entries.len() as u32).for_each(|at| self.index(at));
    }
}
