//! The texts of the names, with the files of each, indexed by text and by slot.
//!
//! Invariant: each text occurs once.

use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;

use crate::catalog::storage::{
    file_sets::FileSet,
    paged_slab::{PagedSlab, SlabElement},
    sharded_table::ShardedTable,
    texts::{TextRef, Texts},
};

/// A name. Most names are the name of one file.
#[derive(Debug)]
struct Name {
    text_cell: u32,
    files: FileSet,
    text_len: u8,
    is_free: bool,
}

impl Name {
    const fn text(&self) -> TextRef {
        TextRef {
            cell: self.text_cell,
            len: self.text_len,
        }
    }
}

impl SlabElement for Name {
    fn free(next: u32) -> Self {
        Self {
            text_cell: next,
            files: FileSet::default(),
            text_len: 0,
            is_free: true,
        }
    }

    fn next_free(&self) -> Option<u32> {
        self.is_free.then_some(self.text_cell)
    }
}

/// The texts of the names, indexed by text and by slot.
#[derive(Debug, Default)]
pub(crate) struct NameTable {
    hasher: DefaultHashBuilder,
    by_text: ShardedTable,
    names: PagedSlab<Name>,
    texts: Texts,
}

impl NameTable {
    /// The hash of a text.
    pub(crate) fn hash(&self, text: &[u8]) -> u64 {
        self.hasher.hash_one(text)
    }

    /// Makes room for this many names in an empty table.
    pub(crate) fn reserve(&mut self, names: usize) {
        self.by_text.reserve(names);
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink(&mut self) {
        let Self {
            hasher,
            by_text,
            names,
            texts,
        } = self;
        by_text.shrink(|slot| hasher.hash_one(texts.bytes(names[slot].text())));
    }

    /// The slot of a name.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        self.find_hashed(self.hash(text.as_bytes()), text)
    }

    /// Brings the table's part for a text into the cache; see [`ShardedTable::touch`].
    pub(crate) fn touch(&self, text: &str) {
        self.by_text.touch(self.hash(text.as_bytes()));
    }

    /// The slot of the name with this text and hash.
    pub(crate) fn find_hashed(&self, hash: u64, text: &str) -> Option<u32> {
        self.by_text
            .find(hash, |slot| self.bytes(slot) == text.as_bytes())
    }

    /// Adds a name that is not in the table, without files.
    pub(crate) fn insert(&mut self, hash: u64, text: &str) -> u32 {
        let TextRef { cell, len } = self.texts.insert(text);
        let slot = self.names.insert(Name {
            text_cell: cell,
            files: FileSet::default(),
            text_len: len,
            is_free: false,
        });
        let Self {
            hasher,
            by_text,
            names,
            texts,
        } = self;
        by_text.insert(hash, slot, |slot| {
            hasher.hash_one(texts.bytes(names[slot].text()))
        });
        slot
    }

    /// Removes a name.
    pub(crate) fn remove(&mut self, slot: u32) {
        let text = self.names[slot].text();
        let hash = self.hash(self.texts.bytes(text));
        self.by_text.remove(hash, slot);
        let last = self.texts.last_of_class(text);
        if last != text {
            // The last text moves into the gap. Its name is found by its hash.
            let names = &self.names;
            let moved = self.by_text.find(self.hash(self.texts.bytes(last)), |other| {
                names[other].text().is_same_cell(last)
            });
            if let Some(moved) = moved {
                self.names[moved].text_cell = text.cell;
            }
        }
        self.texts.remove(text);
        self.names.remove(slot);
    }

    /// The text of a name, if the slot is in use.
    pub(crate) fn get_text(&self, slot: u32) -> Option<&str> {
        let name = self.names.get(slot)?;
        Some(self.texts.get(name.text()))
    }

    /// The text of a name.
    pub(crate) fn text(&self, slot: u32) -> &str {
        self.texts.get(self.names[slot].text())
    }

    /// The files of a name.
    pub(crate) fn files(&self, slot: u32) -> &FileSet {
        &self.names[slot].files
    }

    /// The files of a name, to be changed.
    pub(crate) fn files_mut(&mut self, slot: u32) -> &mut FileSet {
        &mut self.names[slot].files
    }

    /// Whether there are no names.
    pub(crate) const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Number of names.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.names.len()
    }

    /// The bytes of the text of a name.
    pub(crate) fn bytes(&self, slot: u32) -> &[u8] {
        self.texts.bytes(self.names[slot].text())
    }
}
