//! The list of downloads, and the state of each.
//!
//! Invariant: at most one task runs a download.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use potluck_core::model::Address;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::CacheUse;
use crate::download::{
    engine::active::ActiveDownload,
    seeding::Seeding,
    status::{DownloadLimits, DownloadSpec, DownloadState, DownloadStatus, LimitsUpdate},
    storage::persisted::PersistedDownload,
};

/// Maximum ended downloads that stay in the list.
const MAX_ENDED: usize = 100;

/// All downloads of a peer, and those that must be stored again.
#[derive(Debug, Default)]
pub(super) struct DownloadTable {
    pub(super) downloads: BTreeMap<u64, DownloadEntry>,
    pub(super) last_number: u64,
    /// Numbers of downloads whose stored row is out of date or must be deleted.
    pub(super) unstored: BTreeSet<u64>,
    /// Whether a task is retrying to store them.
    pub(super) is_retrying: bool,
}

/// A download, and the channels to its task.
#[derive(Debug)]
pub(super) struct DownloadEntry {
    pub(super) spec: DownloadSpec,
    /// The current limits; the running task receives changes.
    pub(super) limits: watch::Sender<DownloadLimits>,
    /// The addresses of peers that the user named; the running task receives changes.
    pub(super) named_peers: watch::Sender<Vec<Address>>,
    pub(super) status: watch::Sender<DownloadStatus>,
    pub(super) active: watch::Sender<Option<Arc<ActiveDownload>>>,
    /// The running task, if any.
    pub(super) task: Option<DownloadTask>,
    /// Number of callers that watch the download.
    pub(super) watchers: usize,
    /// Whether the user cancelled the download: the running task must delete the downloaded data
    /// when it stops.
    pub(super) is_cancelled: bool,
    /// Keeps its entry in the cache, if it has one, until the download ends.
    pub(super) cache_use: Option<CacheUse>,
    /// For a finished download that is served until a limit is reached: how far it is.
    pub(super) seeding: Option<Seeding>,
    /// How the store must have the download. `None`: not stored. `Some(true)`: stored as running.
    /// `Some(false)`: stored as not running.
    pub(super) persisted: Option<bool>,
}

/// The running task of a download.
#[derive(Debug, Clone)]
pub(super) struct DownloadTask {
    /// Stops the task.
    pub(super) stop: CancellationToken,
    /// Cancelled once the task has ended.
    pub(super) ended: CancellationToken,
}

impl DownloadTask {
    /// A task that also stops with the peer.
    pub(super) fn new(shutdown: &CancellationToken) -> Self {
        Self {
            stop: shutdown.child_token(),
            ended: CancellationToken::new(),
        }
    }
}

/// Whether a download that is done or cancelled may start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartPolicy {
    /// A user requested the file.
    Always,
    /// The download should continue, but it may have ended in the meantime.
    UnlessEnded,
}

impl DownloadTable {
    /// Adds a paused download. `persisted`: its state in the store.
    pub(super) fn insert(
        &mut self,
        number: u64,
        saved: PersistedDownload,
        persisted: Option<bool>,
    ) -> &mut DownloadEntry {
        let mut status = DownloadStatus::new(number, &saved.spec);
        status.state = DownloadState::Paused;
        if !saved.name.is_empty() {
            status.name = saved.name;
        }
        if let Some(path) = saved.path {
            status.path = path;
        }
        status.created_at = saved.created_at;
        self.last_number = self.last_number.max(number);
        let entry = DownloadEntry {
            limits: watch::Sender::new(status.limits),
            named_peers: watch::Sender::new(saved.spec.providers.clone()),
            spec: saved.spec,
            status: watch::Sender::new(status),
            active: watch::Sender::new(None),
            task: None,
            watchers: 0,
            is_cancelled: false,
            cache_use: None,
            seeding: None,
            persisted,
        };
        self.downloads.entry(number).or_insert(entry)
    }

    /// The row to store for a download; `None` deletes it.
    pub(super) fn row_of(&self, number: u64) -> Option<PersistedDownload> {
        let entry = self.downloads.get(&number)?;
        let status = entry.status.borrow();
        Some(PersistedDownload {
            spec: entry.spec.clone(),
            running: entry.persisted?,
            seeding: entry.seeding,
            name: status.name.clone(),
            path: Some(status.path.clone()).filter(|path| !path.as_os_str().is_empty()),
            created_at: status.created_at,
        })
    }

    /// Removes the oldest ended downloads in excess of [`MAX_ENDED`] and returns their numbers.
    pub(super) fn prune(&mut self) -> Vec<u64> {
        let ended = |entry: &DownloadEntry| {
            let state = entry.status.borrow().state;
            entry.watchers == 0
                && entry.seeding.is_none()
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

impl DownloadEntry {
    /// Whether the download is done or cancelled.
    pub(super) fn has_ended(&self) -> bool {
        matches!(
            self.status.borrow().state,
            DownloadState::Done | DownloadState::Cancelled
        )
    }

    /// Stops the running task, if any, and clears the activity in the status.
    pub(super) fn stop(&self) {
        if let Some(task) = &self.task {
            task.stop.cancel();
            self.status
                .send_modify(|status| status.show_inactive(status.state));
        }
    }

    /// Stops the task and shows the download as paused. A download that is being finalized keeps
    /// its state, because it may still complete.
    pub(super) fn pause(&self) {
        self.stop();
        self.status.send_if_modified(|status| {
            let is_pausing = self.task.is_some() && status.state.is_active();
            if is_pausing && status.state != DownloadState::Finishing {
                status.show_inactive(DownloadState::Paused);
            }
            is_pausing
        });
    }

    /// Changes the limits and notifies the running task.
    pub(super) fn apply_limits(&mut self, update: LimitsUpdate) {
        let update = update.applied_to(*self.limits.borrow());
        self.spec.limits = update.into();
        self.status.send_modify(|status| status.limits = update);
        self.limits.send_replace(update);
    }
}
