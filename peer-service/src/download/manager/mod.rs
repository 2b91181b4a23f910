//! All downloads of a peer: start, join, pause, resume, cancel, and restore after a restart.
//!
//! Invariants:
//!
//! - At most one task runs a download.
//! - A detached download is in the store before it runs. Any other download runs even if it cannot
//!   be stored.
//! - A command succeeds once the store has written its change to disk.
//! - A download without watchers is paused, unless it is detached.

mod commands;
mod persistence;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{FileId, Problem, Reason, model::Address};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    content::{Content, ContentSource},
    download::{
        context::DownloadContext,
        engine::active::ActiveDownload,
        status::{DownloadSpec, DownloadState, DownloadStatus, TransferLimits},
        storage::{persisted::PersistedDownload, target},
        task::{DownloadRun, RunEnd},
    },
    fs::blocking::blocking,
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

#[derive(Debug, Default)]
struct DownloadTable {
    downloads: BTreeMap<u64, DownloadEntry>,
    last_number: u64,
    /// Numbers of downloads whose stored row is out of date or must be deleted.
    unstored: BTreeSet<u64>,
    /// Whether a task is retrying to store them.
    is_retrying: bool,
}

#[derive(Debug)]
struct DownloadEntry {
    spec: DownloadSpec,
    /// The current limits; the running task receives changes.
    limits: watch::Sender<TransferLimits>,
    /// The addresses of peers that the user named; the running task receives changes.
    named_peers: watch::Sender<Vec<Address>>,
    status: watch::Sender<DownloadStatus>,
    active: watch::Sender<Option<Arc<ActiveDownload>>>,
    /// The running task, if any.
    task: Option<DownloadTask>,
    /// Number of callers that watch the download.
    watchers: usize,
    /// Whether the running task must delete the downloaded data when it stops.
    cancel: bool,
    /// How the store must have the download. `None`: not stored. `Some(true)`: stored as running.
    /// `Some(false)`: stored as not running.
    persisted: Option<bool>,
}

#[derive(Debug, Clone)]
struct DownloadTask {
    stop: CancellationToken,
    /// Cancelled once the task has ended.
    ended: CancellationToken,
}

impl DownloadTask {
    fn under(shutdown: &CancellationToken) -> Self {
        Self {
            stop: shutdown.child_token(),
            ended: CancellationToken::new(),
        }
    }
}

/// Whether a download that is done or cancelled may start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RestartPolicy {
    /// A user requested the file.
    Always,
    /// The download should continue, but it may have ended in the meantime.
    UnlessEnded,
}

/// The result of an attempt to start a download.
enum Begin {
    /// The task started; the channel reports whether the download was stored.
    Begun(oneshot::Receiver<Result<(), Problem>>),
    /// A task was already running.
    AtWork,
    /// The task is stopping; another can start once this token is cancelled.
    Stopping(CancellationToken),
    /// There is nothing to start.
    Nothing,
}

/// Keeps a download watched; dropping it removes the watcher.
#[derive(Debug)]
pub struct DownloadWatch {
    manager: DownloadManager,
    /// The number of the download.
    pub transfer: u64,
    /// The current status.
    pub status: watch::Receiver<DownloadStatus>,
}

impl Drop for DownloadWatch {
    fn drop(&mut self) {
        let mut table = self.manager.table();
        let Some(entry) = table.downloads.get_mut(&self.transfer) else {
            return;
        };
        entry.watchers -= 1;
        let unwatched = entry.watchers == 0 && !entry.spec.detach;
        if unwatched && entry.task.is_some() && !self.manager.shared.shutdown.is_cancelled() {
            tracing::info!(transfer = self.transfer, "paused: nobody watches it any more");
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
        let saved = blocking(move || store.transfers()).await?;
        let saved = saved.map_err(|error| Problem::new(Reason::StoreUnavailable, error.to_string()))?;
        for (number, bytes) in saved {
            let Some(saved) = PersistedDownload::decode(&bytes) else {
                tracing::warn!(
                    transfer = number,
                    "a remembered transfer cannot be understood and is passed over"
                );
                continue;
            };
            let going = saved.running && saved.spec.detach;
            let stored = Some(saved.running);
            self.table().insert(number, saved, stored);
            if going {
                // The store already has this download, so storing it cannot fail.
                let _ = self.start_task(number, RestartPolicy::UnlessEnded).await;
            }
        }
        Ok(())
    }
}

impl DownloadTable {
    fn insert(&mut self, number: u64, saved: PersistedDownload, stored: Option<bool>) -> &mut DownloadEntry {
        let mut status = DownloadStatus::new(number, &saved.spec);
        status.state = DownloadState::Paused;
        if !saved.name.is_empty() {
            status.name = saved.name;
        }
        if let Some(path) = saved.path {
            status.path = path;
        }
        self.last_number = self.last_number.max(number);
        let entry = DownloadEntry {
            limits: watch::Sender::new(status.limits),
            named_peers: watch::Sender::new(saved.spec.providers.clone()),
            spec: saved.spec,
            status: watch::Sender::new(status),
            active: watch::Sender::new(None),
            task: None,
            watchers: 0,
            cancel: false,
            persisted: stored,
        };
        self.downloads.entry(number).or_insert(entry)
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
        match self.start_task(watching.transfer, RestartPolicy::Always).await {
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
            !entry.has_ended() && same && entry.spec.id == spec.id && entry.spec.sha256 == spec.sha256
        });
        let same = same.map(|(&number, _)| number);
        let number = same.unwrap_or(table.last_number + 1);
        let entry = match same.and_then(|number| table.downloads.get_mut(&number)) {
            Some(entry) => {
                entry.spec.detach |= spec.detach;
                entry.spec.allow_expansion |= spec.allow_expansion;
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
                };
                table.insert(number, saved, None)
            }
        };
        entry.watchers += 1;
        let watching = DownloadWatch {
            manager: self.clone(),
            transfer: number,
            status: entry.status.subscribe(),
        };
        (watching, same.is_some())
    }

    /// Starts the task of a download, unless one is running. Waits for a task that is stopping.
    /// When this returns, the store has the current state of the download, marked as running.
    ///
    /// # Errors
    /// If the download could not be stored. A detached download that had to start has then failed.
    async fn start_task(&self, number: u64, again: RestartPolicy) -> Result<(), Problem> {
        loop {
            match self.try_begin(number, again) {
                // The sender is dropped unused only if the process is ending.
                Begin::Begun(told) => {
                    return told.await.unwrap_or_else(|_| Err(shutting_down()));
                }
                Begin::AtWork => return self.sync_store(number).await,
                Begin::Nothing => return Ok(()),
                Begin::Stopping(_) if self.shared.shutdown.is_cancelled() => {
                    return Err(shutting_down());
                }
                Begin::Stopping(ended) => ended.cancelled().await,
            }
        }
    }

    fn try_begin(&self, number: u64, again: RestartPolicy) -> Begin {
        let mut table = self.table();
        let table = &mut *table;
        let Some(entry) = table.downloads.get_mut(&number) else {
            return Begin::Nothing;
        };
        match &entry.task {
            Some(task) if task.stop.is_cancelled() => Begin::Stopping(task.ended.clone()),
            Some(_) => Begin::AtWork,
            None if again == RestartPolicy::UnlessEnded && entry.has_ended() => Begin::Nothing,
            None => {
                if entry.persisted != Some(true) {
                    entry.persisted = Some(true);
                    table.unstored.insert(number);
                }
                Begin::Begun(self.start(number, entry))
            }
        }
    }

    /// Starts the task of an entry without one. The channel reports whether the download was
    /// stored.
    fn start(&self, number: u64, entry: &mut DownloadEntry) -> oneshot::Receiver<Result<(), Problem>> {
        let task = DownloadTask::under(&self.shared.shutdown);
        entry.task = Some(task.clone());
        entry.status.send_modify(|status| {
            status.state = DownloadState::Preparing;
            status.error = None;
        });
        let run = DownloadRun {
            context: Arc::clone(&self.shared.context),
            spec: entry.spec.clone(),
            limits: entry.limits.subscribe(),
            named_peers: entry.named_peers.subscribe(),
            status: entry.status.clone(),
            stop: task.stop.clone(),
            active: entry.active.clone(),
            kind_doubted: false.into(),
        };
        let (tell, begun) = oneshot::channel();
        let work = self.clone().run_task(number, run, task, tell);
        self.shared.context.tracker.spawn(work);
        begun
    }

    /// Runs the task of a download. `begun` receives whether the download was stored.
    async fn run_task(
        self,
        number: u64,
        run: DownloadRun,
        task: DownloadTask,
        begun: oneshot::Sender<Result<(), Problem>>,
    ) {
        let stored = self.sync_store(number).await;
        if let Err(problem) = &stored
            && run.spec.detach
        {
            // The caller has no promise yet, so the download fails before it starts.
            let cancel = self.is_to_cancel(number);
            self.finish_task(number, task, RunEnd::Failed(problem.clone()), cancel)
                .await;
            let _ = begun.send(stored);
            return;
        }
        // The caller may have gone.
        let _ = begun.send(stored);
        tracing::debug!(transfer = number, file = %run.spec.id.short(), "begins");
        // Runs in a separate task, so that a panic ends one download but not its bookkeeping.
        let ran = self.shared.context.tracker.spawn(run.run()).await;
        let ended = match ran {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(transfer = number, %error, "the transfer's task failed");
                self.clean_up(number).await;
                RunEnd::Failed(Problem::new(
                    Reason::Internal,
                    "the transfer failed for a defect: see the peer's log",
                ))
            }
        };
        match &ended {
            RunEnd::Done => tracing::info!(transfer = number, "done"),
            RunEnd::Failed(problem) => tracing::warn!(transfer = number, %problem, "failed"),
            RunEnd::Stopped => tracing::debug!(transfer = number, "stopped"),
        }
        let cancel = self.is_to_cancel(number);
        self.finish_task(number, task, ended, cancel).await;
    }

    /// Whether the user cancelled the download.
    fn is_to_cancel(&self, number: u64) -> bool {
        let table = self.table();
        table.downloads.get(&number).is_some_and(|entry| entry.cancel)
    }

    /// Cleans up after a task that panicked: stops serving the download and unlocks its part file.
    async fn clean_up(&self, number: u64) {
        let download = self
            .table()
            .downloads
            .get(&number)
            .and_then(|entry| entry.active.send_replace(None));
        if let Some(download) = download {
            // If this fails, the process is ending and releases the lock.
            let _ = blocking(move || download.part_file.unlock()).await;
        }
    }

    /// Records the end of a task. A failed write to the store is retried later.
    async fn finish_task(&self, number: u64, task: DownloadTask, ended: RunEnd, mut cancel: bool) {
        let pruned = loop {
            let stored = match ended {
                RunEnd::Done => self.forget(number).await,
                _ if cancel => self.discard(number).await,
                RunEnd::Stopped if self.shared.shutdown.is_cancelled() => Ok(()),
                RunEnd::Stopped | RunEnd::Failed(_) => self.persist(number, false).await,
            };
            // The caller of a command calls `sync_store` itself and gets the error there.
            drop(stored);
            match self.record_end(number, &ended, cancel) {
                Some(pruned) => break pruned,
                // A cancel request arrived while the store was written.
                None => cancel = true,
            }
        };
        task.ended.cancel();
        for number in pruned {
            // A failed write is retried later.
            let _ = self.forget(number).await;
        }
    }

    /// Shows how the task of a download ended. Returns the numbers of old downloads that are no
    /// longer listed, or `None` if a cancel request arrived that `cancel` does not reflect.
    fn record_end(&self, number: u64, ended: &RunEnd, cancel: bool) -> Option<Vec<u64>> {
        let mut table = self.table();
        if let Some(entry) = table.downloads.get_mut(&number) {
            if entry.cancel && !cancel && !matches!(ended, RunEnd::Done) {
                return None;
            }
            entry.task = None;
            entry.cancel = false;
            entry.status.send_modify(|status| {
                status.rest(match ended {
                    RunEnd::Done => DownloadState::Done,
                    _ if cancel => DownloadState::Cancelled,
                    // Keeps the state, so that watchers see a shutdown and not a pause.
                    RunEnd::Stopped if self.shared.shutdown.is_cancelled() => status.state,
                    RunEnd::Stopped => DownloadState::Paused,
                    RunEnd::Failed(_) => DownloadState::Failed,
                });
                match ended {
                    RunEnd::Done => {
                        status.bytes_done = status.bytes_total;
                        status.units_done = status.units_total;
                        status.missing.clear();
                    }
                    RunEnd::Failed(problem) if !cancel => status.error = Some(problem.clone()),
                    RunEnd::Failed(_) | RunEnd::Stopped => {}
                }
            });
        }
        Some(table.prune())
    }

    /// All downloads, newest first.
    pub fn list(&self) -> Vec<DownloadStatus> {
        self.table()
            .downloads
            .values()
            .rev()
            .map(|entry| entry.status.borrow().clone())
            .collect()
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
        let found = self.list().into_iter().find(|status| status.id == id);
        found.ok_or_else(|| {
            Problem::new(
                Reason::NotFound,
                format!("no transfer of {id} is known here: begin one with `get`"),
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

    /// Number of paused downloads.
    pub fn paused(&self) -> usize {
        let table = self.table();
        let is_paused = |entry: &&DownloadEntry| entry.status.borrow().state == DownloadState::Paused;
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
        self.active_downloads()
            .iter()
            .find_map(|download| download.content(id))
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
        "the peer is shutting down: what was fetched is kept",
    )
}

fn unknown_transfer(number: u64) -> Problem {
    Problem::new(
        Reason::NotFound,
        format!("there is no transfer {number}: list them with `transfers`"),
    )
}
