//! A peer in the list of an index.

use std::time::Duration;

use crate::{PeerId, model::Address};

/// A peer with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPeer {
    /// Its public id.
    pub peer: PeerId,
    /// Its registered address.
    pub address: Address,
    /// Number of its registrations.
    pub file_count: u64,
    /// Time since its last registration or renewal.
    pub last_seen: Duration,
    /// Its version; empty if unknown. Untrusted text.
    pub version: String,
}

/// A page of peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPage {
    /// The peers; may be empty although there is another page.
    pub peers: Vec<ListedPeer>,
    /// The token of the next page; `None` on the last page.
    pub next: Option<String>,
}
