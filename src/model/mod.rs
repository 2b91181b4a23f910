//! Domain types that the index stores and returns: files, providers, registrations, leases and
//! statistics.

mod address;
mod file;
mod lease;
mod provider;
mod query;
mod reachability;
mod set_digest;
mod stats;

pub use self::{
    address::Address,
    file::{FileKind, FileRecord, Registration},
    lease::Lease,
    provider::{Provider, ProviderEvent},
    query::{FilePage, IndexedFile, QueryKey},
    reachability::Reachability,
    set_digest::{RegistrationHash, SetDigest},
    stats::IndexStats,
};
