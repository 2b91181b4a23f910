//! Finds the slot of a file by its id, or by the first digits of the id.
//!
//! The table is hashed by the first four bytes of the ids, so that all files with these bytes are
//! found in one probe. This costs no memory beyond the table that lookups by id need anyway.
//!
//! Anyone can compute ids with the same first bytes, at four billion hashes each. At most
//! [`MAX_SAME_PREFIX`] of them share a bucket of this table; the others are in a second table that
//! is hashed by the whole id. They are found by id, but not by prefix.
//!
//! Invariant: each slot is in exactly one of the two tables, so a lookup compares at most
//! [`MAX_SAME_PREFIX`] ids that share their first bytes.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;
use potluck_core::{FileId, identity::id_prefix::IdPrefix};
use smallvec::SmallVec;

use crate::catalog::storage::sharded_table::ShardedTable;

/// Maximum files found by one prefix. Among a billion random ids, no more than this share their
/// first four bytes.
pub(crate) const MAX_SAME_PREFIX: usize = 16;

/// The slots of files. The ids are elsewhere: each call gets functions that return the first bytes
/// of the id in a slot, and the whole id, which takes longer.
#[derive(Debug, Default)]
pub(crate) struct FileSlots {
    hasher: DefaultHashBuilder,
    by_prefix: ShardedTable,
    /// Files beyond [`MAX_SAME_PREFIX`].
    by_id: ShardedTable,
}

fn first_bytes(id: &FileId) -> [u8; 4] {
    let [a, b, c, d, ..] = *id.as_bytes();
    [a, b, c, d]
}

impl FileSlots {
    /// Makes room for this many files in an empty table.
    pub(crate) fn reserve(&mut self, files: usize) {
        self.by_prefix.reserve(files);
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink(&mut self, first_bytes_of: impl Fn(u32) -> [u8; 4]) {
        let hasher = &self.hasher;
        self.by_prefix
            .shrink(|slot| hasher.hash_one(first_bytes_of(slot)));
    }

    /// The slot of a file.
    pub(crate) fn find(
        &self,
        id: &FileId,
        first_bytes_of: impl Fn(u32) -> [u8; 4],
        id_of: impl Fn(u32) -> FileId,
    ) -> Option<u32> {
        let first = first_bytes(id);
        let hash = self.hasher.hash_one(first);
        let found = self
            .by_prefix
            .find(hash, |slot| first_bytes_of(slot) == first && id_of(slot) == *id);
        if found.is_some() || self.by_id.is_empty() {
            return found;
        }
        let hash = self.hasher.hash_one(id);
        self.by_id.find(hash, |slot| id_of(slot) == *id)
    }

    /// Brings the table's part for a file into the cache; see [`ShardedTable::touch`].
    pub(crate) fn touch(&self, id: &FileId) {
        self.by_prefix.touch(self.hasher.hash_one(first_bytes(id)));
    }

    /// The slots of the files with this prefix in ascending order, at most [`MAX_SAME_PREFIX`].
    pub(crate) fn with_prefix(
        &self,
        prefix: &IdPrefix,
        id_of: impl Fn(u32) -> FileId,
    ) -> SmallVec<[u32; MAX_SAME_PREFIX]> {
        let hash = self.hasher.hash_one(prefix.first_bytes());
        let found = self.by_prefix.with_hash(hash);
        let mut slots: SmallVec<_> = found.filter(|&slot| prefix.matches(&id_of(slot))).collect();
        slots.sort_unstable();
        slots
    }

    /// Adds the slot of a file that is not in the table, with its id.
    pub(crate) fn insert(
        &mut self,
        slot: u32,
        id: &FileId,
        first_bytes_of: impl Fn(u32) -> [u8; 4],
        id_of: impl Fn(u32) -> FileId,
    ) {
        let hasher = &self.hasher;
        let first = first_bytes(id);
        let hash = hasher.hash_one(first);
        let same = self.by_prefix.with_hash(hash);
        let is_crowded = same
            .filter(|&other| first_bytes_of(other) == first)
            .nth(MAX_SAME_PREFIX - 1)
            .is_some();
        if is_crowded {
            self.by_id
                .insert(hasher.hash_one(id), slot, |slot| hasher.hash_one(id_of(slot)));
        } else {
            self.by_prefix
                .insert(hash, slot, |slot| hasher.hash_one(first_bytes_of(slot)));
        }
    }

    /// Number of files.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.by_prefix.len() + self.by_id.len()
    }

    /// Removes the slot of the file with this id.
    pub(crate) fn remove(&mut self, slot: u32, id: &FileId) {
        let hash = self.hasher.hash_one(first_bytes(id));
        if !self.by_prefix.remove(hash, slot) {
            self.by_id.remove(self.hasher.hash_one(id), slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// An id whose first bytes are one of few, so that prefixes are crowded.
    fn id(first: u8, last: u8) -> FileId {
        let mut bytes = [0; 32];
        (bytes[3], bytes[31]) = (first, last);
        FileId(bytes)
    }

    proptest! {
        #[test]
        fn files_are_found_by_id_and_by_prefix(
            changes in prop::collection::vec((0u8..3, 0u8..40, any::<bool>()), 1..300)
        ) {
            let mut ids: BTreeMap<u32, FileId> = BTreeMap::new();
            let mut table = FileSlots::default();
            let mut next = 0;
            for (first, last, add) in changes {
                let id = id(first, last);
                let found = table.find(&id, |slot| first_bytes(&ids[&slot]), |slot| ids[&slot]);
                let expected = ids.iter().find(|(_, other)| **other == id).map(|(&slot, _)| slot);
                prop_assert_eq!(found, expected);
                match (found, add) {
                    (None, true) => {
                        ids.insert(next, id);
                        table.insert(next, &id, |slot| first_bytes(&ids[&slot]), |slot| ids[&slot]);
                        next += 1;
                    }
                    (Some(slot), false) => {
                        table.remove(slot, &id);
                        ids.remove(&slot);
                    }
                    _ => {}
                }
                let prefix: IdPrefix = id.to_string()[..8].parse().unwrap();
                let found = table.with_prefix(&prefix, |slot| ids[&slot]);
                let matching = ids.iter().filter(|(_, id)| prefix.matches(id));
                let all: Vec<u32> = matching.map(|(&slot, _)| slot).collect();
                prop_assert!(found.len() <= MAX_SAME_PREFIX);
                prop_assert!(found.iter().all(|slot| all.contains(slot)));
                if table.by_id.is_empty() {
                    prop_assert_eq!(&found[..], &all[..]);
                }
                prop_assert_eq!(table.len(), ids.len());
            }
        }
    }

    #[test]
    fn ids_that_crowd_a_prefix_are_still_found_by_id() {
        let ids: Vec<FileId> = (0..200).map(|last| id(1, last)).collect();
        let mut table = FileSlots::default();
        let id_of = |slot: u32| ids[slot as usize];
        let first_bytes_of = |slot: u32| first_bytes(&id_of(slot));
        for (slot, id) in (0..).zip(&ids) {
            table.insert(slot, id, first_bytes_of, id_of);
        }
        for (slot, id) in (0..).zip(&ids) {
            assert_eq!(table.find(id, first_bytes_of, id_of), Some(slot));
        }
        let prefix: IdPrefix = "00000001".parse().unwrap();
        let found = table.with_prefix(&prefix, id_of);
        assert_eq!(found.len(), MAX_SAME_PREFIX);
    }
}
