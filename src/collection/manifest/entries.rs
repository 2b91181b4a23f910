//! The encoded entries of a manifest with the offset of each.

use bytes::Bytes;

use crate::{
    FileId,
    collection::manifest::{
        encoding::{self, MAGIC},
        entry::{EntryContent, ManifestEntry},
        folders::new_folders,
    },
};

/// Entries in path order, decoded on access.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EncodedEntries {
    /// [`MAGIC`] and the entries in canonical form.
    pub(crate) bytes: Bytes,
    /// Offset of each entry in the bytes.
    pub(crate) offsets: Vec<u32>,
}

impl EncodedEntries {
    /// Number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.offsets.len()
    }

    /// The encoding of an entry and of all that follow it.
    fn encoded(&self, index: u32) -> Option<&[u8]> {
        let start = *self.offsets.get(index as usize)?;
        self.bytes.get(start as usize..)
    }

    /// The entry at `index`, from 0 in path order.
    pub(crate) fn get(&self, index: u32) -> Option<ManifestEntry<'_>> {
        encoding::decode_entry(self.encoded(index)?).map(|(entry, _)| entry)
    }

    /// The content of an entry, without its path.
    pub(crate) fn content(&self, index: u32) -> Option<EntryContent<'_>> {
        encoding::entry_content(self.encoded(index)?)
    }

    /// The id of an entry; `None` if it is not a file.
    pub(crate) fn id(&self, index: u32) -> Option<FileId> {
        self.content(index)?.id()
    }

    /// All entries in path order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = ManifestEntry<'_>> {
        let decode = |&start: &u32| encoding::decode_entry(&self.bytes[start as usize..]);
        self.offsets
            .iter()
            .map(move |start| decode(start).expect("each entry was decoded or encoded before").0)
    }

    /// Index of the entry at this path.
    pub(crate) fn find(&self, path: &str) -> Option<u32> {
        let compare = |start: &u32| self.path_at(*start).cmp(path.as_bytes());
        self.offsets
            .binary_search_by(compare)
            .ok()
            .map(|index| index as u32)
    }

    /// Whether entries lie beneath this path.
    pub(crate) fn is_folder(&self, path: &str) -> bool {
        let prefix = [path.as_bytes(), b"/"].concat();
        let first = self
            .offsets
            .partition_point(|&start| self.path_at(start) < &prefix[..]);
        self.offsets
            .get(first)
            .is_some_and(|&start| self.path_at(start).starts_with(&prefix))
    }

    fn path_at(&self, start: u32) -> &[u8] {
        encoding::entry_path(&self.bytes[start as usize..])
    }

    /// All folders, implied and empty, each once and after its parent.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &str> {
        let mut previous = "";
        self.iter().flat_map(move |entry| {
            let path = entry.path.as_str();
            let ancestors = new_folders(previous, path).map(move |end| &path[..end]);
            previous = path;
            let itself = matches!(entry.content, EntryContent::EmptyDirectory).then_some(path);
            ancestors.chain(itself)
        })
    }
}

impl Default for EncodedEntries {
    fn default() -> Self {
        Self {
            bytes: Bytes::from_static(MAGIC),
            offsets: Vec::new(),
        }
    }
}
