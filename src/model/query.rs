//! Queries and their results.

use bytes::Bytes;

use crate::{
    identity::{
        id::{FileId, Sha256},
        id_prefix::IdPrefix,
    },
    model::{file::FileRecord, provider::Provider},
};

/// Key of an exact query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryKey {
    /// File id.
    Id(FileId),
    /// The first digits of a file id.
    IdPrefix(IdPrefix),
    /// Claimed SHA-256 of the whole file.
    Sha256(Sha256),
    /// Exact name.
    Name(String),
}

impl QueryKey {
    /// The bytes that the index echoes in its response.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Id(id) => id.to_bytes(),
            Self::IdPrefix(prefix) => Bytes::from(prefix.to_string()),
            Self::Sha256(sha256) => sha256.to_bytes(),
            Self::Name(name) => Bytes::copy_from_slice(name.as_bytes()),
        }
    }
}

/// A result of a query or search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// The file's record.
    pub file: FileRecord,
    /// Names of the file, most used first.
    pub names: Vec<String>,
    /// Number of peers that have the file.
    pub provider_count: u64,
    /// A sample of the providers; empty in search results.
    pub providers: Vec<Provider>,
}

/// One page of results.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilePage {
    /// The files.
    pub files: Vec<IndexedFile>,
    /// Token for the next page; `None` on the last page.
    pub next: Option<String>,
}
