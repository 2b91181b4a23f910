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
}

/// Identity and metadata of a file, without its providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRecord {
    /// File id.
    pub id: FileId,
    /// Size in bytes.
    pub size: u64,
    /// Root of the file's Merkle tree.
    pub root: Root,
    /// Claimed SHA-256 of the whole file, not verified by the index.
    pub sha256: Option<Sha256>,
    /// How to interpret the bytes.
    pub kind: FileKind,
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
