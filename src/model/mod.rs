//! Domain types that the index stores and returns: files, providers, registrations, leases and
//! statistics.

mod address;
mod cluster_id;
mod file;
mod labels;
mod lease;
mod listed_peer;
mod provider;
mod query;
mod reachability;
mod set_digest;
mod stats;

pub use self::{
    address::Address,
    cluster_id::ClusterId,
    file::{FileKind, FileRecord, Registration},
    labels::{Distance, LabelValue, Labels, MAX_LABEL_LEN, MachineLabel, SameZone},
    lease::Lease,
    listed_peer::{ListedPeer, PeerPage},
    provider::{Provider, ProviderEvent},
    query::{FilePage, IndexedFile, QueryKey},
    reachability::Reachability,
    set_digest::{RegistrationHash, SetDigest},
    stats::IndexStats,
};
