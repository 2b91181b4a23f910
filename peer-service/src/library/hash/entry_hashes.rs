//! What hashing a collection's files gives: a root for each entry, and little else.
//!
//! Most files of a large collection have one piece or even one leaf. What only larger ones have is kept apart.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use potluck_core::{
    FileId, Root, Sha256,
    identity::merkle::{FileTree, Hash},
};

/// Of a manifest's entries, in order.
#[derive(Debug, Clone, Default)]
pub struct EntryHashes {
    /// Meaningless for those that are no files.
    pub(crate) roots: Vec<Root>,
    /// Piece layers of those files of several pieces that are new.
    pub(crate) layers: HashMap<FileId, Arc<[Hash]>>,
    /// SHA-256s that are known and do not follow from the root.
    pub(crate) sha256s: BTreeMap<u32, Sha256>,
}

impl EntryHashes {
    /// Of so many entries, none of which was hashed.
    pub fn new(entries: usize) -> Self {
        Self {
            roots: vec![Root([0; 32]); entries],
            ..Self::default()
        }
    }

    /// What hashing the file of an entry gave.
    ///
    /// # Panics
    /// Where there is no such entry.
    pub fn set(&mut self, entry: u32, tree: FileTree) {
        self.roots[entry as usize] = tree.root;
        if !tree.piece_hashes.is_empty() {
            let layer = || tree.piece_hashes.as_slice().into();
            self.layers.entry(tree.id()).or_insert_with(layer);
        }
    }

    /// An entry has the same content as another.
    ///
    /// # Panics
    /// Where there are no such entries.
    pub fn copy(&mut self, from: u32, to: u32) {
        self.roots[to as usize] = self.roots[from as usize];
    }
}
