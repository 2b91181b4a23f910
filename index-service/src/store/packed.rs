//! Parts of the registrations of a peer in few allocations, as they are read from a store.
//!
//! An index with ten million registrations reads them at each start. An allocation for each of them,
//! and another for each name, would take as long as all else. A peer with millions of files comes in
//! many parts, so that reading it takes little memory, and the room of a part is used again for a
//! later one.

use std::{collections::HashMap, ops::Range};

use potluck_core::{
    FileId,
    model::{FileRecord, Registration, RegistrationHash},
};

use crate::{
    registration::RegistrationRef,
    store::{PeerRecord, StoredPeer},
};

/// Receives the peers of a store while it is read.
pub trait PeerSink {
    /// Takes the next part of a peer's registrations. The parts of a peer come in order, without
    /// those of another peer between them. Returns the number of registrations of the peer so far;
    /// a store needs it after the last part, to estimate how much of its data is obsolete.
    fn add(&mut self, part: &PeerPart) -> usize;
}

/// Some registrations of one peer.
#[derive(Debug)]
pub struct PeerPart {
    /// The peer.
    pub record: PeerRecord,
    /// Whether this is the first part of the peer.
    pub is_first: bool,
    /// Whether this is the last part of the peer.
    pub is_last: bool,
    /// What is registered and removed.
    pub entries: PackedEntries,
}

/// Registrations and removals of one peer in the order in which they apply.
#[derive(Debug, Default)]
pub struct PackedEntries {
    entries: Vec<PackedEntry>,
    /// All names, one after the other.
    texts: String,
    /// Where each name ends in `texts`.
    ends: Vec<u32>,
}

#[derive(Debug)]
enum PackedEntry {
    Registered {
        record: FileRecord,
        hash: RegistrationHash,
        is_complete: bool,
        /// Its names, as positions in `ends`.
        names: Range<u32>,
    },
    Removed(FileId),
}

/// An entry of [`PackedEntries`].
#[derive(Debug)]
pub(crate) enum EntryRef<'a> {
    /// A registration, in place of an earlier one of the same file.
    Registered(RegistrationRef<'a>, &'a RegistrationHash),
    /// The registration of this file is removed, if there is one.
    Removed(&'a FileId),
}

impl PackedEntries {
    /// Adds a registration.
    pub(crate) fn push(&mut self, registration: &RegistrationRef<'_>) {
        let first = self.ends.len() as u32;
        for name in &registration.names {
            self.texts.push_str(name);
            self.ends.push(self.texts.len() as u32);
        }
        self.entries.push(PackedEntry::Registered {
            record: *registration.file,
            hash: registration.hash(),
            is_complete: registration.is_complete,
            names: first..self.ends.len() as u32,
        });
    }

    /// Adds the removal of a file.
    pub(crate) fn remove(&mut self, id: FileId) {
        self.entries.push(PackedEntry::Removed(id));
    }

    /// Removes all entries, and keeps their room.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.texts.clear();
        self.ends.clear();
    }

    /// Number of registrations and removals.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        let text = |at: u32| {
            let start = at.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
            &self.texts[start as usize..self.ends[at as usize] as usize]
        };
        self.entries.iter().map(move |entry| match entry {
            PackedEntry::Registered {
                record,
                hash,
                is_complete,
                names,
            } => {
                let registration = RegistrationRef {
                    file: record,
                    names: names.clone().map(text).collect(),
                    is_complete: *is_complete,
                };
                EntryRef::Registered(registration, hash)
            }
            PackedEntry::Removed(id) => EntryRef::Removed(id),
        })
    }
}

/// Leaves everything out.
impl PeerSink for () {
    fn add(&mut self, part: &PeerPart) -> usize {
        part.entries.len()
    }
}

/// Collects whole peers.
#[derive(Debug, Default)]
pub struct StoredPeers {
    /// The peers of which all parts came.
    pub peers: Vec<StoredPeer>,
    files: HashMap<FileId, Registration>,
}

impl PeerSink for StoredPeers {
    fn add(&mut self, part: &PeerPart) -> usize {
        if part.is_first {
            self.files.clear();
        }
        for entry in part.entries.iter() {
            match entry {
                EntryRef::Registered(file, _) => {
                    self.files.insert(file.file.id, Registration::from(&file));
                }
                EntryRef::Removed(id) => {
                    self.files.remove(id);
                }
            }
        }
        let count = self.files.len();
        if part.is_last {
            self.peers.push(StoredPeer {
                record: part.record.clone(),
                files: std::mem::take(&mut self.files).into_values().collect(),
            });
        }
        count
    }
}

/// Passes whole peers on.
pub(crate) struct EachPeer<'a> {
    each: &'a mut dyn FnMut(StoredPeer),
    collected: StoredPeers,
}

impl<'a> EachPeer<'a> {
    pub(crate) fn new(each: &'a mut dyn FnMut(StoredPeer)) -> Self {
        Self {
            each,
            collected: StoredPeers::default(),
        }
    }
}

impl PeerSink for EachPeer<'_> {
    fn add(&mut self, part: &PeerPart) -> usize {
        let count = self.collected.add(part);
        self.collected.peers.drain(..).for_each(&mut *self.each);
        count
    }
}

/// A peer as one part.
impl From<StoredPeer> for PeerPart {
    fn from(StoredPeer { record, files }: StoredPeer) -> Self {
        let mut entries = PackedEntries::default();
        files.iter().for_each(|file| entries.push(&file.into()));
        Self {
            record,
            is_first: true,
            is_last: true,
            entries,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::contract::{peer, registration};

    proptest! {
        #[test]
        fn the_last_entry_of_a_file_counts(
            steps in prop::collection::vec(
                prop::collection::vec((any::<bool>(), 0..5u64, "[a-z]{1,5}"), 0..10),
                1..4,
            )
        ) {
            let mut model: Vec<Registration> = Vec::new();
            let mut stored = StoredPeers::default();
            let mut entries = PackedEntries::default();
            let parts = steps.len();
            for (at, steps) in steps.into_iter().enumerate() {
                entries.clear();
                for (is_push, n, name) in steps {
                    let file = registration(n, &name);
                    model.retain(|other| other.file.id != file.file.id);
                    if is_push {
                        entries.push(&(&file).into());
                        model.push(file);
                    } else {
                        entries.remove(file.file.id);
                    }
                }
                for entry in entries.iter() {
                    if let EntryRef::Registered(file, hash) = entry {
                        let file = Registration::from(&file);
                        prop_assert_eq!(*hash, RegistrationHash::from(&file));
                    }
                }
                let part = PeerPart {
                    record: peer(1),
                    is_first: at == 0,
                    is_last: at + 1 == parts,
                    entries: std::mem::take(&mut entries),
                };
                prop_assert_eq!(stored.add(&part), model.len());
                entries = part.entries;
            }
            let mut files = stored.peers.remove(0).files;
            files.sort_by_key(|file| file.file.id);
            model.sort_by_key(|file| file.file.id);
            prop_assert_eq!(files, model);
        }
    }
}
