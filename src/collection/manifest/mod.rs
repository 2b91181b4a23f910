//! The manifest of a collection: it describes a folder, and is itself a file with an id.
//!
//! The encoding is [`MAGIC`], then a `potluck.v1.Manifest` in canonical form (`collection.proto`),
//! so that a folder has exactly one id.
//!
//! Invariants of a [`Manifest`]:
//! - Entries are strictly sorted by path.
//! - No entry lies beneath another, so that listed folders are empty and nothing is written
//!   through a link.
//! - Links stay inside the collection.
//! - Sizes, ids and counts are consistent and within the limits.
//!
//! In memory a manifest is its bytes and two numbers per entry. Entries are decoded on access, so
//! that a hundred thousand files take a few MiB, and a hostile manifest takes little more than its
//! own size.
//!
//! Pure. The peer reads and restores folders.

use std::{fmt, iter};

use bytes::Bytes;

mod checks;
mod encoding;
mod entries;
mod entry;
mod error;
mod folders;
mod lookalikes;
#[cfg(test)]
mod tests;

pub use self::{
    checks::check_link,
    encoding::MAGIC,
    entry::{EntryContent, ManifestEntry},
    error::ManifestError,
    lookalikes::fold,
};
use self::{
    checks::{EntryChecker, ManifestTotals},
    entries::EncodedEntries,
    error::escaped,
};
use crate::{
    FileId,
    collection::{
        limits::{MAX_ENTRIES, MAX_MANIFEST_SIZE},
        path::RelPath,
    },
};

/// The content of a folder. A clone copies the entry offsets: share it in an `Arc`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    entries: EncodedEntries,
    /// Indexes of the files, sorted by id and then path.
    by_id: Vec<u32>,
    /// Sum of the files' sizes in bytes, including duplicates.
    content_size: u64,
}

impl Manifest {
    /// Builds a manifest from entries that are sorted by path.
    ///
    /// # Errors
    /// A [`ManifestError`] if entries are out of order, duplicated or beneath others, if a link is
    /// unsafe, if sizes are inconsistent, or if a limit is exceeded.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = ManifestEntry<'a>>,
    ) -> Result<Self, ManifestError> {
        let mut bytes = MAGIC.to_vec();
        let mut offsets = Vec::new();
        let mut checker = EntryChecker::default();
        for entry in entries {
            checker.check(&entry)?;
            if offsets.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            // Fits: the size is checked below.
            offsets.push(bytes.len() as u32);
            encoding::encode_entry(&entry, &mut bytes);
            if bytes.len() as u64 > MAX_MANIFEST_SIZE {
                return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
            }
        }
        bytes.shrink_to_fit();
        let entries = EncodedEntries {
            bytes: bytes.into(),
            offsets,
        };
        Self::with_index(entries, checker.totals()?)
    }

    /// Decodes a manifest. Accepts only the encoding that [`Manifest::new`] writes.
    ///
    /// # Errors
    /// A [`ManifestError`] if the bytes are not a valid manifest. The limits bound the memory used
    /// for any input.
    pub fn decode(bytes: impl Into<Bytes>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(ManifestError::NotAManifest)?;
        let mut offsets = Vec::new();
        let mut checker = EntryChecker::default();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            if offsets.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            let (entry, after) =
                encoding::decode_entry(rest).ok_or(ManifestError::NotCanonical { at })?;
            RelPath::parse(entry.path.as_str()).map_err(|error| ManifestError::Path {
                path: escaped(entry.path.as_str()),
                error,
            })?;
            checker.check(&entry)?;
            offsets.push(at as u32);
            rest = after;
        }
        let totals = checker.totals()?;
        Self::with_index(EncodedEntries { bytes, offsets }, totals)
    }

    /// Builds the index of files over checked entries.
    fn with_index(entries: EncodedEntries, totals: ManifestTotals) -> Result<Self, ManifestError> {
        let (by_id, content_size) = totals.into_index(&entries)?;
        Ok(Self {
            entries,
            by_id,
            content_size,
        })
    }

    /// The encoded manifest, which is the content of the collection's file.
    pub const fn bytes(&self) -> &Bytes {
        &self.entries.bytes
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the folder is empty.
    pub const fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// The entry at `index`, from 0 in path order.
    pub fn get(&self, index: u32) -> Option<ManifestEntry<'_>> {
        self.entries.get(index)
    }

    /// All entries at any depth, sorted by path.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = ManifestEntry<'_>> {
        self.entries.iter()
    }

    /// All folders, implied and empty, each once and after its parent.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.entries.folders()
    }

    /// Groups of paths in the same folder whose names have the same [`fold`]: files, links and
    /// folders. Entries of different folders are not compared, even if the folders are in a group.
    pub fn lookalikes(&self) -> Vec<Vec<&str>> {
        lookalikes::lookalikes(&self.entries)
    }

    /// Index of the entry at this path.
    pub fn find(&self, path: &str) -> Option<u32> {
        self.entries.find(path)
    }

    /// Whether entries lie beneath this path.
    pub fn is_folder(&self, path: &str) -> bool {
        self.entries.is_folder(path)
    }

    /// Indexes of the files with this content, in path order.
    pub fn with_id(&self, id: &FileId) -> &[u32] {
        let start = self.by_id.partition_point(|&index| self.id(index) < Some(*id));
        let len = self.by_id[start..].partition_point(|&index| self.id(index) == Some(*id));
        &self.by_id[start..start + len]
    }

    /// The distinct contents in unspecified order: for each, the indexes of its files in path
    /// order.
    pub fn contents(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = &self.by_id[..];
        // Decodes each id once.
        let mut id = rest.first().and_then(|&first| self.id(first));
        iter::from_fn(move || {
            let current = id?;
            let mut copies = 0;
            while id == Some(current) {
                copies += 1;
                id = rest.get(copies).and_then(|&next| self.id(next));
            }
            let (entries, after) = rest.split_at(copies);
            rest = after;
            Some(entries)
        })
    }

    /// The content of an entry, without its path.
    pub fn content(&self, index: u32) -> Option<EntryContent<'_>> {
        self.entries.content(index)
    }

    /// The id of an entry; `None` if it is not a file.
    pub fn id(&self, index: u32) -> Option<FileId> {
        self.entries.id(index)
    }

    /// Number of files, including duplicates.
    pub const fn file_count(&self) -> u64 {
        self.by_id.len() as u64
    }

    /// Sum of the files' sizes in bytes, including duplicates.
    pub const fn content_size(&self) -> u64 {
        self.content_size
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}
