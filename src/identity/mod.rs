//! File identity: ids, the Merkle tree, the piece layout, and hashing.

pub mod hash;
pub mod id;
pub mod id_prefix;
pub mod layout;
pub mod merkle;
