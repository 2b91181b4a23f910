//! One entry of a manifest.

use crate::{collection::path::RelPath, identity::id::FileId};

/// A file, empty folder or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestEntry<'a> {
    /// Path relative to the collection's root.
    pub path: RelPath<'a>,
    /// The content at the path.
    pub content: EntryContent<'a>,
}

/// The content at a path of a collection.
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

impl EntryContent<'_> {
    /// The file's id; `None` if it is not a file.
    pub const fn id(&self) -> Option<FileId> {
        match self {
            Self::File { id, .. } => Some(*id),
            _ => None,
        }
    }
}
