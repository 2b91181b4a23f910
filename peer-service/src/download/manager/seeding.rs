//! Serves finished downloads until their limit is reached, then stops sharing them.
//!
//! Invariant: the store has a download that is being served, so that the limit holds after a
//! restart.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use potluck_core::FileId;

use crate::{
    content::ContentSource as _,
    download::{
        manager::DownloadManager,
        seeding::{SeedLimit, Seeding},
        status::DownloadState,
    },
    fs::blocking::blocking,
};

/// Interval between checks of the limit.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Checks after which the bytes sent are stored: a crash forgets at most as many seconds of them.
const CHECKS_PER_STORE: u32 = 10;

/// Checks without the item in the library after which its owner has unshared it. Adopting a huge
/// collection takes a while.
const MAX_UNSHARED_CHECKS: u32 = 60;

/// The same for a download of chosen files: it is shared soon, or not at all because files are
/// missing.
const MAX_UNSHARED_CHECKS_OF_CHOSEN: u32 = 3;

/// What a task that serves a download needs to know of it.
struct SeedingTask {
    id: FileId,
    path: PathBuf,
    limit: SeedLimit,
    max_unshared_checks: u32,
    /// How far it was when the task started.
    stored: Seeding,
}

impl DownloadManager {
    /// Prepares a finished download for being served, if its request has a limit for that.
    pub(super) fn begin_seeding(&self, number: u64) -> bool {
        let mut table = self.table();
        let Some(entry) = table.downloads.get_mut(&number) else {
            return false;
        };
        // A provisional id has become a real one.
        entry.spec.id = entry.status.borrow().id;
        let has_limit = matches!(entry.spec.seed, Some(SeedLimit::For(_) | SeedLimit::Ratio(_)));
        if has_limit {
            let size = entry.status.borrow().bytes_total;
            entry.seeding = Some(Seeding {
                since: SystemTime::now(),
                size,
                uploaded: 0,
            });
        }
        has_limit
    }

    /// Serves a finished download in the background until its limit is reached.
    pub(super) fn spawn_seeding(&self, number: u64) {
        let manager = self.clone();
        let stop = self.shared.shutdown.clone();
        self.shared.context.tracker.spawn(async move {
            tokio::select! {
                // Between two checks nothing is half done.
                () = stop.cancelled() => {}
                () = manager.seed(number) => {}
            }
        });
    }

    async fn seed(&self, number: u64) {
        let Some(task) = self.seeding_task(number) else {
            return;
        };
        let SeedingTask {
            id, limit, stored, ..
        } = task;
        let library = self.shared.context.library.clone();
        let tally = self.watch_uploads(id, limit).await;
        let mut unshared_checks = 0;
        for check in 1_u32.. {
            let seeding = Seeding {
                uploaded: stored.uploaded + tally.load(Ordering::Relaxed),
                ..stored
            };
            self.show_seeding(number, Some(seeding));
            let find = library.clone();
            let is_shared = blocking(move || find.find(&id).is_some()).await.unwrap_or(true);
            unshared_checks = if is_shared { 0 } else { unshared_checks + 1 };
            if limit.is_reached(&seeding, SystemTime::now())
                || unshared_checks == task.max_unshared_checks
            {
                break;
            }
            if check.is_multiple_of(CHECKS_PER_STORE) {
                // A failed write is retried later.
                let _ = self.persist(number, false).await;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        library.activity().tallies.forget(&tally);
        match library.unshare_download(task.path).await {
            Ok(()) => tracing::info!(transfer = number, "no longer shared: its limit is reached"),
            Err(problem) => tracing::warn!(
                transfer = number, %problem,
                "could not store that a download is no longer shared"
            ),
        }
        self.show_seeding(number, None);
        let _ = self.forget(number).await;
    }

    fn seeding_task(&self, number: u64) -> Option<SeedingTask> {
        let table = self.table();
        let entry = table.downloads.get(&number)?;
        let path = entry.status.borrow().path.clone();
        Some(SeedingTask {
            id: entry.spec.id,
            path,
            limit: entry.spec.seed?,
            max_unshared_checks: match entry.spec.filter.is_empty() {
                true => MAX_UNSHARED_CHECKS,
                false => MAX_UNSHARED_CHECKS_OF_CHOSEN,
            },
            stored: entry.seeding?,
        })
    }

    fn show_seeding(&self, number: u64, seeding: Option<Seeding>) {
        let mut table = self.table();
        if let Some(entry) = table.downloads.get_mut(&number) {
            entry.seeding = seeding;
            entry.status.send_modify(|status| {
                status.is_seeding = seeding.is_some();
                status.uploaded_bytes = seeding.map_or(status.uploaded_bytes, |now| now.uploaded);
            });
        }
    }

    /// Counts the bytes that are sent of the content from now on, if the limit needs them.
    async fn watch_uploads(&self, id: FileId, limit: SeedLimit) -> Arc<AtomicU64> {
        let tally = Arc::new(AtomicU64::new(0));
        let library = self.shared.context.library.clone();
        if matches!(limit, SeedLimit::Ratio(_)) {
            let counter = Arc::clone(&tally);
            let watch = move || {
                let plan = library.find(&id).and_then(|content| content.plan());
                let files: Vec<FileId> = match plan {
                    Some(plan) => plan.files().map(|file| file.id).chain([id]).collect(),
                    None => vec![id],
                };
                library.activity().tallies.watch(files, &counter);
            };
            let _ = blocking(watch).await;
        }
        tally
    }

    /// Shows a restored download as done, and continues to serve it.
    pub(super) fn resume_seeding(&self, number: u64, seeding: Seeding) {
        {
            let mut table = self.table();
            let Some(entry) = table.downloads.get_mut(&number) else {
                return;
            };
            entry.seeding = Some(seeding);
            entry.status.send_modify(|status| {
                status.state = DownloadState::Done;
                status.bytes_total = seeding.size;
                status.bytes_done = seeding.size;
                status.is_seeding = true;
            });
        }
        self.spawn_seeding(number);
    }
}
