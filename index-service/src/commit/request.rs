//! Requests to change the index, and their results.

use std::time::Duration;

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration},
};

use crate::store::PeerRecord;

/// How long a caller waits for the disk: less than the 10 seconds of a client's call timeout, so
/// that the client receives the reason.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// A request to change the index.
#[derive(Debug)]
pub(crate) enum CommitRequest {
    /// Adds files to a peer, and sets its address and lease.
    Register {
        /// The peer with its address and lease.
        peer: PeerRecord,
        /// Its registrations.
        files: Vec<Registration>,
        /// Whether earlier registrations are dropped.
        replace: bool,
        /// Upper bound of the memory that the files add, in bytes.
        cost: u64,
        /// Identifies this run of the peer; empty if the peer sent none.
        instance: Vec<u8>,
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

impl CommitRequest {
    /// The peer that the request changes.
    pub(super) const fn peer(&self) -> &PeerId {
        match self {
            Self::Register { peer, .. } => &peer.id,
            Self::Unregister { peer, .. } | Self::Forget { peer } => peer,
        }
    }

    /// The files that the request adds, if that is all that it does to the peer's files.
    pub(super) fn added_files(&self) -> Option<&[Registration]> {
        match self {
            Self::Register {
                files,
                replace: false,
                ..
            } => Some(files),
            _ => None,
        }
    }

    /// Whether two requests of one peer come from the same run of it, with the same address and
    /// the same lease.
    pub(super) fn has_same_holder(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Register { peer, instance, .. },
                Self::Register {
                    peer: other,
                    instance: other_instance,
                    ..
                },
            ) => peer == other && instance == other_instance,
            _ => false,
        }
    }

    /// Number of files that the request registers.
    pub(super) const fn registered_files(&self) -> usize {
        match self {
            Self::Register { files, .. } => files.len(),
            Self::Unregister { .. } | Self::Forget { .. } => 0,
        }
    }
}

/// The reason why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitError {
    /// The peer would have too many files.
    #[error(
        "a peer may register at most {limit} files at this index, and this request would make \
         {requested}: unregister some files first"
    )]
    TooManyFiles {
        /// The maximum.
        limit: u64,
        /// How many files the peer would have.
        requested: u64,
    },
    /// Too many peers have this address.
    #[error(
        "{limit} peers with the address {host} are registered, which is the maximum: \
         try again when some of them have left"
    )]
    TooManyPeers {
        /// The address.
        host: String,
        /// The maximum.
        limit: u64,
    },
    /// No memory is left for registrations.
    #[error(
        "the index has no memory left for registrations: try again later, or have the index \
         started with a larger --max-memory-mib"
    )]
    Full,
    /// The peer, or all peers of its host together, would use too much of the memory.
    #[error(
        "{owner} uses {used_mib} MiB of the index's memory and may not use more: unregister some \
         files, or have the index started with a larger --max-memory-mib"
    )]
    TooMuchMemory {
        /// The peer or the host.
        owner: String,
        /// The memory that it uses, in MiB.
        used_mib: u64,
    },
    /// Another live process uses the peer's token and holds its lease.
    #[error(
        "another peer at {}:{} uses the same token: stop one of the two peers, and delete \
         `state/token` from the home that is a copy",
        .address.host, .address.port
    )]
    IdentityInUse {
        /// The address of that process.
        address: Address,
    },
    /// The queue is full.
    #[error("too many changes wait to be written: try again in a moment")]
    Busy,
    /// The change is not durable within the timeout.
    #[error("the change was not written within {COMMIT_TIMEOUT:?}: try again in a moment")]
    Slow,
    /// The store failed.
    #[error(
        "the index cannot store anything at the moment: try again later, and check the index's log"
    )]
    Store,
    /// The index is shutting down.
    #[error("the index is shutting down")]
    Closed,
}

/// The result of a change: for a registration the peer's number of files, otherwise the number of
/// removed registrations.
pub(crate) type CommitResult = Result<u64, CommitError>;
