//! The hashes of a collection's files: a root for each entry, and other hashes only where needed.
//!
//! Most files of a large collection have a single piece or even a single leaf. Piece layers and
//! SHA-256s are therefore in maps.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use potluck_core::{
    FileId, Root, Sha256,
    identity::merkle::{FileTree, Hash},
};

/// The hashes of a manifest's entries, in order.
#[derive(Debug, Clone, Default)]
pub struct EntryHashes {
    /// Meaningless for entries that are not files.
    pub(crate) roots: Vec<Root>,
    /// Piece layers of new files with several pieces.
    pub(crate) layers: HashMap<FileId, Arc<[Hash]>>,
    /// Known SHA-256s, except those that equal the root.
    pub(crate) sha256s: BTreeMap<u32, Sha256>,
}

impl EntryHashes {
    /// Creates the hashes for this number of entries, all unset.
    pub fn new(entries: usize) -> Self {
        Self {
            roots: vec![Root([0; 32]); entries],
            ..Self::default()
        }
    }

    /// Sets the hashes of an entry.
    ///
    /// # Panics
    /// `entry` is out of range.
    pub fn set(&mut self, entry: u32, tree: FileTree) {
        self.roots[entry as usize] = tree.root;
        if !tree.piece_hashes.is_empty() {
            let layer = || tree.piece_hashes.as_slice().into();
            self.layers.entry(tree.id()).or_insert_with(layer);
        }
    }

    /// Removes the entries at these indexes, which ascend.
    pub(crate) fn remove(&mut self, indexes: &[u32]) {
        self.roots = without(&self.roots, indexes);
        let sha256s = std::mem::take(&mut self.sha256s).into_iter();
        let kept = sha256s.filter_map(|(entry, sha256)| {
            let removed_before = indexes.binary_search(&entry).err()?;
            // Fits: it is at most `entry`.
            Some((entry - removed_before as u32, sha256))
        });
        self.sha256s = kept.collect();
    }

    /// Copies the root of an entry to another with the same content.
    ///
    /// # Panics
    /// `from` or `to` is out of range.
    pub fn copy(&mut self, from: u32, to: u32) {
        self.roots[to as usize] = self.roots[from as usize];
    }
}

/// The items without those at these indexes, which ascend.
pub(crate) fn without<T: Copy>(items: &[T], indexes: &[u32]) -> Vec<T> {
    let numbered = (0..).zip(items);
    let kept = numbered.filter(|(index, _)| indexes.binary_search(index).is_err());
    kept.map(|(_, item)| *item).collect()
}
