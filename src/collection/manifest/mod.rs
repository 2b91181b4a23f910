//! The manifest of a collection: a folder as a file with an id of its own.
//!
//! The bytes are [`MAGIC`] and then a `potluck.v1.Manifest` in one canonical encoding (`collection.proto`), so that one folder has
//! one id. Invariants of a [`Manifest`]: entries strictly sorted by path; no entry lies beneath another (so folders listed are
//! empty, and nothing is ever written through a link); links stay inside; sizes, ids and counts fit each other and the limits.
//!
//! A manifest in memory is its bytes and two numbers for each entry: entries are read from the bytes when they are asked for, so that
//! a hundred thousand files take a few MiB, and a hostile manifest little more than its own size.
//!
//! Pure. Reading and restoring folders is for the peer.

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

/// What a manifest's bytes begin with.
pub const MAGIC: &[u8; 8] = b"PLCOLL1\n";

/// Largest manifest in bytes: what a peer holds in memory to read one. About 700,000 files with paths of usual length.
pub const MAX_MANIFEST_SIZE: u64 = 64 * 1024 * 1024;

/// Most entries, whatever their size in bytes: bounds what reading a manifest costs in memory.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Most distinct folders, those that paths imply among them: a quarter of [`MAX_ENTRIES`]. Source trees have some five files a folder.
pub const MAX_FOLDERS: usize = 1 << 18;

/// Folders that any manifest may have, however few its entries.
pub const FREE_FOLDERS: usize = 4096;

/// Folders for each entry beyond [`FREE_FOLDERS`]. Paths may imply 255 each, so that a small manifest could make a hundred thousand
/// folders; in trees that people make even a lonely file of deep packages needs about ten.
pub const FOLDERS_PER_ENTRY: usize = 16;

/// A folder's content. Cheap to clone but for the places of its entries: keep it in an `Arc`.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    /// [`MAGIC`] and the entries, checked.
    bytes: Bytes,
    /// Where each entry begins in the bytes.
    offsets: Vec<u32>,
    /// The entries that are files, sorted by id, those of one id by path.
    by_id: Vec<u32>,
    /// Sum of the files' sizes, each path counted.
    content_size: u64,
}

/// One file, empty folder or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEntry<'a> {
    /// Path relative to the folder.
    pub path: RelPath<'a>,
    /// What stands there.
    pub content: EntryContent<'a>,
}

/// What stands at a path of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryContent<'a> {
    /// A regular file.
    File {
        /// Its id.
        id: FileId,
        /// Its size in bytes; the id commits to it.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder with nothing in it.
    EmptyDirectory,
    /// A symbolic link.
    Link {
        /// What the link says, kept as it is: relative to the link's own folder.
        target: &'a str,
    },
}

/// Why entries or bytes are no manifest. Paths are shown escaped: they may be hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes do not begin with [`MAGIC`].
    #[error("this is no collection: it does not begin as a manifest does")]
    NotAManifest,
    /// The bytes are no message, or not in the one encoding that is allowed.
    #[error("the manifest is damaged or not in canonical form, at byte {at}")]
    NotCanonical {
        /// Offset of the entry at fault.
        at: usize,
    },
    /// A path that no collection may have.
    #[error("`{path}` cannot be in a collection: {error}")]
    Path {
        /// The path, escaped.
        path: String,
        /// What is wrong with it.
        error: PathError,
    },
    /// An entry that does not come after the one before it.
    #[error("`{path}` is not in its place: entries are sorted by path")]
    Order {
        /// The path, escaped.
        path: String,
    },
    /// Two entries of one path.
    #[error("`{path}` is there twice")]
    Duplicate {
        /// The path, escaped.
        path: String,
    },
    /// An entry beneath a file, a link, or a folder that is listed as empty.
    #[error("`{path}` cannot be there: `{parent}` is no folder with content")]
    Conflict {
        /// The path beneath, escaped.
        path: String,
        /// The path above, escaped.
        parent: String,
    },
    /// A link that leads out of the collection, or might.
    #[error("the link `{path}` to `{target}` is not taken: {why}")]
    UnsafeLink {
        /// Where the link is, escaped.
        path: String,
        /// What it says, escaped.
        target: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file's id and size do not fit, or the size is over the limit.
    #[error("the size of `{path}` cannot be right")]
    Size {
        /// The path, escaped.
        path: String,
    },
    /// More folders than [`MAX_FOLDERS`], or than so many entries may have.
    #[error(
        "the folder has too many folders for one collection: {folders} for {entries} entries, and at most {most} are taken"
    )]
    TooManyFolders {
        /// Distinct folders counted, up to the first entry that is too many.
        folders: usize,
        /// Entries counted by then.
        entries: usize,
        /// How many would be taken.
        most: usize,
    },
    /// Over [`MAX_MANIFEST_SIZE`] or [`MAX_ENTRIES`], or more content than a transfer can have units.
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
    /// The manifest of these entries, which come sorted by path.
    ///
    /// # Errors
    /// Entries out of order or twice, entries beneath others, links that may lead out, sizes that do not fit, and whatever is over a limit.
    pub fn new<'a>(entries: impl IntoIterator<Item = ManifestEntry<'a>>) -> Result<Self, ManifestError> {
        let mut bytes = MAGIC.to_vec();
        let mut starts = Vec::new();
        let mut checks = EntryChecker::default();
        for entry in entries {
            checks.check(&entry)?;
            if starts.len() == MAX_ENTRIES {
                return Err(ManifestError::TooLarge("too many entries"));
            }
            // Fits: held to the largest manifest below.
            starts.push(bytes.len() as u32);
            encoding::encode_entry(&entry, &mut bytes);
            if bytes.len() as u64 > MAX_MANIFEST_SIZE {
                return Err(ManifestError::TooLarge("its manifest is over 64 MiB"));
            }
        }
        bytes.shrink_to_fit();
        Self::with_index(bytes.into(), starts, checks.totals()?)
    }

    /// The manifest that these bytes are. Nothing but the bytes that [`Manifest::new`] makes is taken.
    ///
    /// # Errors
    /// See [`ManifestError`]. Memory is bounded by the limits whatever the bytes say.
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

    /// Entries that are checked, one after the other.
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

    /// The manifest's bytes: the content of the file that is the collection.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether the folder is empty.
    pub const fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// An entry, counted from 0 in the order of paths.
    pub fn get(&self, index: u32) -> Option<ManifestEntry<'_>> {
        let start = *self.offsets.get(index as usize)? as usize;
        encoding::decode_entry(&self.bytes[start..]).map(|(entry, _)| entry)
    }

    /// Everything in the folder at any depth, sorted by path.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = ManifestEntry<'_>> {
        let read = |&start: &u32| encoding::decode_entry(&self.bytes[start as usize..]);
        self.offsets
            .iter()
            .map(move |start| read(start).expect("read when it was made").0)
    }

    /// The entry at this path.
    pub fn find(&self, path: &str) -> Option<u32> {
        let at = |start: &u32| encoding::entry_path(&self.bytes[*start as usize..]).cmp(path.as_bytes());
        self.offsets.binary_search_by(at).ok().map(|index| index as u32)
    }

    /// Whether there are entries beneath this path, so that it is a folder.
    pub fn is_folder(&self, path: &str) -> bool {
        let beneath = [path.as_bytes(), b"/"].concat();
        let at = |start: &u32| encoding::entry_path(&self.bytes[*start as usize..]);
        let first = self.offsets.partition_point(|start| at(start) < &beneath[..]);
        self.offsets
            .get(first)
            .is_some_and(|start| at(start).starts_with(&beneath))
    }

    /// The entries that are files with this content, in order.
    pub fn with_id(&self, id: &FileId) -> &[u32] {
        let from = self.by_id.partition_point(|&index| self.id(index) < Some(*id));
        let len = self.by_id[from..].partition_point(|&index| self.id(index) == Some(*id));
        &self.by_id[from..from + len]
    }

    /// Each distinct content of files, in no order: the entries that have it, in order.
    pub fn contents(&self) -> impl Iterator<Item = &[u32]> {
        let mut rest = &self.by_id[..];
        // Each id is read from the bytes once.
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

    /// What stands at an entry's path, for those who need no path.
    pub fn content(&self, index: u32) -> Option<EntryContent<'_>> {
        let start = *self.offsets.get(index as usize)? as usize;
        encoding::entry_content(&self.bytes[start..])
    }

    /// The id of an entry that is a file.
    pub fn id(&self, index: u32) -> Option<FileId> {
        self.content(index)?.id()
    }

    /// How many regular files there are, each path counted.
    pub const fn file_count(&self) -> u64 {
        self.by_id.len() as u64
    }

    /// Sum of the files' sizes in bytes, each path counted.
    pub const fn content_size(&self) -> u64 {
        self.content_size
    }
}

impl Default for Manifest {
    /// An empty folder's.
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
    /// The id of a file.
    pub const fn id(&self) -> Option<FileId> {
        match self {
            Self::File { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// Text from outside, fit for a message.
fn escaped(text: &str) -> String {
    // Enough to recognise it by.
    const MAX: usize = 200;
    let mut shown: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}
