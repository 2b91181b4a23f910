//! The manifest of a collection: a folder as a file with its own id.
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
mod lookalikes;
mod nodes;
#[cfg(test)]
mod tests;

pub use crate::collection::manifest::checks::check_link;
pub use crate::collection::manifest::lookalikes::fold;
use crate::{
    FileId, Problem, Reason,
    collection::path::{PathError, RelPath},
};
use checks::{EntryChecker, ManifestTotals};

/// First bytes of every manifest.
pub const MAGIC: &[u8; 8] = b"PLCOLL1\n";

/// Maximum manifest size in bytes, which a peer holds in memory to read it. Enough for about
/// 700,000 files with paths of usual length.
pub const MAX_MANIFEST_SIZE: u64 = 64 * 1024 * 1024;

/// Maximum entries, regardless of their size. Limits the memory for reading a manifest.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Maximum distinct folders, including implied ones: a quarter of [`MAX_ENTRIES`]. Source trees
/// have about five files per folder.
pub const MAX_FOLDERS: usize = 1 << 18;

/// Number of folders that any manifest may have, regardless of its entries.
pub const FREE_FOLDERS: usize = 4096;

/// Additional folders per entry, beyond [`FREE_FOLDERS`]. A path may imply 255 folders, so that a
/// small manifest could create a hundred thousand; in real trees a single file in a deep package
/// needs about ten.
pub const FOLDERS_PER_ENTRY: usize = 16;

/// The content of a folder. A clone copies the entry offsets: share it in an `Arc`.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    /// [`MAGIC`] and the valid entries.
    bytes: Bytes,
    /// Offset of each entry in the bytes.
    offsets: Vec<u32>,
    /// Indexes of the files, sorted by id and then path.
    by_id: Vec<u32>,
    /// Sum of the files' sizes in bytes, including duplicates.
    content_size: u64,
}

/// A file, empty folder or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEntry<'a> {
    /// Path relative to the collection's root.
    pub path: RelPath<'a>,
    /// What the path holds.
    pub content: EntryContent<'a>,
}

/// What a path of a collection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryContent<'a> {
    /// A regular file.
    File {
        /// File id.
        id: FileId,
        /// Size in bytes; the id commits to it.
        size: u64,
        /// Whether the owner may execute it.
        executable: bool,
    },
    /// An empty folder.
    EmptyDirectory,
    /// A symbolic link.
    Link {
        /// The target's unmodified text, relative to the link's folder.
        target: &'a str,
    },
}

/// Why entries or bytes are not a valid manifest. Paths come from outside and are escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes do not start with [`MAGIC`].
    #[error("this is no collection: it does not begin as a manifest does")]
    NotAManifest,
    /// The bytes are not a message in canonical form.
    #[error("the manifest is damaged or not in canonical form, at byte {at}")]
    NotCanonical {
        /// Offset of the invalid entry.
        at: usize,
    },
    /// A path that is invalid in a collection.
    #[error("`{path}` cannot be in a collection: {error}")]
    Path {
        /// The path, escaped.
        path: String,
        /// Why the path is invalid.
        error: PathError,
    },
    /// An entry that does not sort after the previous one.
    #[error("`{path}` is not in its place: entries are sorted by path")]
    Order {
        /// The path, escaped.
        path: String,
    },
    /// Two entries with the same path.
    #[error("`{path}` is there twice")]
    Duplicate {
        /// The path, escaped.
        path: String,
    },
    /// An entry beneath a file, a link, or a folder listed as empty.
    #[error("`{path}` cannot be there: `{parent}` is no folder with content")]
    Conflict {
        /// Path of the entry, escaped.
        path: String,
        /// Path of its ancestor that is not a folder, escaped.
        parent: String,
    },
    /// A link that leads, or could lead, out of the collection.
    #[error("the link `{path}` to `{target}` is not taken: {why}")]
    UnsafeLink {
        /// Path of the link, escaped.
        path: String,
        /// Target of the link, escaped.
        target: String,
        /// Why the link is unsafe.
        why: &'static str,
    },
    /// The size does not match the id, or is over the limit.
    #[error("the size of `{path}` cannot be right")]
    Size {
        /// The path, escaped.
        path: String,
    },
    /// More than [`MAX_FOLDERS`] folders, or too many for the number of entries.
    #[error(
        "the folder has too many folders for one collection: {folders} for {entries} entries, and at most {most} are taken"
    )]
    TooManyFolders {
        /// Distinct folders up to the first excess entry.
        folders: usize,
        /// Entries up to that point.
        entries: usize,
        /// Maximum number of folders.
        most: usize,
    },
    /// Over [`MAX_MANIFEST_SIZE`] or [`MAX_ENTRIES`], or more content than a transfer has units
    /// for.
    #[error("the folder is too large for one collection ({0}): share its parts")]
    TooLarge(&'static str),
}

impl From<ManifestError> for Problem {
    fn from(error: ManifestError) -> Self {
        let reason = match error {
            ManifestError::Path { .. } | ManifestError::UnsafeLink { .. } => Reason::UnsafePath,
            ManifestError::TooLarge(_) | ManifestError::TooManyFolders { .. } => Reason::OutOfRange,
            _ => Reason::InvalidArgument,
        };
        Self::new(reason, error.to_string())
    }
}

impl Manifest {
    /// Builds a manifest from entries that are sorted by path.
    ///
    /// # Errors
    /// A [`ManifestError`] if entries are out of order, duplicated or beneath others, if a link is
    /// unsafe, if sizes are inconsistent, or if a limit is exceeded.
    pub fn new<'a>(entries: impl IntoIterator<Item = ManifestEntry<'a>>) -> Result<Self, ManifestError> {
        let mut bytes = MAGIC.to_vec();
        let mut starts = Vec::new();
        let mut checks = EntryChecker::default();
        for entry in entries {
            checks.check(&entry)?;
            if starts.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            // Fits: the size is checked below.
            starts.push(bytes.len() as u32);
            encoding::encode_entry(&entry, &mut bytes);
            if bytes.len() as u64 > MAX_MANIFEST_SIZE {
                return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
            }
        }
        bytes.shrink_to_fit();
        Self::with_index(bytes.into(), starts, checks.totals()?)
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
        let mut starts = Vec::new();
        let mut checks = EntryChecker::default();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            if starts.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            let (entry, after) = encoding::decode_entry(rest).ok_or(ManifestError::NotCanonical { at })?;
            RelPath::parse(entry.path.as_str()).map_err(|error| ManifestError::Path {
                path: escaped(entry.path.as_str()),
                error,
            })?;
            checks.check(&entry)?;
            starts.push(at as u32);
            rest = after;
        }
        let totals = checks.totals()?;
        Self::with_index(bytes, starts, totals)
    }

    /// Builds the index of files over checked entries.
    fn with_index(bytes: Bytes, starts: Vec<u32>, totals: ManifestTotals) -> Result<Self, ManifestError> {
        let mut manifest = Self {
            bytes,
            offsets: starts,
            by_id: Vec::new(),
            content_size: 0,
        };
        (manifest.by_id, manifest.content_size) = totals.into_index(&manifest)?;
        Ok(manifest)
    }

    /// The encoded manifest, which is the content of the collection's file.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether the folder is empty.
    pub const fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The entry at `index`, from 0 in path order.
    pub fn get(&self, index: u32) -> Option<ManifestEntry<'_>> {
        let start = *self.offsets.get(index as usize)? as usize;
        encoding::decode_entry(&self.bytes[start..]).map(|(entry, _)| entry)
    }

    /// All entries at any depth, sorted by path.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = ManifestEntry<'_>> {
        let read = |&start: &u32| encoding::decode_entry(&self.bytes[start as usize..]);
        self.offsets
            .iter()
            .map(move |start| read(start).expect("read when it was made").0)
    }

    /// Index of the entry at this path.
    pub fn find(&self, path: &str) -> Option<u32> {
        let at = |start: &u32| encoding::entry_path(&self.bytes[*start as usize..]).cmp(path.as_bytes());
        self.offsets.binary_search_by(at).ok().map(|index| index as u32)
    }

    /// Whether entries lie beneath this path.
    pub fn is_folder(&self, path: &str) -> bool {
        let beneath = [path.as_bytes(), b"/"].concat();
        let at = |start: &u32| encoding::entry_path(&self.bytes[*start as usize..]);
        let first = self.offsets.partition_point(|start| at(start) < &beneath[..]);
        self.offsets
            .get(first)
            .is_some_and(|start| at(start).starts_with(&beneath))
    }

    /// Indexes of the files with this content, in path order.
    pub fn with_id(&self, id: &FileId) -> &[u32] {
        let from = self.by_id.partition_point(|&index| self.id(index) < Some(*id));
        let len = self.by_id[from..].partition_point(|&index| self.id(index) == Some(*id));
        &self.by_id[from..from + len]
    }

    /// The distinct contents in unspecified order: for each, the indexes of its files in path
    /// order.
    pub fn contents(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = &self.by_id[..];
        // Decodes each id once.
        let mut id = rest.first().and_then(|&first| self.id(first));
        iter::from_fn(move || {
            let this = id?;
            let mut same = 0;
            while id == Some(this) {
                same += 1;
                id = rest.get(same).and_then(|&next| self.id(next));
            }
            let (entries, after) = rest.split_at(same);
            rest = after;
            Some(entries)
        })
    }

    /// The content of an entry, without its path.
    pub fn content(&self, index: u32) -> Option<EntryContent<'_>> {
        let start = *self.offsets.get(index as usize)? as usize;
        encoding::entry_content(&self.bytes[start..])
    }

    /// The id of an entry; `None` if it is not a file.
    pub fn id(&self, index: u32) -> Option<FileId> {
        self.content(index)?.id()
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

impl Default for Manifest {
    /// The manifest of an empty folder.
    fn default() -> Self {
        Self {
            bytes: Bytes::from_static(MAGIC),
            offsets: Vec::new(),
            by_id: Vec::new(),
            content_size: 0,
        }
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

impl EntryContent<'_> {
    /// The file's id; `None` if it is not a file.
    pub const fn id(&self) -> Option<FileId> {
        match self {
            Self::File { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// Escapes and shortens untrusted text for an error message.
fn escaped(text: &str) -> String {
    // Maximum characters: enough to recognise a path.
    const MAX: usize = 200;
    let mut shown: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}
