//! What every transfer of a peer works with.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use potluck_core::{PeerId, index_client::IndexClient, model::Address};
use tokio_util::task::TaskTracker;

use crate::{
    announce::set::AnnounceSet,
    download::engine::disk_pool::DiskPools,
    library::Library,
    limits::{Limits, budget::InFlightBudget},
    store::Store,
};

/// See the module.
#[derive(Debug)]
pub struct DownloadContext {
    /// What is here already, and where finished downloads go.
    pub library: Library,
    /// What the index is told.
    pub announce_set: AnnounceSet,
    /// Limits of the whole peer.
    pub limits: Limits,
    /// What all transfers together may have asked for.
    pub budget: InFlightBudget,
    /// The index, if there is one.
    pub index: Option<IndexClient>,
    /// Where unfinished transfers are remembered.
    pub store: Store,
    /// Where downloads go unless told otherwise.
    pub files_folder: PathBuf,
    /// This peer.
    pub peer_id: PeerId,
    /// Where this peer listens.
    pub local_addr: Address,
    /// Where connections to other peers leave from, so that these and the index see the address
    /// that is listened on; `None`: as the system has it.
    pub leave_from: Option<IpAddr>,
    /// Threads that hash.
    pub hash_threads: usize,
    /// Who verifies and writes units, over all transfers.
    pub disk_pools: DiskPools,
    /// Verified bytes fetched since the start.
    pub downloaded_bytes: Arc<AtomicU64>,
    /// Every task of every transfer.
    pub tracker: TaskTracker,
}

impl DownloadContext {
    /// Whether a source with this id and address is this very peer.
    pub(crate) fn is_self(&self, peer: Option<&PeerId>, address: &Address) -> bool {
        peer == Some(&self.peer_id) || *address == self.local_addr
    }
}
