//! The commands on a download: pause, resume, adjust, cancel.
//!
//! Invariant: a command that succeeds is on disk when it returns.

use potluck_core::{Problem, Reason};

use crate::download::{
    manager::{
        DownloadManager,
        log::log_command,
        shutting_down,
        table::{DownloadTask, RestartPolicy},
        unknown_transfer,
    },
    status::{DownloadState, DownloadStatus, LimitsUpdate},
    task::run::RunEnd,
};

impl DownloadManager {
    /// Stops the task of a download, if there is one, and waits for its end.
    async fn stop(&self, number: u64, cancel: bool) -> Result<(), Problem> {
        let task = {
            let mut table = self.table();
            let entry = table
                .downloads
                .get_mut(&number)
                .ok_or_else(|| unknown_transfer(number))?;
            if cancel {
                entry.is_cancelled = entry.task.is_some();
                entry.stop();
            } else if !self.shared.shutdown.is_cancelled() {
                entry.pause();
            }
            entry.task.clone()
        };
        if let Some(task) = task {
            task.ended.cancelled().await;
        }
        Ok(())
    }

    /// Pauses a download. Its status shows the pause immediately; when this returns, the store has
    /// it.
    ///
    /// # Errors
    /// [`Reason::NotFound`] or [`Reason::AlreadyEnded`]. If the change cannot be stored, the reason
    /// of that error; the download then stays paused until the peer restarts.
    pub async fn pause(&self, number: u64) -> Result<DownloadStatus, Problem> {
        self.check_open(number)?;
        self.stop(number, false).await?;
        self.sync_store(number).await?;
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done => Err(already_ended(&status)),
            state if state.is_active() && self.shared.shutdown.is_cancelled() => {
                Err(shutting_down())
            }
            _ => {
                log_command(&status, "paused");
                Ok(status)
            }
        }
    }

    /// Resumes a paused or failed download and detaches it from its watchers. When this returns,
    /// the store has it as running.
    ///
    /// # Errors
    /// [`Reason::NotFound`] or [`Reason::AlreadyEnded`]. If the change cannot be stored, the reason
    /// of that error; the download has then failed.
    pub async fn resume(&self, number: u64) -> Result<DownloadStatus, Problem> {
        self.check_open(number)?;
        {
            let mut table = self.table();
            let entry = table
                .downloads
                .get_mut(&number)
                .ok_or_else(|| unknown_transfer(number))?;
            entry.spec.detach = true;
            table.unstored.insert(number);
        }
        self.start_task(number, RestartPolicy::UnlessEnded).await?;
        let status = self.get(number)?;
        log_command(&status, "resumed");
        Ok(status)
    }

    /// Changes the limits of a download permanently and with immediate effect. A download that is
    /// done or cancelled does not change. When this returns, the store has the new limits.
    ///
    /// # Errors
    /// [`Reason::NotFound`]. If the change cannot be stored, the reason of that error; the new
    /// limits then hold until the peer restarts.
    pub async fn adjust(
        &self,
        number: u64,
        update: LimitsUpdate,
    ) -> Result<DownloadStatus, Problem> {
        {
            let mut table = self.table();
            let entry = table
                .downloads
                .get_mut(&number)
                .ok_or_else(|| unknown_transfer(number))?;
            if !entry.has_ended() {
                entry.apply_limits(update);
                table.unstored.insert(number);
            }
        }
        self.sync_store(number).await?;
        self.get(number)
    }

    /// Cancels a download and deletes its data. Cancelling twice is not an error. When this
    /// returns, the store no longer has the download.
    ///
    /// # Errors
    /// [`Reason::NotFound`]; [`Reason::AlreadyEnded`] if the download is done. If the store cannot
    /// delete it, the reason of that error; the peer's next start then restores the download.
    pub async fn cancel(&self, number: u64) -> Result<DownloadStatus, Problem> {
        self.stop(number, true).await?;
        if let Some(task) = self.reserve_task(number) {
            let (manager, ended) = (self.clone(), task.ended.clone());
            // A separate task, so that it completes even if the caller goes away.
            let work =
                async move { manager.finish_task(number, task, RunEnd::Stopped, true).await };
            self.shared.context.tracker.spawn(work);
            ended.cancelled().await;
        }
        self.sync_store(number).await?;
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done => Err(already_ended(&status)),
            _ => {
                log_command(&status, "cancelled");
                Ok(status)
            }
        }
    }

    /// # Errors
    /// [`Reason::NotFound`]; [`Reason::AlreadyEnded`] if the download is done or cancelled.
    fn check_open(&self, number: u64) -> Result<(), Problem> {
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done | DownloadState::Cancelled => Err(already_ended(&status)),
            _ => Ok(()),
        }
    }

    /// Occupies the task slot of a download without a running task, so that no task starts
    /// meanwhile.
    fn reserve_task(&self, number: u64) -> Option<DownloadTask> {
        let mut table = self.table();
        let entry = table.downloads.get_mut(&number)?;
        if entry.task.is_some() || entry.has_ended() {
            return None;
        }
        let task = DownloadTask::new(&self.shared.shutdown);
        task.stop.cancel();
        entry.task = Some(task.clone());
        Some(task)
    }
}

/// The error for a command on a download that is done or cancelled.
fn already_ended(status: &DownloadStatus) -> Problem {
    let (number, path) = (status.number, status.path.display());
    let message = match status.state {
        DownloadState::Done => {
            format!("transfer {number} is done already: the content is at {path}")
        }
        _ => format!(
            "transfer {number} was cancelled already: to download the file, start another transfer"
        ),
    };
    Problem::new(Reason::AlreadyEnded, message)
}
