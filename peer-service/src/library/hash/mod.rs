//! From files to hashes: opening, hashing, manifests of folders, and who hashes first.

pub(crate) mod entry_hashes;
pub(crate) mod folder;
pub(crate) mod hasher;
pub(crate) mod identify;
pub(crate) mod open;
pub(crate) mod priority;
