//! Starts the task of a download, and records how it ended.
//!
//! Invariant: the end of a task is stored before it is shown, and also if the task panicked. A
//! failed write is retried.

use std::sync::Arc;

use potluck_core::{Problem, Reason, model::FileKind, process::traces};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    cache::CacheUse,
    download::{
        manager::{
            DownloadManager,
            log::log_end,
            shutting_down,
            table::{DownloadEntry, DownloadTask, RestartPolicy},
        },
        status::{DownloadSpec, DownloadState},
        task::{
            run::{DownloadRun, RunEnd},
            run_context::{RunChannels, RunContext},
        },
    },
    fs::blocking::blocking,
};

/// The result of an attempt to start a download.
enum StartOutcome {
    /// The task started; the channel reports whether the download was stored.
    Started(oneshot::Receiver<Result<(), Problem>>),
    /// A task was already running.
    AlreadyRunning,
    /// The task is stopping; another can start once this token is cancelled.
    Stopping(CancellationToken),
    /// The download is gone or has ended.
    NotStarted,
}

impl DownloadManager {
    /// Starts the task of a download, unless one is running. Waits for a task that is stopping.
    /// When this returns, the store has the current state of the download, marked as running.
    ///
    /// # Errors
    /// If the download could not be stored. A detached download that had to start has then failed.
    pub(super) async fn start_task(
        &self,
        number: u64,
        restart: RestartPolicy,
    ) -> Result<(), Problem> {
        loop {
            match self.try_start(number, restart) {
                // The sender is dropped unused only if the process is ending.
                StartOutcome::Started(stored) => {
                    return stored.await.unwrap_or_else(|_| Err(shutting_down()));
                }
                StartOutcome::AlreadyRunning => return self.sync_store(number).await,
                StartOutcome::NotStarted => return Ok(()),
                StartOutcome::Stopping(_) if self.shared.shutdown.is_cancelled() => {
                    return Err(shutting_down());
                }
                StartOutcome::Stopping(ended) => ended.cancelled().await,
            }
        }
    }

    fn try_start(&self, number: u64, restart: RestartPolicy) -> StartOutcome {
        let mut table = self.table();
        let table = &mut *table;
        let Some(entry) = table.downloads.get_mut(&number) else {
            return StartOutcome::NotStarted;
        };
        match &entry.task {
            Some(task) if task.stop.is_cancelled() => StartOutcome::Stopping(task.ended.clone()),
            Some(_) => StartOutcome::AlreadyRunning,
            None if restart == RestartPolicy::UnlessEnded && entry.has_ended() => {
                StartOutcome::NotStarted
            }
            None => {
                if entry.persisted != Some(true) {
                    entry.persisted = Some(true);
                    table.unstored.insert(number);
                }
                StartOutcome::Started(self.start(number, entry))
            }
        }
    }

    /// Starts the task of an entry without one. The channel reports whether the download was
    /// stored.
    fn start(
        &self,
        number: u64,
        entry: &mut DownloadEntry,
    ) -> oneshot::Receiver<Result<(), Problem>> {
        let task = DownloadTask::new(&self.shared.shutdown);
        entry.task = Some(task.clone());
        entry.cache_use = self.cache_use(&entry.spec);
        let channels = RunChannels {
            limits: entry.limits.subscribe(),
            named_peers: entry.named_peers.subscribe(),
            status: entry.status.clone(),
            active: entry.active.clone(),
        };
        let run = RunContext::new(
            Arc::clone(&self.shared.context),
            entry.spec.clone(),
            channels,
            task.stop.clone(),
        );
        let (sender, stored) = oneshot::channel();
        let span = tracing::debug_span!(
            target: traces::TARGET,
            "download",
            transfer = number,
            id = %entry.spec.id,
        );
        let work = self.clone().run_task(number, run, task, sender);
        self.shared.context.tracker.spawn(work.instrument(span));
        stored
    }

    /// Runs the task of a download. `on_stored` receives whether the download was stored.
    async fn run_task(
        self,
        number: u64,
        run: RunContext,
        task: DownloadTask,
        on_stored: oneshot::Sender<Result<(), Problem>>,
    ) {
        let stored = self.sync_store(number).await;
        if let Err(problem) = &stored
            && run.spec.detach
        {
            // The caller has no promise yet, so the download fails before it starts.
            let is_cancelled = self.is_cancelled(number);
            self.finish_task(number, task, RunEnd::Failed(problem.clone()), is_cancelled)
                .await;
            let _ = on_stored.send(stored);
            return;
        }
        // The caller may have gone.
        let _ = on_stored.send(stored);
        tracing::debug!(transfer = number, file = %run.spec.id.short(), "starts");
        let started = Instant::now();
        // Runs in a separate task, so that a panic ends one download but not its bookkeeping.
        let running = DownloadRun::run(run).in_current_span();
        let ran = self.shared.context.tracker.spawn(running).await;
        let ended = match ran {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(transfer = number, %error, "the transfer's task failed");
                self.clean_up(number).await;
                RunEnd::Failed(Problem::new(
                    Reason::Internal,
                    "the transfer failed because of a defect: see the peer's log",
                ))
            }
        };
        if let Ok(status) = self.get(number) {
            log_end(&status, &ended, started.elapsed());
        }
        let is_cancelled = self.is_cancelled(number);
        self.finish_task(number, task, ended, is_cancelled).await;
    }

    /// Whether the user cancelled the download.
    fn is_cancelled(&self, number: u64) -> bool {
        let table = self.table();
        table
            .downloads
            .get(&number)
            .is_some_and(|entry| entry.is_cancelled)
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
    pub(super) async fn finish_task(
        &self,
        number: u64,
        task: DownloadTask,
        ended: RunEnd,
        mut is_cancelled: bool,
    ) {
        let pruned = loop {
            let stored = match ended {
                RunEnd::Done if self.begin_seeding(number) => self.persist(number, false).await,
                RunEnd::Done => self.forget(number).await,
                _ if is_cancelled => self.discard(number).await,
                RunEnd::Stopped if self.shared.shutdown.is_cancelled() => Ok(()),
                RunEnd::Stopped | RunEnd::Failed(_) => self.persist(number, false).await,
            };
            // The caller of a command calls `sync_store` itself and gets the error there.
            drop(stored);
            self.record_in_cache(number, &ended).await;
            match self.record_end(number, &ended, is_cancelled) {
                Some(pruned) => break pruned,
                // A cancel request arrived while the store was written.
                None => is_cancelled = true,
            }
        };
        self.release_cache(number).await;
        task.ended.cancel();
        if matches!(ended, RunEnd::Done) {
            self.spawn_seeding(number);
        }
        for number in pruned {
            // A failed write is retried later.
            let _ = self.forget(number).await;
        }
    }

    /// Keeps the entry of a download into the cache.
    pub(super) fn cache_use(&self, spec: &DownloadSpec) -> Option<CacheUse> {
        self.shared.context.cache.use_path(spec.target.as_deref()?)
    }

    /// Records in the cache that a download of it is done.
    async fn record_in_cache(&self, number: u64, ended: &RunEnd) {
        let status = self.get(number).ok().filter(|_| matches!(ended, RunEnd::Done));
        let Some(status) = status else {
            return;
        };
        let kind = status.kind.unwrap_or(FileKind::File);
        let cache = &self.shared.context.cache;
        cache.complete_path(&status.path, status.id, kind).await;
    }

    /// Lets the cache remove what an ended download has left. A paused one keeps it.
    async fn release_cache(&self, number: u64) {
        let released = {
            let mut table = self.table();
            let entry = table.downloads.get_mut(&number).filter(|entry| {
                let state = entry.status.borrow().state;
                matches!(
                    state,
                    DownloadState::Done | DownloadState::Cancelled | DownloadState::Failed
                )
            });
            entry.and_then(|entry| Some((entry.cache_use.take()?, entry.spec.target.clone()?)))
        };
        if let Some((cache_use, target)) = released {
            drop(cache_use);
            self.shared.context.cache.forget_missing_at(&target).await;
        }
    }

    /// Shows how the task of a download ended. Returns the numbers of old downloads that are no
    /// longer listed, or `None` if a cancel request arrived that `is_cancelled` does not reflect.
    fn record_end(&self, number: u64, ended: &RunEnd, is_cancelled: bool) -> Option<Vec<u64>> {
        let mut table = self.table();
        if let Some(entry) = table.downloads.get_mut(&number) {
            if entry.is_cancelled && !is_cancelled && !matches!(ended, RunEnd::Done) {
                return None;
            }
            entry.task = None;
            entry.is_cancelled = false;
            entry.status.send_modify(|status| {
                status.show_inactive(match ended {
                    RunEnd::Done => DownloadState::Done,
                    _ if is_cancelled => DownloadState::Cancelled,
                    // Keeps the state, so that watchers see a shutdown and not a pause.
                    RunEnd::Stopped if self.shared.shutdown.is_cancelled() => status.state,
                    RunEnd::Stopped => DownloadState::Paused,
                    RunEnd::Failed(_) => DownloadState::Failed,
                });
                match ended {
                    RunEnd::Done => {
                        status.is_seeding = entry.seeding.is_some();
                        status.bytes_done = status.bytes_total;
                        status.units_done = status.units_total;
                        status.missing.clear();
                    }
                    RunEnd::Failed(problem) if !is_cancelled => {
                        status.error = Some(problem.clone())
                    }
                    RunEnd::Failed(_) | RunEnd::Stopped => {}
                }
            });
        }
        Some(table.prune())
    }
}
