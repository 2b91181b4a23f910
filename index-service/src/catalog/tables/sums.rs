//! The SHA-256s that claims contain, each stored once, with the files of these claims.
//!
//! Invariant: a SHA-256 exists exactly as long as a file has a claim with it.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;
use potluck_core::Sha256;

use crate::catalog::storage::{
    file_sets::{FileSet, FileSets, FilesIn},
    paged_slab::{PagedSlab, SlabElement},
    sharded_table::ShardedTable,
};

/// A SHA-256, or a free slot, if the set of files is [`FileSet::FREE`].
#[derive(Debug)]
struct Sum {
    sha256: Sha256,
    files: FileSet,
}

impl SlabElement for Sum {
    fn free(next: u32) -> Self {
        let mut sha256 = Sha256([0; 32]);
        sha256.0[..4].copy_from_slice(&next.to_le_bytes());
        Self {
            sha256,
            files: FileSet::FREE,
        }
    }

    fn next_free(&self) -> Option<u32> {
        let [a, b, c, d, ..] = self.sha256.0;
        (self.files == FileSet::FREE).then_some(u32::from_le_bytes([a, b, c, d]))
    }
}

/// The SHA-256s.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    hasher: DefaultHashBuilder,
    by_value: ShardedTable,
    sums: PagedSlab<Sum>,
    file_sets: FileSets,
}

impl Sums {
    /// The slot of an existing SHA-256.
    pub(crate) fn find(&self, sha256: &Sha256) -> Option<u32> {
        let hash = self.hasher.hash_one(sha256);
        self.by_value.find(hash, |slot| self.sums[slot].sha256 == *sha256)
    }

    /// The slot of a SHA-256, which is created if new. The caller must add a file to a new one.
    pub(crate) fn intern(&mut self, sha256: &Sha256) -> u32 {
        if let Some(slot) = self.find(sha256) {
            return slot;
        }
        let Self {
            hasher,
            by_value,
            sums,
            ..
        } = self;
        let slot = sums.insert(Sum {
            sha256: *sha256,
            files: FileSet::default(),
        });
        by_value.insert(hasher.hash_one(sha256), slot, |slot| {
            hasher.hash_one(sums[slot].sha256)
        });
        slot
    }

    /// The SHA-256 in a slot.
    pub(crate) fn get(&self, slot: u32) -> &Sha256 {
        &self.sums[slot].sha256
    }

    /// Adds one reference from a file to a SHA-256.
    pub(crate) fn add_file(&mut self, slot: u32, file: u32) {
        self.file_sets.add(&mut self.sums[slot].files, file);
    }

    /// Removes one reference from a file to a SHA-256; removes it if no file has it.
    pub(crate) fn remove_file(&mut self, slot: u32, file: u32) {
        if self.file_sets.remove(&mut self.sums[slot].files, file) {
            let hash = self.hasher.hash_one(self.sums[slot].sha256);
            self.by_value.remove(hash, slot);
            self.sums.remove(slot);
        }
    }

    /// The files that have a SHA-256.
    pub(crate) fn files_of(&self, slot: u32) -> FilesIn<'_> {
        self.file_sets.get(&self.sums[slot].files)
    }

    /// Number of SHA-256s.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.sums.len()
    }
}
