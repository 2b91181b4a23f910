//! Durable storage: the address, lease and registrations of each peer.
//!
//! Queries never read a store; the index reads it once, on opening. A store has no notion of time:
//! the leases decide which peers are still alive.

use std::time::Duration;

use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, ClusterId, Registration},
    network::identity::MemberId,
};
use sha2::Digest as _;

mod backup_file;
#[cfg(test)]
mod contract;
mod durable;
mod folder;
mod maintenance;
mod memory;
pub(crate) mod packed;
mod redis;
pub(crate) mod segment;
pub(crate) mod shared_log;
mod size;
mod sled;

pub use self::{
    folder::FolderError,
    maintenance::{
        ExportedRegistration, MaintenanceError, StoreSummary, StoredRegistrations, restore,
    },
    packed::{PeerPart, PeerSink, StoredPeers},
    redis::{RedisConfig, RedisOpenError},
    sled::SledStore,
};
pub(crate) use self::{
    memory::MemoryStore,
    redis::{RedisLog, RedisStore},
    size::size_of,
    sled::MIN_CACHE_BYTES,
};

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
    /// Removes a peer whose lease has ended, with all of its files. A `SharedStore` keeps it if
    /// another process renewed the lease meanwhile.
    Expire {
        /// The peer.
        peer: PeerId,
    },
}

impl Change {
    /// The peer that changes.
    pub const fn peer(&self) -> &PeerId {
        match self {
            Self::Register { peer, .. } => &peer.id,
            Self::Unregister { peer, .. } | Self::Forget { peer } | Self::Expire { peer } => peer,
        }
    }
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

    /// The identity of the stored data: the same for all indexes that share it, and at each start.
    fn cluster_id(&self) -> ClusterId;

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

    /// The store, if several index processes share it.
    fn shared(&mut self) -> Option<&mut dyn SharedStore> {
        None
    }
}

/// What a store does that several index processes share.
///
/// The store has the truth: a process makes its catalog equal to the store. [`IndexStore::reopen`]
/// is not used; after a failure, [`Self::follow`] finds what differs.
pub trait SharedStore {
    /// Returns what other processes changed, and what the store lost, since the last call.
    /// `digest_of` returns the digest of a peer in the caller's catalog. Also renews leases.
    ///
    /// # Errors
    /// [`StoreError`] if no part of the store answers.
    fn follow(
        &mut self,
        digest_of: &dyn Fn(&PeerId) -> Option<SetDigest>,
    ) -> Result<Following, StoreError>;

    /// Renews leases with the next [`Self::follow`].
    fn renew_leases(&mut self, leases: Vec<(PeerId, Duration)>);

    /// The remaining leases of peers; `None` for one that has ended. Peers whose part of the store
    /// does not answer are left out.
    fn leases(&mut self, peers: &[PeerId]) -> Vec<(PeerId, Option<Duration>)>;
}

/// What [`SharedStore::follow`] found.
#[derive(Debug, Default)]
pub struct Following {
    /// What to apply to the catalog, in order.
    pub changes: Vec<Followed>,
    /// Changes when a part of the store may have lost its last changes.
    pub generation: u64,
    /// Whether to follow again without delay.
    pub has_more: bool,
}

/// A change of a shared store.
#[derive(Debug)]
pub enum Followed {
    /// A change that follows all earlier ones of its peer.
    Change(Change),
    /// The whole state of a peer.
    Peer(StoredPeer),
}

/// The reason why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system returned an error; the stored data is as good as before.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// Some changes of a batch may not be durable; all others are. Only from a `SharedStore`, which
    /// finds out by itself and reports them with `SharedStore::follow`.
    #[error("{} changes were not stored: {reason}", failed.len())]
    Partly {
        /// The places of these changes in the batch, in ascending order.
        failed: Vec<usize>,
        /// The reason of the last failure.
        reason: String,
    },
    /// A later version wrote the data.
    #[error("the stored registrations have the layout {0}, which a later version of potluck wrote")]
    Newer(String),
    /// The stored data is invalid.
    #[error("the stored registrations are damaged: {0}")]
    Damaged(String),
}
