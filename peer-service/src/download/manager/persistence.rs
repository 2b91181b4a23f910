//! Keeps the store in step with the list of downloads, and deletes the data of a cancelled
//! download.

use std::time::Duration;

use potluck_core::{Problem, Reason, problem::RAISE_OPEN_FILES};

use crate::{
    download::{
        manager::DownloadManager,
        storage::{part_file, target::DownloadTarget},
    },
    fs::blocking::blocking,
    store::StoreError,
};

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

    fn set_persisted(&self, number: u64, persisted: Option<bool>) {
        let mut table = self.table();
        if let Some(entry) = table.downloads.get_mut(&number) {
            entry.persisted = persisted;
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
        let manager = self.clone();
        let stored = blocking(move || manager.store_all()).await?;
        stored.map_err(|error| {
            tracing::warn!(
                transfer = number, %error,
                "could not store the transfer; tries again: until then, a restart restores its \
                 earlier state"
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
            let row = |number| (number, table.row_of(number).map(|row| row.encode()));
            unstored.into_iter().map(row).collect()
        };
        if changes.is_empty() {
            // Another call has already written this change.
            return Ok(());
        }
        let stored = self.shared.context.store.write_downloads(&changes);
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
        let manager = self.clone();
        self.shared.context.tracker.spawn(async move {
            loop {
                tokio::select! {
                    // Both arms only wait.
                    () = manager.shared.shutdown.cancelled() => return,
                    () = tokio::time::sleep(STORE_RETRY) => {}
                }
                let retry = manager.clone();
                let _ = blocking(move || retry.store_all()).await;
                let mut table = manager.table();
                if table.unstored.is_empty() {
                    tracing::info!("stored all transfers again");
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
                tracing::warn!(part = %path.display(), %error, "could not remove the part file");
            }
        }
        self.forget(number).await
    }
}

/// The error for a download whose current state could not be stored.
fn not_stored(number: u64, error: &StoreError) -> Problem {
    let failed = format!("the current state of transfer {number} could not be stored");
    let effect = "a restart of the peer would restore its earlier state";
    match error.exhaustion() {
        Some(Reason::DiskFull) => Problem::new(
            Reason::DiskFull,
            format!(
                "{failed}, because the disk of the peer's home is full: {effect}; make room and \
                 try again"
            ),
        ),
        Some(reason) => Problem::new(reason, format!("{failed}: {RAISE_OPEN_FILES}")),
        None => Problem::new(
            Reason::StoreUnavailable,
            format!("{failed}: {effect}; see the peer's log and try again"),
        ),
    }
}
