//! Computes missing plain SHA-256s in the background; slows down while a share hashes or the peer
//! is busy.
//!
//! Non-goal: verification. A plain SHA-256 only lets others find a file by it
//! (docs/decisions/0006).

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{FileId, Sha256, identity::hash};
use tokio_util::sync::CancellationToken;

use crate::{
    activity::Activity,
    catalog::stamp::stamp_of,
    fs::blocking::in_background,
    library::{
        catalog_store::CatalogStore,
        hash::{
            open::open_regular,
            priority::{BackgroundTurns, ForegroundHashers},
        },
        serve::copies::CopyOpener,
    },
};

/// Minimum time from a download to the computation of its plain SHA-256: other peers still download
/// the same file, and nothing waits for the SHA-256.
const AFTER_DOWNLOAD: Duration = Duration::from_secs(20);

/// Minimum time from a share to the computation: the share's caller gets its answer first.
const AFTER_SHARE: Duration = Duration::from_millis(20);

/// Maximum number of SHA-256s stored in one batch, and how long the first may wait.
const MAX_BATCH: usize = 512;
const MAX_BATCH_TIME: Duration = Duration::from_secs(1);

/// Computes SHA-256s in the background.
#[derive(Debug)]
pub(crate) struct Sha256Worker {
    catalog: Arc<CatalogStore>,
    copies: Arc<CopyOpener>,
    hashers: Arc<ForegroundHashers>,
    activity: Activity,
    /// The time of the last finished download.
    last_download: Mutex<Option<Instant>>,
    shutdown: CancellationToken,
}

impl Sha256Worker {
    pub(crate) fn new(
        catalog: Arc<CatalogStore>,
        copies: Arc<CopyOpener>,
        hashers: Arc<ForegroundHashers>,
        activity: Activity,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            catalog,
            copies,
            hashers,
            activity,
            last_download: Mutex::default(),
            shutdown,
        }
    }

    /// Notes that a download just ended.
    pub(crate) fn on_download(&self) {
        *self.last_download.lock() = Some(Instant::now());
    }

    /// Computes what is missing after each change of the catalog, until shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.catalog.changed() => {}
            }
            // Wait only once, however many more downloads end meanwhile: the SHA-256s of shared
            // files must not wait for them too.
            let delay = delay_after(*self.last_download.lock(), Instant::now());
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            let worker = self.clone();
            // A failure is logged in `in_background`.
            let _ = in_background("potluck-sha256", move || worker.compute_missing()).await;
            if self.shutdown.is_cancelled() {
                return;
            }
        }
    }

    /// Computes every missing SHA-256. Yields to foreground hashing and to transfers.
    fn compute_missing(&self) {
        let mut sha256s = HashMap::new();
        let mut since = Instant::now();
        let mut turns = BackgroundTurns::new(&self.hashers, &self.activity, &self.shutdown);
        let mut last = None;
        loop {
            // A separate statement, so that the catalog does not stay locked in the loop.
            let files = self.catalog.read().without_sha256(last, MAX_BATCH);
            let Some((location, _)) = files.last() else {
                break;
            };
            last = Some(*location);
            for (_, id) in files {
                turns.before_file();
                if self.shutdown.is_cancelled() {
                    return self.store(&mut sha256s);
                }
                let Some(path) = self.copies.locate(&id) else {
                    continue;
                };
                if sha256s.is_empty() {
                    since = Instant::now();
                }
                if let Some(sha256) = self.compute(&path, &id, &mut turns) {
                    sha256s.insert(id, sha256);
                }
                if sha256s.len() >= MAX_BATCH || since.elapsed() >= MAX_BATCH_TIME {
                    self.store(&mut sha256s);
                }
            }
        }
        self.store(&mut sha256s);
    }

    fn store(&self, sha256s: &mut HashMap<FileId, Sha256>) {
        if sha256s.is_empty() {
            return;
        }
        // A failure is already logged, and the SHA-256s are computed again after the next start.
        let _ = self.catalog.writer().apply(|catalog, delta| {
            for (id, sha256) in sha256s.drain() {
                catalog.set_sha256(id, sha256, delta);
            }
        });
    }

    /// The SHA-256 of a file. `None` if it changed or cannot be read, or on shutdown.
    fn compute(&self, path: &Path, id: &FileId, turns: &mut BackgroundTurns<'_>) -> Option<Sha256> {
        let (file, before) = open_regular(path).ok()?;
        let known = self.catalog.read().known_file(path, &before)?;
        if known.id != *id {
            return None;
        }
        let (turns, read) = (Mutex::new(turns), AtomicU64::new(0));
        let sha256 = hash::sha256_file(&file, &|bytes| {
            turns.lock().before_read(bytes);
            read.fetch_add(bytes, Ordering::Relaxed);
            match self.shutdown.is_cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        let after = stamp_of(&file.metadata().ok()?);
        let is_whole = after == before && read.into_inner() == before.size;
        sha256.ok().filter(|_| is_whole)
    }
}

/// How long to wait so that other downloaders of the same file, and the callers of shares, go
/// first.
fn delay_after(last_download: Option<Instant>, now: Instant) -> Duration {
    let delay = last_download.map(|at| (at + AFTER_DOWNLOAD).saturating_duration_since(now));
    delay.unwrap_or_default().max(AFTER_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256s_wait_for_a_while_after_a_download() {
        let at = Instant::now();
        assert_eq!(delay_after(None, at), AFTER_SHARE);
        assert_eq!(delay_after(Some(at), at + AFTER_DOWNLOAD / 2), AFTER_DOWNLOAD / 2);
        assert_eq!(delay_after(Some(at), at + 2 * AFTER_DOWNLOAD), AFTER_SHARE);
    }
}
