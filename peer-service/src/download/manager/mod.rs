//! All transfers of a peer: begun, joined, paused, resumed, cancelled, and taken up again after a restart.
//!
//! Invariants: at most one task works on a transfer; what is not ended is in the store before its
//! task begins; whoever asks for a change is answered once the store has it on the disk; a transfer
//! that nobody watches is paused unless it was told to go on.

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

/// See the module. Cheap to clone.
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
    /// Numbers of transfers that the store does not have as they are; or has, and should not.
    unstored: BTreeSet<u64>,
    /// Whether a task tries again to store them.
    is_retrying: bool,
}

#[derive(Debug)]
struct DownloadEntry {
    spec: DownloadSpec,
    /// What it is held to, for the task at work.
    limits: watch::Sender<TransferLimits>,
    /// Who was named to be asked, for the same.
    named_peers: watch::Sender<Vec<Address>>,
    status: watch::Sender<DownloadStatus>,
    active: watch::Sender<Option<Arc<ActiveDownload>>>,
    /// The task at work, if there is one.
    task: Option<DownloadTask>,
    /// How many callers watch it.
    watchers: usize,
    /// Whether the task at work is to remove what it had fetched.
    cancel: bool,
    /// Whether the store is to remember it, and then as one that was at work.
    persisted: Option<bool>,
}

#[derive(Debug, Clone)]
struct DownloadTask {
    stop: CancellationToken,
    /// Cancelled once it has ended.
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

/// Whether what is done or cancelled begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RestartPolicy {
    /// Somebody asks for the file.
    Always,
    /// It was to go on, and may have come to its end meanwhile.
    UnlessEnded,
}

/// What came of a try to begin a transfer.
enum Begin {
    /// Its task began, and tells whether the transfer was stored.
    Begun(oneshot::Receiver<Result<(), Problem>>),
    /// A task was at work already.
    AtWork,
    /// The task is stopping: it can begin once this is cancelled.
    Stopping(CancellationToken),
    /// There is nothing to begin.
    Nothing,
}

/// Somebody watches a transfer; dropping it tells that they do not any more.
#[derive(Debug)]
pub struct DownloadWatch {
    manager: DownloadManager,
    /// Its number.
    pub transfer: u64,
    /// How it stands.
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
    /// No transfers yet; [`DownloadManager::restore`] brings back those of earlier runs.
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

    /// Brings back what had not ended when the peer last stopped, and goes on with what was running on its own.
    ///
    /// # Errors
    /// Where the store cannot be read.
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
                // The store has it: nothing can fail.
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
    /// Begins a fetch, or joins one of the same thing to the same target, resuming it if it is paused. One that is joined takes over
    /// what is asked of it besides: peers to ask, going on unwatched, and the terms that are named.
    ///
    /// # Errors
    /// [`Reason::UnsafePath`]; where it is to go on unwatched and cannot be stored, [`Reason::DiskFull`],
    /// [`Reason::TooManyOpenFiles`] or [`Reason::StoreUnavailable`]. Whatever comes later is in the
    /// view.
    pub async fn start_download(&self, spec: DownloadSpec) -> Result<DownloadWatch, Problem> {
        if let Some(path) = &spec.target {
            target::check_target(path)?;
        }
        let detach = spec.detach;
        // Watched before it begins, or it would be paused for want of a watcher.
        let (watching, _) = self.find_or_insert(spec);
        match self.start_task(watching.transfer, RestartPolicy::Always).await {
            // Only a detached transfer is promised to outlast its caller and this process.
            Err(problem) if detach => Err(problem),
            _ => Ok(watching),
        }
    }

    /// The transfer of this, watched, and whether it was there. In one step: two who ask for the same at once have the same.
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

    /// Starts the task of a transfer, unless one is at work. One that is stopping is waited for.
    /// When this returns, the store has the transfer as it stands, as one that is at work.
    ///
    /// # Errors
    /// Where it could not be stored; a detached transfer that had to begin has failed then.
    async fn start_task(&self, number: u64, again: RestartPolicy) -> Result<(), Problem> {
        loop {
            match self.try_begin(number, again) {
                // It is always told, unless the task was lost to the end of the process.
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

    /// Starts the task of an entry that has none. What this gives tells whether it was stored.
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

    /// The task of a transfer. `begun` is told whether the transfer was stored.
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
            // It was promised to nobody: it ends before anybody hears of it.
            let cancel = self.is_to_cancel(number);
            self.finish_task(number, task, RunEnd::Failed(problem.clone()), cancel)
                .await;
            let _ = begun.send(stored);
            return;
        }
        // Whoever asked may have gone.
        let _ = begun.send(stored);
        tracing::debug!(transfer = number, file = %run.spec.id.short(), "begins");
        // A task of its own, so that a defect in it ends one transfer and not its bookkeeping.
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

    /// Whether its owner wants what a transfer has fetched removed.
    fn is_to_cancel(&self, number: u64) -> bool {
        let table = self.table();
        table.downloads.get(&number).is_some_and(|entry| entry.cancel)
    }

    /// Does what the task of a transfer could not do any more: nothing is served of it, and its part is free to go on with.
    async fn clean_up(&self, number: u64) {
        let download = self
            .table()
            .downloads
            .get(&number)
            .and_then(|entry| entry.active.send_replace(None));
        if let Some(download) = download {
            // Where this fails the peer is ending, and the lock with it.
            let _ = blocking(move || download.part_file.unlock()).await;
        }
    }

    /// What follows the end of a transfer's task. What cannot be stored now is stored later.
    async fn finish_task(&self, number: u64, task: DownloadTask, ended: RunEnd, mut cancel: bool) {
        let pruned = loop {
            let stored = match ended {
                RunEnd::Done => self.forget(number).await,
                _ if cancel => self.discard(number).await,
                RunEnd::Stopped if self.shared.shutdown.is_cancelled() => Ok(()),
                RunEnd::Stopped | RunEnd::Failed(_) => self.persist(number, false).await,
            };
            // Whoever waits for this asks again for it to be stored, and hears of a failure then.
            drop(stored);
            match self.record_end(number, &ended, cancel) {
                Some(pruned) => break pruned,
                // That came while it was being stored.
                None => cancel = true,
            }
        };
        task.ended.cancel();
        for number in pruned {
            // Tried again where it fails.
            let _ = self.forget(number).await;
        }
    }

    /// Shows how a transfer's task ended; gives the numbers of old transfers that are no longer listed. `None` where it is to be
    /// cancelled and was not.
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
                    // Who follows it is told that the peer ends, and not that somebody paused it.
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

    /// Every transfer, newest first.
    pub fn list(&self) -> Vec<DownloadStatus> {
        self.table()
            .downloads
            .values()
            .rev()
            .map(|entry| entry.status.borrow().clone())
            .collect()
    }

    /// One transfer.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub fn get(&self, number: u64) -> Result<DownloadStatus, Problem> {
        let table = self.table();
        let entry = table
            .downloads
            .get(&number)
            .ok_or_else(|| unknown_transfer(number))?;
        let status = entry.status.borrow().clone();
        Ok(status)
    }

    /// The newest transfer of a file.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub fn get_by_file(&self, id: FileId) -> Result<DownloadStatus, Problem> {
        let found = self.list().into_iter().find(|status| status.id == id);
        found.ok_or_else(|| {
            Problem::new(
                Reason::NotFound,
                format!("no transfer of {id} is known here: begin one with `get`"),
            )
        })
    }

    /// How many have not ended.
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

    /// How many are paused.
    pub fn paused(&self) -> usize {
        let table = self.table();
        let is_paused = |entry: &&DownloadEntry| entry.status.borrow().state == DownloadState::Paused;
        table.downloads.values().filter(is_paused).count()
    }
}

impl DownloadManager {
    /// Those from which something can be served.
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
        // Only locks that are held for moments. Not the files inside a collection, whose units take some counting.
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
