//! The Merkle tree of BitTorrent v2 (BEP 52): SHA-256 over 16 KiB leaves, a binary tree, leaf hashes padded with zero hashes to a
//! power of two.
//!
//! Pure. Reading files and spreading the work over cores is for others; they hash pieces apart and hand them to [`fold`].

use sha2::{Digest as _, Sha256};

use crate::{FileId, FileLayout, Root, id::LEN};

/// Size of a leaf in bytes; the last of a file may be shorter.
pub const LEAF_SIZE: usize = 16 * 1024;

/// Hash of a node.
pub type Hash = [u8; LEN];

/// A leaf that is not there, as BEP 52 pads.
const ZERO_LEAF: Hash = [0; LEN];

/// What hashing a whole file gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTree {
    /// The file's size in bytes.
    pub size: u64,
    /// Root of the tree.
    pub root: Root,
    /// The piece layer: the subtree hash of each piece; empty where the file has fewer than two pieces.
    pub piece_hashes: Vec<Hash>,
}

impl FileTree {
    /// The file's id.
    pub fn id(&self) -> FileId {
        FileId::derive(self.size, &self.root)
    }
}

fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut hash = Sha256::new();
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// Root over `nodes`, padded with `padding` to a power of two, in place of `nodes`. No nodes: `padding`.
fn fold_nodes(mut nodes: Vec<Hash>, mut padding: Hash, mut width: usize) -> Hash {
    while width > 1 {
        if nodes.len() % 2 == 1 {
            nodes.push(padding);
        }
        for i in 0..nodes.len() / 2 {
            nodes[i] = parent(&nodes[2 * i], &nodes[2 * i + 1]);
        }
        nodes.truncate(nodes.len() / 2);
        padding = parent(&padding, &padding);
        width /= 2;
    }
    nodes.first().copied().unwrap_or(padding)
}

/// Hashes of the leaves of `data`.
fn leaves(data: &[u8]) -> Vec<Hash> {
    data.chunks(LEAF_SIZE)
        .map(|leaf| Sha256::digest(leaf).into())
        .collect()
}

/// Subtree hash of one piece of a file that has several: `data` is the piece's bytes, at most `layout.piece_size()`.
///
/// The last piece's missing leaves count as zero hashes, so that all pieces' subtrees have one height.
pub fn piece_hash(data: &[u8], layout: &FileLayout) -> Hash {
    let width = layout.piece_size() as usize / LEAF_SIZE;
    fold_nodes(leaves(data), ZERO_LEAF, width)
}

/// Root of a file that is one piece or less, from its bytes. The empty file's root is SHA-256 of nothing.
pub fn small_file_root(data: &[u8]) -> Root {
    if data.is_empty() {
        return Root(Sha256::digest([]).into());
    }
    let leaves = leaves(data);
    let width = leaves.len().next_power_of_two();
    Root(fold_nodes(leaves, ZERO_LEAF, width))
}

/// Root that a piece layer folds into, for a file of more than one piece.
///
/// `None` if the number of hashes is not the layout's number of pieces, or the file has fewer than two.
pub fn fold(piece_hashes: &[Hash], layout: &FileLayout) -> Option<Root> {
    if piece_hashes.len() < 2 || piece_hashes.len() != layout.piece_count() as usize {
        return None;
    }
    let leaves_per_piece = layout.piece_size() as usize / LEAF_SIZE;
    let padding = fold_nodes(Vec::new(), ZERO_LEAF, leaves_per_piece);
    let width = piece_hashes.len().next_power_of_two();
    Some(Root(fold_nodes(piece_hashes.to_vec(), padding, width)))
}
