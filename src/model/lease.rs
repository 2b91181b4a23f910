//! Leases of peers at the index.

use std::time::Duration;

use crate::model::{address::Address, set_digest::SetDigest};

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
    pub conflicting_address: Option<Address>,
    /// Changes when the store of the index may have lost its last changes; only from `renew`.
    pub store_generation: u64,
}
