//! Statistics of the index.

use std::time::Duration;

use crate::model::ClusterId;

/// Statistics of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexStats {
    /// Number of peers with a lease.
    pub peers: u64,
    /// Number of distinct files of live peers.
    pub files: u64,
    /// Number of registrations: pairs of peer and file.
    pub registrations: u64,
    /// Number of open `WatchProviders` streams.
    pub watchers: u64,
    /// Time since the index started.
    pub uptime: Duration,
    /// The program's version; untrusted text.
    pub version: String,
    /// The kind of store; untrusted text.
    pub store: String,
    /// The identity of the store; `None` if the index is too old to report it.
    pub cluster_id: Option<ClusterId>,
}
