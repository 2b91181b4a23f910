//! All downloads of a peer: start, join, pause, resume, cancel, and restore after a restart.
//!
//! | module | purpose |
//! |---|---|
//! | `table` | the list of downloads |
//! | `tasks` | starts the task of a download, and records how it ended |
//! | `commands` | pause, resume, adjust, cancel |
//! | `log` | what the log says of downloads |
//! | `reading` | runs that send a file to their caller and keep nothing |
//! | `seeding` | serves finished downloads until their limit is reached |
//! | `part_reader` | reads a download in order while it runs |
//! | `persistence` | keeps the store in step with the list |
//!
//! Invariants:
//!
//! - At most one task runs a download.
//! - A detached download is in the store before it runs. Any other download runs even if it cannot
//!   be stored.
//! - A command succeeds once the store has written its change to disk.
//! - A download without watchers is paused, unless it is detached.

mod commands;
mod log;
mod part_reader;
mod persistence;
mod reading;
mod seeding;
mod table;
mod tasks;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::SystemTime};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{FileId, Problem, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::part_reader::PartReader;

use crate::{
    content::{Content, ContentSource},
    download::{
        context::DownloadContext,
        engine::active::ActiveDownload,
        manager::table::{DownloadEntry, DownloadTable, RestartPolicy},
        origin::aliases::AliasContent,
        status::{DownloadSpec, DownloadState, DownloadStatus},
        storage::{persisted::PersistedDownload, target},
    },
    fs::blocking::blocking,
    store::StoreError,
};

/// Starts and controls downloads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DownloadManager {
    shared: Arc<ManagerShared>,
}

#[derive(Debug)]
struct ManagerShared {
    context: Arc<DownloadContext>,
    table: Mutex<DownloadTable>,
    /// Held while the store is written.
    persisting: Mutex<()>,
    shutdown: CancellationToken,
}

/// Keeps a download watched; dropping it removes the watcher.
#[derive(Debug)]
pub struct DownloadWatch {
    manager: DownloadManager,
    /// The number of the download.
    pub number: u64,
    /// The current status.
    pub status: watch::Receiver<DownloadStatus>,
}

impl Drop for DownloadWatch {
    fn drop(&mut self) {
        let mut table = self.manager.table();
        let Some(entry) = table.downloads.get_mut(&self.number) else {
            return;
        };
        entry.watchers -= 1;
        let unwatched = entry.watchers == 0 && !entry.spec.detach;
        if unwatched && entry.task.is_some() && !self.manager.shared.shutdown.is_cancelled() {
            tracing::info!(transfer = self.number, "paused, because it has no watchers");
            entry.pause();
        }
    }
}

impl DownloadManager {
    /// A manager without downloads; [`DownloadManager::restore`] loads those of earlier runs.
    pub fn new(context: Arc<DownloadContext>, shutdown: CancellationToken) -> Self {
        Self {
            shared: Arc::new(ManagerShared {
                context,
                table: Mutex::default(),
                persisting: Mutex::default(),
                shutdown,
            }),
        }
    }

    fn table(&self) -> MutexGuard<'_, DownloadTable> {
        self.shared.table.lock()
    }

    /// Loads the downloads that had not ended when the peer last stopped, and resumes detached
    /// downloads that were running.
    ///
    /// # Errors
    /// [`Reason::StoreUnavailable`] if the store cannot be read.
    pub async fn restore(&self) -> Result<(), Problem> {
        let store = self.shared.context.store.clone();
        let read = move || Ok((store.downloads()?, store.last_download_number()?));
        let read: Result<_, StoreError> = blocking(read).await?;
        let (saved, last) =
            read.map_err(|error| Problem::new(Reason::StoreUnavailable, error.to_string()))?;
        // A number names one transfer for ever: a late `cancel` must not stop another one.
        self.table().last_number = last;
        for (number, bytes) in saved {
            let Some(saved) = PersistedDownload::decode(&bytes) else {
                tracing::warn!(
                    transfer = number,
                    "ignores a stored transfer that cannot be decoded"
                );
                continue;
            };
            let must_resume = saved.running && saved.spec.detach;
            let (persisted, seeding) = (Some(saved.running), saved.seeding);
            let cache_use = self.cache_use(&saved.spec).filter(|_| seeding.is_none());
            self.table().insert(number, saved, persisted).cache_use = cache_use;
            if let Some(seeding) = seeding {
                self.resume_seeding(number, seeding);
                continue;
            }
            if must_resume {
                // The store already has this download, so storing it cannot fail.
                let _ = self.start_task(number, RestartPolicy::UnlessEnded).await;
            }
        }
        Ok(())
    }
}

impl DownloadManager {
    /// Starts a download, or joins an unfinished one of the same file to the same target and
    /// resumes it if it is paused. A joined download takes over the new request's providers, limits
    /// and flags to detach and to allow expansion.
    ///
    /// # Errors
    /// [`Reason::UnsafePath`] if the target is not allowed. If a detached download cannot be
    /// stored: [`Reason::DiskFull`], [`Reason::TooManyOpenFiles`] or [`Reason::StoreUnavailable`].
    /// Later problems appear in the status.
    pub async fn start_download(&self, spec: DownloadSpec) -> Result<DownloadWatch, Problem> {
        if let Some(path) = &spec.target {
            target::check_target(path)?;
        }
        let detach = spec.detach;
        // Adds the watcher before the task starts; without a watcher the download would be paused.
        let (watching, _) = self.find_or_insert(spec);
        match self.start_task(watching.number, RestartPolicy::Always).await {
            // Only a detached download is promised to outlive its caller and this process.
            Err(problem) if detach => Err(problem),
            _ => Ok(watching),
        }
    }

    /// Finds or inserts a download for this request and adds a watcher. The flag is true if it
    /// existed. One lock covers both steps, so that concurrent callers with the same request share
    /// a download.
    fn find_or_insert(&self, spec: DownloadSpec) -> (DownloadWatch, bool) {
        let mut table = self.table();
        let table = &mut *table;
        let same = table.downloads.iter().rev().find(|(_, entry)| {
            let same = entry.spec.target == spec.target && entry.spec.name == spec.name;
            !entry.has_ended()
                && same
                && entry.spec.id == spec.id
                && entry.spec.sha256 == spec.sha256
                && entry.spec.origin.is_some() == spec.origin.is_some()
                && entry.spec.filter == spec.filter
        });
        let same = same.map(|(&number, _)| number);
        let number = same.unwrap_or(table.last_number + 1);
        let entry = match same.and_then(|number| table.downloads.get_mut(&number)) {
            Some(entry) => {
                entry.spec.detach |= spec.detach;
                entry.spec.allow_expansion |= spec.allow_expansion;
                // With a fresh address and credentials.
                entry.spec.origin = spec.origin.or_else(|| entry.spec.origin.take());
                entry.spec.seed = spec.seed.or(entry.spec.seed);
                entry.apply_limits(spec.limits);
                for address in spec.providers {
                    if !entry.spec.providers.contains(&address) {
                        entry.spec.providers.push(address);
                    }
                }
                entry.named_peers.send_replace(entry.spec.providers.clone());
                table.unstored.insert(number);
                entry
            }
            None => {
                let saved = PersistedDownload {
                    spec,
                    running: true,
                    name: String::new(),
                    path: None,
                    seeding: None,
                    created_at: Some(SystemTime::now()),
                };
                table.insert(number, saved, None)
            }
        };
        entry.watchers += 1;
        let watching = DownloadWatch {
            manager: self.clone(),
            number,
            status: entry.status.subscribe(),
        };
        (watching, same.is_some())
    }

    /// A page of the downloads, newest first, and the token of the next page. An empty token stands
    /// for the first page.
    ///
    /// # Errors
    /// [`Reason::InvalidPageToken`] if the token is not from here.
    pub fn list(
        &self,
        page_size: usize,
        token: &str,
    ) -> Result<(Vec<DownloadStatus>, Option<String>), Problem> {
        let end = match token {
            "" => u64::MAX,
            token => token.parse().map_err(|_| {
                Problem::new(Reason::InvalidPageToken, "this peer did not issue the page token")
                    .field("page_token")
            })?,
        };
        let table = self.table();
        let mut older = table.downloads.range(..end).rev().peekable();
        let page: Vec<_> = older
            .by_ref()
            .take(page_size.max(1))
            .map(|(_, entry)| entry.status.borrow().clone())
            .collect();
        let next = page.last().filter(|_| older.peek().is_some());
        let next = next.map(|last| last.number.to_string());
        Ok((page, next))
    }

    /// One download.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if there is no download with this number.
    pub fn get(&self, number: u64) -> Result<DownloadStatus, Problem> {
        let table = self.table();
        let entry = table
            .downloads
            .get(&number)
            .ok_or_else(|| unknown_transfer(number))?;
        let status = entry.status.borrow().clone();
        Ok(status)
    }

    /// The newest download of a file.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if there is no download of this file.
    pub fn get_by_file(&self, id: FileId) -> Result<DownloadStatus, Problem> {
        let table = self.table();
        let newest = table.downloads.values().rev();
        let mut statuses = newest.map(|entry| entry.status.borrow());
        let found = statuses.find(|status| status.id == id);
        found.map(|status| status.clone()).ok_or_else(|| {
            Problem::new(
                Reason::NotFound,
                format!("this peer has no transfer of {id}: start one with `get`"),
            )
        })
    }

    /// Number of downloads that are not done, cancelled or failed.
    pub fn unfinished_count(&self) -> usize {
        let table = self.table();
        let ended = |entry: &&DownloadEntry| {
            matches!(
                entry.status.borrow().state,
                DownloadState::Done | DownloadState::Cancelled | DownloadState::Failed
            )
        };
        table.downloads.values().filter(|entry| !ended(entry)).count()
    }

    /// Number of downloads in each state.
    pub(crate) fn count_by_state(&self) -> [(DownloadState, u64); 8] {
        let table = self.table();
        let mut counts = DownloadState::ALL.map(|state| (state, 0));
        for entry in table.downloads.values() {
            let current = entry.status.borrow().state;
            for (state, count) in &mut counts {
                *count += u64::from(*state == current);
            }
        }
        counts
    }

    /// Number of paused downloads.
    pub fn paused(&self) -> usize {
        let table = self.table();
        let is_paused =
            |entry: &&DownloadEntry| entry.status.borrow().state == DownloadState::Paused;
        table.downloads.values().filter(is_paused).count()
    }
}

impl DownloadManager {
    /// The downloads that can serve content.
    fn active_downloads(&self) -> Vec<Arc<ActiveDownload>> {
        let table = self.table();
        let download = table
            .downloads
            .values()
            .filter_map(|entry| entry.active.borrow().clone());
        download.collect()
    }
}

impl ContentSource for DownloadManager {
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        let running = self.active_downloads();
        let content = running.iter().find_map(|download| download.content(id));
        content.or_else(|| {
            let (record, real) = self.shared.context.aliases.find(id)?;
            let content = self.shared.context.library.find(&real)?;
            Some(Arc::new(AliasContent { record, content }))
        })
    }

    fn try_find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        // Takes only short-lived locks. Skips files inside collections, because mapping their units
        // to pieces takes longer.
        let running = self.active_downloads();
        let download = running.iter().find(|download| download.record.id == *id)?;
        download.content(id)
    }
}

fn shutting_down() -> Problem {
    Problem::new(
        Reason::ShuttingDown,
        "the peer is shutting down: the downloaded data is kept",
    )
}

fn unknown_transfer(number: u64) -> Problem {
    Problem::new(
        Reason::NotFound,
        format!("there is no transfer {number}: list the transfers with `transfers`"),
    )
}
