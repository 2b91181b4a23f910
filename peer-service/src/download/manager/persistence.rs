//! Keeps the store in step with the list of downloads, and deletes what a cancelled download
//! leaves.

use std::time::Duration;

use potluck_core::{Problem, Reason, problem::RAISE_OPEN_FILES};

use crate::{
    download::{
        manager::{DownloadEntry, DownloadManager, DownloadTable},
        status::DownloadState,
        storage::{part_file, persisted::PersistedDownload, target::DownloadTarget},
    },
    fs::blocking::blocking,
    store::StoreError,
};

/// Ended downloads that stay in the list.
const MAX_ENDED: usize = 100;

/// Delay between retries of a failed write to the store.
const STORE_RETRY: Duration = Duration::from_secs(3);

impl DownloadManager {
    /// Stores a download; `running` says whether it is stored as running.
    ///
    /// # Errors
    /// As [`DownloadManager::sync_store`].
    pub(crate) async fn persist(&self, number: u64, running: bool) -> Result<(), Problem> {
        self.set_persisted(number, Some(running));
        self.sync_store(number).await
    }

    /// Deletes a download from the store.
    ///
    /// # Errors
    /// As [`DownloadManager::sync_store`].
    pub(crate) async fn forget(&self, number: u64) -> Result<(), Problem> {
        self.set_persisted(number, None);
        self.sync_store(number).await
    }

    fn set_persisted(&self, number: u64, stored: Option<bool>) {
        let mut table = self.table();
        if let Some(entry) = table.downloads.get_mut(&number) {
            entry.persisted = stored;
        }
        table.unstored.insert(number);
    }

    /// Writes a download and all other pending changes to the store. They are on disk when this
    /// returns.
    ///
    /// # Errors
    /// [`Reason::DiskFull`], [`Reason::TooManyOpenFiles`] or [`Reason::StoreUnavailable`]. A task
    /// then retries until the write succeeds or the peer shuts down.
    pub(crate) async fn sync_store(&self, number: u64) -> Result<(), Problem> {
        let transfers = self.clone();
        let stored = blocking(move || transfers.store_all()).await?;
        stored.map_err(|error| {
            tracing::warn!(
                transfer = number, %error,
                "could not be stored, and is tried again: until then a restart brings back what was before"
            );
            self.retry_storing();
            not_stored(number, &error)
        })
    }

    /// Writes all pending changes. Calls run one after another, and each reads the state under the
    /// lock, so the last write has the newest state. Blocks.
    fn store_all(&self) -> Result<(), StoreError> {
        let _storing = self.shared.persisting.lock();
        let changes: Vec<_> = {
            let mut table = self.table();
            let unstored = std::mem::take(&mut table.unstored);
            let row = |number| (number, table.to_save(number).map(|saved| saved.encode()));
            unstored.into_iter().map(row).collect()
        };
        if changes.is_empty() {
            // Another call has already written this change.
            return Ok(());
        }
        let stored = self.shared.context.store.write_transfers(&changes);
        if stored.is_err() {
            let numbers = changes.iter().map(|(number, _)| *number);
            self.table().unstored.extend(numbers);
        }
        stored
    }

    /// Retries until all pending changes are stored.
    fn retry_storing(&self) {
        if std::mem::replace(&mut self.table().is_retrying, true) {
            return;
        }
        let transfers = self.clone();
        self.shared.context.tracker.spawn(async move {
            loop {
                tokio::select! {
                    // Both arms only wait.
                    () = transfers.shared.shutdown.cancelled() => return,
                    () = tokio::time::sleep(STORE_RETRY) => {}
                }
                let again = transfers.clone();
                let _ = blocking(move || again.store_all()).await;
                let mut table = transfers.table();
                if table.unstored.is_empty() {
                    tracing::info!("what could not be stored of the transfers is stored now");
                    table.is_retrying = false;
                    return;
                }
            }
        });
    }

    /// Deletes the part file of a cancelled download and removes the download from the store.
    ///
    /// # Errors
    /// As [`DownloadManager::sync_store`].
    pub(crate) async fn discard(&self, number: u64) -> Result<(), Problem> {
        let target = self.table().downloads.get(&number).map(|entry| {
            let path = entry.status.borrow().path.clone();
            (entry.spec.id, DownloadTarget { path })
        });
        if let Some((id, target)) = target.filter(|(_, target)| target.path.is_absolute()) {
            let path = target.part();
            if let Ok(Err(error)) = blocking(move || part_file::remove(id, &target)).await {
                tracing::warn!(part = %path.display(), %error, "could not be removed");
            }
        }
        self.forget(number).await
    }
}

impl DownloadTable {
    /// The row to store for a download; `None` deletes it.
    fn to_save(&self, number: u64) -> Option<PersistedDownload> {
        let entry = self.downloads.get(&number)?;
        let status = entry.status.borrow();
        Some(PersistedDownload {
            spec: entry.spec.clone(),
            running: entry.persisted?,
            name: status.name.clone(),
            path: Some(status.path.clone()).filter(|path| !path.as_os_str().is_empty()),
        })
    }

    /// Removes the oldest ended downloads in excess of [`MAX_ENDED`] and returns their numbers.
    pub(crate) fn prune(&mut self) -> Vec<u64> {
        let ended = |entry: &DownloadEntry| {
            let state = entry.status.borrow().state;
            entry.watchers == 0
                && matches!(
                    state,
                    DownloadState::Done | DownloadState::Cancelled | DownloadState::Failed
                )
        };
        let ended: Vec<u64> = self
            .downloads
            .iter()
            .filter(|(_, entry)| ended(entry))
            .map(|(&number, _)| number)
            .collect();
        let surplus = ended.len().saturating_sub(MAX_ENDED);
        let pruned = ended[..surplus].to_vec();
        for number in &pruned {
            self.downloads.remove(number);
        }
        pruned
    }
}

/// The error for a download whose current state could not be stored.
fn not_stored(number: u64, error: &StoreError) -> Problem {
    let lost = "a restart of the peer would bring back what was before";
    match error.exhaustion() {
        Some(Reason::DiskFull) => Problem::new(
            Reason::DiskFull,
            format!(
                "the disk of the peer's home has no room to store transfer {number} as it is now: \
                 {lost}; make room and ask again"
            ),
        ),
        Some(reason) => Problem::new(
            reason,
            format!("transfer {number} could not be stored as it is now: {RAISE_OPEN_FILES}"),
        ),
        None => Problem::new(
            Reason::StoreUnavailable,
            format!(
                "transfer {number} could not be stored as it is now: {lost}; see the peer's log \
                 and ask again"
            ),
        ),
    }
}
