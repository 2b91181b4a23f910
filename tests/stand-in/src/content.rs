//! The files of the server.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::RwLock;
use sha2::Digest as _;

/// Files by name.
#[derive(Debug, Default)]
pub struct Files(RwLock<BTreeMap<String, Bytes>>);

impl Files {
    /// Adds or replaces a file.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        self.0.write().insert(name.to_owned(), bytes.into());
    }

    /// The bytes of a file.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.0.read().get(name).cloned()
    }
}

/// SHA-256 in hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The id of a Git blob in hex.
pub fn git_blob_hex(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex::encode(hash.finalize())
}
