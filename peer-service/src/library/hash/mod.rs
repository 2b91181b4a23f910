//! From files to hashes: opening, hashing, the hashes of folders, and the priority of hashing.

pub(crate) mod backlog;
pub(crate) mod entry_hashes;
pub(crate) mod folder;
pub(crate) mod hasher;
pub(crate) mod identify;
pub(crate) mod observer;
pub(crate) mod open;
pub(crate) mod priority;
