//! Providers: the peers that have a file.

use crate::{identity::id::PeerId, model::address::Address};

/// A peer that has all or part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The peer's public id.
    pub peer: PeerId,
    /// The peer's address.
    pub address: Address,
    /// Whether the peer has the whole file.
    pub is_complete: bool,
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
