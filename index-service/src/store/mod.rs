//! What must survive a restart: each peer's address, lease and registrations.
//!
//! Nothing here is asked by queries; a store is read once, when it is opened. Stores know nothing of time: which peers are still
//! there is for the leases to say.

use std::time::Duration;

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration},
};

#[cfg(test)]
mod contract;
mod durable;
mod folder;
mod memory;
mod segment;
mod sled;

pub use self::{folder::FolderError, memory::MemoryStore, sled::SledStore};

/// What is known of a peer beside its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its public id.
    pub id: PeerId,
    /// Where it is.
    pub address: Address,
    /// How long its lease lasts.
    pub ttl: Duration,
}

/// One change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The peer is there, and has these files besides those of before, or with `replace` instead of them. A file that it
    /// had already is told anew.
    Register {
        /// The peer.
        peer: PeerRecord,
        /// What it has.
        files: Vec<Registration>,
        /// How many of the files it did not have before: tells a store how much of what it keeps can be of no use by now.
        new: usize,
        /// Whether what it registered before is forgotten.
        replace: bool,
    },
    /// The peer no longer has these files.
    Unregister {
        /// The peer.
        peer: PeerId,
        /// The files.
        files: Vec<FileId>,
    },
    /// The peer is gone with all that it had.
    Forget {
        /// The peer.
        peer: PeerId,
    },
}

/// A peer as the store gives it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPeer {
    /// The peer.
    pub record: PeerRecord,
    /// What it has, in any order.
    pub files: Vec<Registration>,
}

/// A durable record of who registered what.
pub trait IndexStore: Send {
    /// What kind of store it is, as `GetStats` tells it.
    fn kind(&self) -> &'static str;

    /// Gives every peer in turn.
    ///
    /// # Errors
    /// [`StoreError`] where what was stored cannot be read.
    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError>;

    /// Makes changes in their order. When it returns they are durable: neither the end of the process nor that of the machine
    /// loses them. Each change is stored whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`]: then nothing is certain to be durable, and what is stored may hold any of the changes.
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Opens the store again after a failure, and gives every peer in turn as [`Self::load`] does: what is stored may hold any of the
    /// changes that failed. Whoever calls it knows what has to be stored, and applies the difference.
    ///
    /// # Errors
    /// [`StoreError::Io`] while the system does not allow it: try again later. [`StoreError::Damaged`] where it could not be read and
    /// was moved aside: the next call opens an empty one. After either, what was given is of no use.
    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError>;
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system said no; what is stored is as good as it was.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// What is stored makes no sense.
    #[error("the stored registrations are damaged: {0}")]
    Damaged(String),
}
