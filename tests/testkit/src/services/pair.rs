//! A seed and a peer that downloads from it.

use std::path::Path;

use potluck_core::{FileId, proto::v1};
use tempfile::TempDir;

use super::TestPeer;
use crate::{
    content::write_file,
    transfer::{TransferEvents, transfer_request_from},
};

/// Two peers without an index, and a folder for everything else that the test needs.
#[derive(Debug)]
pub struct PeerPair {
    /// The folder: the homes are `seed` and `peer`.
    pub dir: TempDir,
    /// The peer that shares.
    pub seed: TestPeer,
    /// The peer that downloads.
    pub peer: TestPeer,
}

impl PeerPair {
    /// Starts both peers.
    pub async fn new() -> Self {
        crate::log();
        let dir = tempfile::tempdir().unwrap();
        let seed = TestPeer::start(&dir.path().join("seed"), None).await;
        let peer = TestPeer::start(&dir.path().join("peer"), None).await;
        Self { dir, seed, peer }
    }

    /// Shares a file with this name in the folder.
    pub async fn share(&self, name: &str, content: &[u8]) -> FileId {
        self.seed.share(&write_file(self.dir.path(), name, content)).await
    }

    /// A request to the peer for a file of the seed.
    pub fn request(&self, id: FileId, target: &Path) -> v1::StartTransferRequest {
        transfer_request_from(id, target, [&self.seed.address])
    }

    /// Starts a transfer from the seed to the peer.
    pub async fn start_transfer(&self, id: FileId, target: &Path) -> TransferEvents {
        self.peer.control.start_transfer(self.request(id, target)).await
    }

    /// Starts a transfer from the seed to the peer with a rate limit.
    pub async fn start_limited_transfer(
        &self,
        id: FileId,
        target: &Path,
        bytes_per_second: u64,
    ) -> TransferEvents {
        let request = v1::StartTransferRequest {
            max_bytes_per_second: Some(bytes_per_second),
            ..self.request(id, target)
        };
        self.peer.control.start_transfer(request).await
    }

    /// Runs a transfer from the seed to the peer; returns its last state.
    pub async fn download(&self, id: FileId, target: &Path) -> v1::Transfer {
        self.peer.download(self.request(id, target)).await
    }

    /// Stops both peers.
    pub async fn stop(self) {
        self.peer.stop().await;
        self.seed.stop().await;
    }
}
