//! Durable storage: the address, lease and registrations of each peer.
//!
//! Queries never read a store; the index reads it once, on opening. A store has no notion of time:
//! the leases decide which peers are still alive.

use std::time::Duration;

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration},
    network::identity::MemberId,
};
use sha2::Digest as _;

#[cfg(test)]
mod contract;
mod durable;
mod folder;
mod memory;
mod segment;
mod sled;

pub(crate) use self::memory::MemoryStore;
pub use self::{folder::FolderError, sled::SledStore};

/// A peer without its files, or the bindings of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its public id.
    pub id: PeerId,
    /// The address where it listens.
    pub address: Address,
    /// The duration of its lease; zero for bindings, which have none.
    pub ttl: Duration,
}

impl PeerRecord {
    /// The record under which the names are stored that a peer of a private network binds to files.
    /// It has an id of its own, no lease, and the member that owns the peer in place of a host.
    pub(crate) fn of_bindings(peer: &PeerId, member: &MemberId) -> Self {
        let mut hash = sha2::Sha256::new();
        hash.update(b"potluck/bindings/v1\0");
        hash.update(peer.as_bytes());
        let owner = Address {
            host: member.to_string(),
            port: 0,
        };
        Self::with_owner(PeerId(hash.finalize().into()), owner)
    }

    /// The record of bindings with this id and owner.
    pub(crate) const fn with_owner(id: PeerId, owner: Address) -> Self {
        Self {
            id,
            address: owner,
            ttl: Duration::ZERO,
        }
    }

    /// Whether it holds bindings: a peer has a lease of at least a second.
    pub(crate) const fn holds_bindings(&self) -> bool {
        self.ttl.is_zero()
    }
}

/// A change to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds files to a peer, and sets its address and lease. With `replace`, the files replace all
    /// earlier ones. A file that the peer has already is overwritten.
    Register {
        /// The peer.
        peer: PeerRecord,
        /// Its registrations.
        files: Vec<Registration>,
        /// How many of the files are new to the peer. A store uses it to estimate how much of its
        /// data is obsolete.
        new: usize,
        /// Whether earlier registrations are dropped.
        replace: bool,
    },
    /// Removes files from a peer.
    Unregister {
        /// The peer.
        peer: PeerId,
        /// The files.
        files: Vec<FileId>,
    },
    /// Removes a peer with all of its files.
    Forget {
        /// The peer.
        peer: PeerId,
    },
}

/// A peer as read from a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPeer {
    /// The peer.
    pub record: PeerRecord,
    /// Its registrations, in any order.
    pub files: Vec<Registration>,
}

/// A durable record of the peers and their registrations.
pub trait IndexStore: Send {
    /// The kind of store, as `GetStats` reports it.
    fn kind(&self) -> &'static str;

    /// Passes each stored peer to `each`.
    ///
    /// # Errors
    /// [`StoreError`] if the stored data cannot be read.
    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError>;

    /// Makes changes in order. On success they are durable: they survive a crash of the process and
    /// of the machine. Each change is stored whole or not at all.
    ///
    /// # Errors
    /// After a [`StoreError`], no change is certain to be durable, and the store may contain any of
    /// the changes.
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Opens the store again after a failure, and passes each stored peer to `each`, as
    /// [`Self::load`] does. The store may contain any of the changes that failed; the caller
    /// compares it with the wanted state and applies the difference.
    ///
    /// # Errors
    /// - [`StoreError::Io`] if the system does not allow it now: try again later.
    /// - [`StoreError::Damaged`] if the data could not be read and was moved aside: the next call
    ///   opens an empty store.
    ///
    /// After either error, discard the peers that `each` received.
    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError>;
}

/// The reason why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system returned an error; the stored data is as good as before.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// The stored data is invalid.
    #[error("the stored registrations are damaged: {0}")]
    Damaged(String),
}
