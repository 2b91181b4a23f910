//! Reads a download in order while it runs.
//!
//! Invariant: bytes are handed out only if they were verified; of content whose root is not known,
//! only if they came from the origin, and never the last unit before the SHA-256 of all bytes was
//! compared.

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::Bytes;
use potluck_core::{Problem, Reason};
use tokio::sync::watch;

use crate::{
    download::{
        engine::active::ActiveDownload,
        manager::DownloadManager,
        origin::early::EarlyBytes,
        status::{DownloadState, DownloadStatus},
        storage::target,
    },
    fs::blocking::blocking,
};

/// Reads one download.
#[derive(Debug)]
pub struct PartReader {
    active: watch::Receiver<Option<Arc<ActiveDownload>>>,
    status: watch::Receiver<DownloadStatus>,
    early: Option<Arc<EarlyBytes>>,
}

impl DownloadManager {
    /// A reader of the download with this number, if it is listed.
    pub fn reader(&self, number: u64) -> Option<PartReader> {
        let table = self.table();
        let entry = table.downloads.get(&number)?;
        Some(PartReader {
            active: entry.active.subscribe(),
            status: entry.status.subscribe(),
            early: None,
        })
    }
}

impl PartReader {
    /// The run whose bytes the last read handed out before the SHA-256 of all was compared. If they
    /// turn out wrong, what was handed out must not be continued.
    pub fn early(&self) -> Option<&Arc<EarlyBytes>> {
        self.early.as_ref()
    }

    /// At least one and at most `max` bytes at `offset`, which must be inside the file. Waits until
    /// they may be handed out. Cancel-safe.
    ///
    /// # Errors
    /// The problem of a download that failed; [`Reason::Cancelled`] if it was stopped.
    pub async fn read(&mut self, offset: u64, max: usize) -> Result<Bytes, Problem> {
        loop {
            let (state, path, error) = {
                let status = self.status.borrow_and_update();
                (status.state, status.path.clone(), status.error.clone())
            };
            match state {
                DownloadState::Done => {
                    self.early = None;
                    return read_file(path, offset, max).await;
                }
                DownloadState::Failed | DownloadState::Cancelled | DownloadState::Paused => {
                    let stopped = || Problem::new(Reason::Cancelled, "the download was stopped");
                    return Err(error.unwrap_or_else(stopped));
                }
                _ => {}
            }
            let active = self.active.borrow_and_update().clone();
            let Some(active) = active else {
                tokio::select! {
                    changed = self.status.changed() => changed.map_err(|_| gone())?,
                    changed = self.active.changed() => changed.map_err(|_| gone())?,
                }
                continue;
            };
            let mut changes = active.changes();
            changes.borrow_and_update();
            if let Some(len) = active.readable(offset, max) {
                let pieces = active.pieces.as_ref();
                self.early = pieces.map(|pieces| Arc::clone(pieces.early()));
                return read_part(active, path, offset, len).await;
            }
            tokio::select! {
                changed = self.status.changed() => changed.map_err(|_| gone())?,
                changed = self.active.changed() => changed.map_err(|_| gone())?,
                // The download ended; its state says how.
                _ = changes.changed() => {}
            }
        }
    }
}

fn gone() -> Problem {
    Problem::new(Reason::Cancelled, "the download is no longer listed")
}

async fn read_part(
    active: Arc<ActiveDownload>,
    path: PathBuf,
    offset: u64,
    len: usize,
) -> Result<Bytes, Problem> {
    blocking(move || {
        let mut bytes = vec![0; len];
        let read = active.part_file.file(0);
        read.and_then(|file| file.read_exact_at(&mut bytes, offset))
            .map_err(|error| target::target_problem(&path, &error))?;
        Ok(bytes.into())
    })
    .await?
}

async fn read_file(path: PathBuf, offset: u64, max: usize) -> Result<Bytes, Problem> {
    blocking(move || {
        let mut bytes = vec![0; max];
        let read = File::open(&path).and_then(|file| file.read_at(&mut bytes, offset));
        let len = read.map_err(|error| target::target_problem(&path, &error))?;
        bytes.truncate(len);
        Ok(bytes.into())
    })
    .await?
}
