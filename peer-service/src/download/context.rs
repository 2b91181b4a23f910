//! The services and settings that every download of a peer uses.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use potluck_core::{PeerId, index_client::IndexClient, model::Address};
use tokio_util::task::TaskTracker;

use crate::{
    announce::set::AnnounceSet,
    cache::Cache,
    download::counters::DownloadCounters,
    download::{
        engine::disk_pool::DiskPools,
        origin::{aliases::Aliases, source::Origins},
        outgoing::Outgoing,
    },
    library::Library,
    limits::{Limits, budget::InFlightBudget},
    store::Store,
};

/// Shared by all downloads of a peer.
#[derive(Debug)]
pub struct DownloadContext {
    /// Finds content that this machine already has, and adopts finished downloads.
    pub library: Library,
    /// The files that this peer announces to the index.
    pub announce_set: AnnounceSet,
    /// The client of the index; `None` if the peer has no index.
    pub index: Option<IndexClient>,
    /// What was fetched on behalf of others; it makes room on a full disk.
    pub cache: Cache,
    /// Persists unfinished downloads.
    pub store: Store,
    /// The folder for downloads without a target path.
    pub files_folder: PathBuf,
    /// The identity of this peer towards other peers.
    pub local: LocalPeer,
    /// The resources of this machine that all downloads share.
    pub resources: SharedResources,
    /// Verified bytes downloaded since the process started.
    pub downloaded_bytes: Arc<AtomicU64>,
    /// Counters for monitoring.
    pub(crate) counters: DownloadCounters,
    /// The client of origins.
    pub origins: Origins,
    /// Provisional ids of finished downloads.
    pub(crate) aliases: Aliases,
    /// Tracks every task of every download.
    pub tracker: TaskTracker,
}

/// The identity of this peer towards other peers.
#[derive(Debug)]
pub struct LocalPeer {
    /// The id of this peer.
    pub id: PeerId,
    /// The address on which this peer listens; `None` if it only downloads.
    pub address: Option<Address>,
    /// How this peer opens connections to other peers.
    pub outgoing: Outgoing,
}

impl LocalPeer {
    /// Whether a provider with this id and address is this peer itself.
    pub(crate) fn is_self(&self, peer: Option<&PeerId>, address: &Address) -> bool {
        peer == Some(&self.id) || self.address.as_ref() == Some(address)
    }
}

/// The resources of this machine that all downloads share.
#[derive(Debug)]
pub struct SharedResources {
    /// Limits of the whole peer.
    pub limits: Limits,
    /// Bounds the bytes in flight over all downloads.
    pub budget: InFlightBudget,
    /// Number of hashing threads.
    pub hash_threads: usize,
    /// Thread pools that verify and write units.
    pub disk_pools: DiskPools,
}
