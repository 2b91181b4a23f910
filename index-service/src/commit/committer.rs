//! The committer's handle, and its bounded queue.

use std::{
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use tokio::sync::{Semaphore, oneshot, watch};

use crate::{
    commit::{
        request::{COMMIT_TIMEOUT, CommitError, CommitRequest, CommitResult},
        worker::{Caller, CommitMessage, CommitWorker, QueuedCommit},
    },
    limits::{Limits, LimitsInForce},
    registry::Registry,
    store::IndexStore,
};

/// Maximum changes that wait: as many as a slow disk flushes in a second, one per flush.
const MAX_QUEUED: usize = 4096;

/// Maximum encoded bytes of the changes that wait.
pub(super) const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// A handle to the committer's thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    queue: SyncSender<CommitMessage>,
    /// One permit per byte that may still be queued.
    pub(super) queue_bytes: Arc<Semaphore>,
    store_works: watch::Receiver<bool>,
    limits: LimitsInForce,
}

impl Committer {
    /// Starts the thread. [`Self::stop`] ends it, and the thread then drops the store.
    ///
    /// # Errors
    /// An I/O error if the system cannot start a thread.
    pub(crate) fn start(
        store: Box<dyn IndexStore>,
        registry: Arc<Registry>,
        limits: Limits,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, requests) = sync_channel(MAX_QUEUED);
        let limits = LimitsInForce::from(limits);
        let (worker, store_works) = CommitWorker::new(store, registry, limits.clone());
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || worker.run(&requests))?;
        Ok((
            Self {
                queue,
                queue_bytes: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)),
                store_works,
                limits,
            },
            thread,
        ))
    }

    /// Size of the changes that wait to be stored, in bytes.
    pub(crate) fn queued_bytes(&self) -> usize {
        MAX_QUEUED_BYTES.saturating_sub(self.queue_bytes.available_permits())
    }

    /// Changes the limits for later changes.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// Makes a change, and returns once it is durable and visible to queries. `bytes` is its
    /// encoded size.
    ///
    /// A queued change is made even if the caller goes away.
    ///
    /// # Errors
    /// [`CommitError`]. The change was not made, except that after [`CommitError::Store`] and
    /// [`CommitError::Slow`] it may have been.
    pub(crate) async fn commit(&self, request: CommitRequest, bytes: usize) -> CommitResult {
        let bytes = u32::try_from(bytes.min(MAX_QUEUED_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.queue_bytes)
            .try_acquire_many_owned(bytes)
            .map_err(|_| CommitError::Busy)?;
        let (sender, result) = oneshot::channel();
        let caller = Caller { sender, permit };
        self.queue
            .try_send(CommitMessage::Commit(QueuedCommit { request, caller }))
            .map_err(|error| match error {
                TrySendError::Full(_) => CommitError::Busy,
                TrySendError::Disconnected(_) => CommitError::Closed,
            })?;
        let result = tokio::time::timeout(COMMIT_TIMEOUT, result)
            .await
            .map_err(|_| CommitError::Slow)?;
        result.unwrap_or(Err(CommitError::Closed))
    }

    /// Whether the store works; the receiver sees each change of this state.
    pub(crate) fn store_works(&self) -> watch::Receiver<bool> {
        self.store_works.clone()
    }

    /// Asks the thread to finish the queued changes and end. Blocks while the queue is full.
    pub(crate) fn stop(&self) {
        // An error means that the thread has ended already.
        let _ = self.queue.send(CommitMessage::Stop);
    }
}
