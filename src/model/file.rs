//! Files, and files as a peer registers them.

use crate::identity::id::{FileId, Root, Sha256};

/// How to interpret the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A plain file.
    #[default]
    File,
    /// The manifest of a folder.
    Collection,
    /// Content from an origin, before its root is known. Its record has the SHA-256 in place of the
    /// root, and its id is [`FileId::provisional`].
    Provisional,
}

/// Identity and metadata of a file, without its providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRecord {
    /// File id.
    pub id: FileId,
    /// Size in bytes.
    pub size: u64,
    /// Root of the file's Merkle tree; for [`FileKind::Provisional`], the SHA-256 of the file.
    pub root: Root,
    /// Claimed SHA-256 of the whole file, not verified by the index.
    pub sha256: Option<Sha256>,
    /// How to interpret the bytes.
    pub kind: FileKind,
}

impl FileRecord {
    /// The record of content of `size` bytes whose root is not known yet.
    pub fn provisional(size: u64, sha256: Sha256) -> Self {
        Self {
            id: FileId::provisional(size, &sha256),
            size,
            root: Root(sha256.0),
            sha256: Some(sha256),
            kind: FileKind::Provisional,
        }
    }

    /// Whether the root is not known yet.
    pub fn is_provisional(&self) -> bool {
        self.kind == FileKind::Provisional
    }
}

/// One file that a peer registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The file's record.
    pub file: FileRecord,
    /// Names of the file, 1 to 16.
    pub names: Vec<String>,
    /// Whether the peer has the whole file.
    pub is_complete: bool,
}
