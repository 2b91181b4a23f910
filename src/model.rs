//! What the index stores and answers, as domain types: files, addresses, providers, registrations, leases.

use std::time::Duration;

use crate::{FileId, PeerId, Root, SetDigest, Sha256};

/// What the bytes of a file mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A plain file.
    #[default]
    File,
    /// A folder's manifest.
    Collection,
}

/// What is known of a file apart from who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRecord {
    /// Identity.
    pub id: FileId,
    /// Size in bytes.
    pub size: u64,
    /// Root of its tree.
    pub root: Root,
    /// Claimed SHA-256 of the whole.
    pub sha256: Option<Sha256>,
    /// What the bytes mean.
    pub kind: FileKind,
}

/// Where a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// IP address or host name, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A peer that has a file or part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its public id.
    pub peer: PeerId,
    /// Where it is.
    pub address: Address,
    /// Whether it has only part of the file.
    pub partial: bool,
}

/// A file that a query or search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedFile {
    /// The file.
    pub file: FileRecord,
    /// Its names, most used first.
    pub names: Vec<String>,
    /// How many peers have it.
    pub provider_count: u64,
    /// A sample of them; empty from a search.
    pub providers: Vec<Provider>,
}

/// A page of what was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilePage {
    /// The files.
    pub files: Vec<IndexedFile>,
    /// Give it back for the next page; `None` on the last.
    pub next: Option<String>,
}

/// What one peer has of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The file.
    pub file: FileRecord,
    /// Labels, 1 to 16.
    pub names: Vec<String>,
    /// Whether the peer has only part of it.
    pub partial: bool,
}

/// What to find files by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryKey {
    /// Identity.
    Id(FileId),
    /// Claimed SHA-256 of the whole file.
    Sha256(Sha256),
    /// Exact name.
    Name(String),
}

impl QueryKey {
    /// As an answer repeats it.
    pub fn to_bytes(&self) -> bytes::Bytes {
        match self {
            Self::Id(id) => id.to_bytes(),
            Self::Sha256(sum) => sum.to_bytes(),
            Self::Name(name) => bytes::Bytes::copy_from_slice(name.as_bytes()),
        }
    }
}

/// A granted lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// How long it lasts.
    pub ttl: Duration,
    /// How many files the index holds for the peer.
    pub file_count: u64,
    /// The address it gives to others; only from `register`.
    pub address: Option<Address>,
    /// The digest of the peer's registrations; `None` from an index that tells none.
    pub digest: Option<SetDigest>,
    /// Where another live process is that uses the same token.
    pub rival: Option<Address>,
}

/// A change of a file's providers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderEvent {
    /// Who there is; always first.
    Snapshot(Vec<Provider>),
    /// One came or changed.
    Joined(Provider),
    /// One is gone.
    Left(PeerId),
}
