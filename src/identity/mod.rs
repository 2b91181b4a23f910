//! What identifies a file: ids, the Merkle tree, the cut into pieces, and hashing.

pub mod hash;
pub mod id;
pub mod layout;
pub mod merkle;
