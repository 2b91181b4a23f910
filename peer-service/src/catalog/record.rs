//! Records of files whose Merkle tree is known.

use potluck_core::{
    Root, Sha256,
    identity::merkle::{FileTree, LEAF_SIZE},
    model::{FileKind, FileRecord},
};

/// The record of a file with this tree.
pub(crate) fn record_of(tree: &FileTree, kind: FileKind) -> FileRecord {
    FileRecord {
        id: tree.id(),
        size: tree.size,
        root: tree.root,
        sha256: small_file_sha256(tree.size, &tree.root).filter(|_| kind == FileKind::File),
        kind,
    }
}

/// The plain SHA-256 of a file of at most one leaf, which equals its root.
pub(crate) fn small_file_sha256(size: u64, root: &Root) -> Option<Sha256> {
    (size <= LEAF_SIZE as u64).then_some(Sha256(root.0))
}
