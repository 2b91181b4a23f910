//! What a transfer's owner may do with it: pause, resume, adjust, cancel.

use potluck_core::{Problem, Reason};

use crate::download::{
    manager::{DownloadEntry, DownloadManager, DownloadTask, RestartPolicy, shutting_down, unknown_transfer},
    status::{DownloadState, DownloadStatus, LimitsUpdate},
    task::RunEnd,
};

impl DownloadManager {
    /// Stops the task of a transfer, if there is one, and waits until it has.
    async fn stop(&self, number: u64, cancel: bool) -> Result<(), Problem> {
        let task = {
            let mut table = self.table();
            let entry = table
                .downloads
                .get_mut(&number)
                .ok_or_else(|| unknown_transfer(number))?;
            if cancel {
                entry.cancel = entry.task.is_some();
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

    /// Pauses a transfer. Every view shows it as paused at once; when this returns, it is stored.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::AlreadyEnded`]; what keeps it from being stored: it is
    /// paused then, until the peer ends.
    pub async fn pause(&self, number: u64) -> Result<DownloadStatus, Problem> {
        self.check_open(number)?;
        self.stop(number, false).await?;
        self.sync_store(number).await?;
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done => Err(already_ended(&status)),
            state if state.is_active() && self.shared.shutdown.is_cancelled() => Err(shutting_down()),
            _ => Ok(status),
        }
    }

    /// Lets a paused or failed transfer go on, whether or not somebody watches it. When this
    /// returns, it is stored as one that goes on.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::AlreadyEnded`]; what keeps it from being stored: it has
    /// failed then.
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
        self.get(number)
    }

    /// Changes what a transfer is held to, at once and for good; what is done or cancelled stays as
    /// it is. When this returns, it is stored.
    ///
    /// # Errors
    /// [`Reason::NotFound`]; what keeps it from being stored: it holds then until the peer ends.
    pub async fn adjust(&self, number: u64, update: LimitsUpdate) -> Result<DownloadStatus, Problem> {
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

    /// Ends a transfer and removes what it had fetched; one that was cancelled before stays so.
    /// When this returns, the store has forgotten it.
    ///
    /// # Errors
    /// [`Reason::NotFound`]; [`Reason::AlreadyEnded`] where it is done; what keeps the store from
    /// forgetting it: it begins again with the peer's next start.
    pub async fn cancel(&self, number: u64) -> Result<DownloadStatus, Problem> {
        self.stop(number, true).await?;
        if let Some(task) = self.reserve_task(number) {
            let (transfers, ended) = (self.clone(), task.ended.clone());
            // To its end, even if nobody waits for it any more.
            let work = async move { transfers.finish_task(number, task, RunEnd::Stopped, true).await };
            self.shared.context.tracker.spawn(work);
            ended.cancelled().await;
        }
        self.sync_store(number).await?;
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done => Err(already_ended(&status)),
            _ => Ok(status),
        }
    }

    /// # Errors
    /// [`Reason::NotFound`]; [`Reason::AlreadyEnded`] for what is done or cancelled.
    fn check_open(&self, number: u64) -> Result<(), Problem> {
        let status = self.get(number)?;
        match status.state {
            DownloadState::Done | DownloadState::Cancelled => Err(already_ended(&status)),
            _ => Ok(()),
        }
    }

    /// Takes the place of the task of a transfer that rests, so that none begins meanwhile.
    fn reserve_task(&self, number: u64) -> Option<DownloadTask> {
        let mut table = self.table();
        let entry = table.downloads.get_mut(&number)?;
        if entry.task.is_some() || entry.has_ended() {
            return None;
        }
        let task = DownloadTask::under(&self.shared.shutdown);
        task.stop.cancel();
        entry.task = Some(task.clone());
        Some(task)
    }
}

impl DownloadEntry {
    /// Whether it is done or cancelled.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(
            self.status.borrow().state,
            DownloadState::Done | DownloadState::Cancelled
        )
    }

    /// Has the task at work stop, if there is one, and shows no activity any more.
    fn stop(&self) {
        if let Some(task) = &self.task {
            task.stop.cancel();
            self.status.send_modify(|status| status.rest(status.state));
        }
    }

    /// The same, and shows the transfer as paused at once: unless it gets its name at the moment,
    /// as it is done then.
    pub(crate) fn pause(&self) {
        self.stop();
        self.status.send_if_modified(|status| {
            let pauses = self.task.is_some() && status.state.is_active();
            if pauses && status.state != DownloadState::Finishing {
                status.rest(DownloadState::Paused);
            }
            pauses
        });
    }

    /// Changes what the transfer is held to; the task at work hears of it.
    pub(crate) fn apply_limits(&mut self, update: LimitsUpdate) {
        let update = update.applied_to(*self.limits.borrow());
        self.spec.limits = update.into();
        self.status.send_modify(|status| status.limits = update);
        self.limits.send_replace(update);
    }
}

/// The problem with asking something of a transfer that has ended for good.
fn already_ended(status: &DownloadStatus) -> Problem {
    let (number, path) = (status.transfer, status.path.display());
    let message = match status.state {
        DownloadState::Done => format!("transfer {number} is done already: what it fetched is at {path}"),
        _ => format!("transfer {number} was cancelled already: get the file again to have it"),
    };
    Problem::new(Reason::AlreadyEnded, message)
}
