//! What the index stores and returns, as domain types: files, addresses, providers, registrations
//! and leases.

use std::time::Duration;

use crate::{FileId, PeerId, Root, SetDigest, Sha256};

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

/// Network address of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// IP address or host name, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A peer that has all or part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The peer's public id.
    pub peer: PeerId,
    /// The peer's address.
    pub address: Address,
    /// Whether the peer has only part of the file.
    pub partial: bool,
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

/// One file that a peer registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The file's record.
    pub file: FileRecord,
    /// Names of the file, 1 to 16.
    pub names: Vec<String>,
    /// Whether the peer has only part of the file.
    pub partial: bool,
}

/// Key of an exact query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryKey {
    /// File id.
    Id(FileId),
    /// Claimed SHA-256 of the whole file.
    Sha256(Sha256),
    /// Exact name.
    Name(String),
}

impl QueryKey {
    /// The bytes that the index echoes in its response.
    pub fn to_bytes(&self) -> bytes::Bytes {
        match self {
            Self::Id(id) => id.to_bytes(),
            Self::Sha256(sum) => sum.to_bytes(),
            Self::Name(name) => bytes::Bytes::copy_from_slice(name.as_bytes()),
        }
    }
}

/// A lease that the index granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// How long the lease lasts.
    pub ttl: Duration,
    /// Number of files that the index holds for the peer.
    pub file_count: u64,
    /// The address that the index gives to other peers; only from `register`.
    pub address: Option<Address>,
    /// Digest of the peer's registrations; `None` if the index does not send one.
    pub digest: Option<SetDigest>,
    /// Address of another live process that uses the same token.
    pub rival: Option<Address>,
}

/// A change in a file's providers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderEvent {
    /// The current providers; always the first event.
    Snapshot(Vec<Provider>),
    /// A provider joined, or its record changed.
    Joined(Provider),
    /// A provider left.
    Left(PeerId),
}
