//! A seed of one file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use potluck_core::{FileId, proto::v1};
use potluck_peer::Config;
use tempfile::TempDir;

use super::TestPeer;
use crate::{
    content::{bytes, write_file},
    transfer::transfer_request_from,
};

/// A peer that shares one file, and a folder for everything else that the test needs.
#[derive(Debug)]
pub struct SeededFile {
    /// The folder: the shared file is `src/data.bin`, the home of the seed `seed`.
    pub dir: TempDir,
    /// The content of the file.
    pub data: Vec<u8>,
    /// Its id.
    pub id: FileId,
    /// The seed.
    pub seed: TestPeer,
}

impl SeededFile {
    /// A file of this length, from this random seed.
    pub async fn new(len: usize, random_seed: u64) -> Self {
        Self::with_config(len, random_seed, |config| config).await
    }

    /// A file of this length, shared by a peer whose configuration `change` returns.
    pub async fn with_config(
        len: usize,
        random_seed: u64,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        crate::log();
        let dir = tempfile::tempdir().unwrap();
        let data = bytes(len, random_seed);
        let path = write_file(dir.path(), "src/data.bin", &data);
        let seed = TestPeer::with_config(change(Config::new(dir.path().join("seed")))).await;
        let id = seed.share(&path).await;
        Self { dir, data, id, seed }
    }

    /// The path of this name in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another peer, whose home has this name in the folder.
    pub async fn peer(&self, name: &str) -> TestPeer {
        TestPeer::start(&self.path(name), None).await
    }

    /// A request for the file at this path, from the seed.
    pub fn request(&self, target: &Path) -> v1::StartTransferRequest {
        transfer_request_from(self.id, target, [&self.seed.address])
    }

    /// Asserts that the file at this path has the shared content.
    #[track_caller]
    pub fn assert_arrived_at(&self, target: &Path) {
        assert!(
            fs::read(target).unwrap() == self.data,
            "{} has other bytes",
            target.display()
        );
    }
}
