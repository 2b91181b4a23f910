//! The committer's thread: takes changes in batches, stores them, applies them and answers.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use potluck_core::{PeerId, index_client};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::{
    commit::{
        check::{BatchCheck, CheckedChange},
        recovery::recover,
        request::{CommitError, CommitRequest, CommitResult},
    },
    limits::Limits,
    registry::Registry,
    store::{Change, IndexStore, PeerRecord},
};

/// Maximum changes per flush: a larger batch would delay the answer to its first change.
const MAX_BATCH_CHANGES: usize = 512;

/// Registrations after which a batch is closed: the maximum of one request, so that a caller waits
/// for at most two such requests.
const MAX_BATCH_FILES: usize = index_client::MAX_BATCH;

/// Maximum expired peers collected per batch: forgetting them takes a few milliseconds.
pub(super) const MAX_EXPIRED: usize = 256;

/// Registrations of hidden peers cleared between two batches: a few milliseconds of work.
const MAX_CLEARED: usize = 1024;

/// First and longest delay before a failed store is opened again. Tests use no real disk, so they
/// need not wait.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
pub(crate) const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How long the thread sleeps if no lease expires earlier.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// A message to the thread.
#[derive(Debug)]
pub(super) enum CommitMessage {
    Commit(QueuedCommit),
    Stop,
}

/// A change that waits.
#[derive(Debug)]
pub(super) struct QueuedCommit {
    pub(super) request: CommitRequest,
    pub(super) caller: Caller,
}

/// The caller that waits for a change, with its part of the queue.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) sender: oneshot::Sender<CommitResult>,
    pub(super) permit: OwnedSemaphorePermit,
}

impl Caller {
    fn answer(self, result: CommitResult) {
        // Release the permit first: the caller may send its next change right after the answer.
        drop(self.permit);
        // Sending fails if the caller is gone.
        drop(self.sender.send(result));
    }
}

/// The state of the thread.
pub(super) struct CommitWorker {
    store: Box<dyn IndexStore>,
    registry: Arc<Registry>,
    limits: Limits,
    /// Peers that are removed from the catalog but not yet from the store.
    to_forget: Vec<PeerId>,
    /// When to open a failed store again; `None` while the store works.
    retry: Option<StoreRetry>,
    store_works: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy)]
struct StoreRetry {
    at: Instant,
    delay: Duration,
}

impl StoreRetry {
    fn after(delay: Duration) -> Self {
        Self {
            at: Instant::now() + delay,
            delay,
        }
    }
}

impl CommitWorker {
    /// The state of a thread with a working store; also whether the store works, and each change of
    /// this.
    pub(super) fn new(
        store: Box<dyn IndexStore>,
        registry: Arc<Registry>,
        limits: Limits,
    ) -> (Self, watch::Receiver<bool>) {
        let (store_works, receiver) = watch::channel(true);
        let worker = Self {
            store,
            registry,
            limits,
            to_forget: Vec::new(),
            retry: None,
            store_works,
        };
        (worker, receiver)
    }

    /// Handles changes until it receives [`CommitMessage::Stop`] or no [`CommitMessage`] can come.
    pub(super) fn run(mut self, queue: &Receiver<CommitMessage>) {
        let mut next: Option<QueuedCommit> = None;
        let mut is_stopping = false;
        let mut has_leftovers = false;
        loop {
            if next.is_none() && !is_stopping {
                let timeout = match has_leftovers {
                    true => Duration::ZERO,
                    false => self.until_next_event(),
                };
                match queue.recv_timeout(timeout) {
                    Ok(CommitMessage::Commit(commit)) => next = Some(commit),
                    Ok(CommitMessage::Stop) | Err(RecvTimeoutError::Disconnected) => {
                        is_stopping = true
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            let batch = take_batch(queue, &mut next, &mut is_stopping);
            if batch.is_empty() && is_stopping && next.is_none() {
                // Later changes fail with `Closed` when the queue is dropped.
                return;
            }
            self.reopen_store_if_due();
            self.commit(batch);
            has_leftovers = self.registry.clear_hidden(MAX_CLEARED);
        }
    }

    fn until_next_event(&self) -> Duration {
        let now = Instant::now();
        let retry_at = self.retry.map(|retry| retry.at);
        let next = self.registry.next_deadline().into_iter().chain(retry_at).min();
        next.map_or(MAX_SLEEP, |at| at.saturating_duration_since(now).min(MAX_SLEEP))
    }

    fn reopen_store_if_due(&mut self) {
        let Some(retry) = self.retry.filter(|retry| retry.at <= Instant::now()) else {
            return;
        };
        let store = &mut self.store;
        // sled may panic, as in `Self::store`.
        let recovered = catch_unwind(AssertUnwindSafe(|| recover(&mut **store, &self.registry)));
        match recovered {
            Ok(Ok(changes)) => {
                tracing::info!(changes, "the store is open again");
                // The store is now equal to the catalog.
                self.to_forget.clear();
                self.retry = None;
                self.store_works.send_replace(true);
            }
            failed => {
                let error = failed.map(|failed| failed.err().map(|error| error.to_string()));
                tracing::debug!(?error, "the store cannot be opened again yet");
                self.retry = Some(StoreRetry::after((retry.delay * 2).min(MAX_RETRY_DELAY)));
            }
        }
    }

    fn commit(&mut self, batch: Vec<QueuedCommit>) {
        self.forget_expired();
        let mut changes: Vec<Change> = self
            .to_forget
            .iter()
            .map(|&peer| Change::Forget { peer })
            .collect();
        let forgotten = changes.len();
        let mut callers = Vec::with_capacity(batch.len());
        let mut check = BatchCheck::new(&self.registry, &self.limits);
        for QueuedCommit { request, caller } in batch {
            match check.check(request) {
                Ok(CheckedChange::Store { change, instance }) => {
                    changes.push(change);
                    callers.push((caller, instance));
                }
                Ok(CheckedChange::RestartLease { peer, instance }) => {
                    caller.answer(Ok(self.restart_lease(&peer, &instance)));
                }
                Ok(CheckedChange::Nothing) => caller.answer(Ok(0)),
                Err(error) => caller.answer(Err(error)),
            }
        }
        if changes.is_empty() {
            return;
        }
        if self.store(&changes) {
            self.to_forget.clear();
            for (change, (caller, instance)) in changes.iter().skip(forgotten).zip(callers) {
                caller.answer(Ok(self.apply_to_registry(change, &instance)));
            }
        } else {
            for (caller, _) in callers {
                caller.answer(Err(CommitError::Store));
            }
        }
    }

    /// Hides some peers whose lease has expired. The next flush removes them from the store.
    fn forget_expired(&mut self) {
        for peer in self.registry.take_expired(Instant::now(), MAX_EXPIRED) {
            let files = self.registry.forget(&peer);
            tracing::debug!(%peer, files, "lease expired");
            if self.retry.is_none() {
                self.to_forget.push(peer);
            }
        }
    }

    /// Makes changes durable; false on failure.
    fn store(&mut self, changes: &[Change]) -> bool {
        if self.retry.is_some() {
            return false;
        }
        // sled panics on some failures. Its state may be broken then, until the store is opened
        // again.
        let applied = catch_unwind(AssertUnwindSafe(|| self.store.apply(changes)));
        let error = match applied {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store panicked".to_owned(),
        };
        tracing::error!(
            %error,
            "the store failed; changes are refused until it is open again: check the disk"
        );
        self.retry = Some(StoreRetry::after(FIRST_RETRY_DELAY));
        self.store_works.send_replace(false);
        false
    }

    fn restart_lease(&self, peer: &PeerRecord, instance: &[u8]) -> u64 {
        self.registry.register(peer, instance, &[], false, Instant::now())
    }

    fn apply_to_registry(&self, change: &Change, instance: &[u8]) -> u64 {
        match change {
            Change::Register {
                peer, files, replace, ..
            } => self
                .registry
                .register(peer, instance, files, *replace, Instant::now()),
            Change::Unregister { peer, files } => self.registry.unregister(peer, files),
            Change::Forget { peer } => self.registry.forget(peer),
        }
    }
}

/// Takes a batch in which each peer occurs once. `next` is its first change, and then the first
/// change of the next batch, if that was taken from the queue already.
fn take_batch(
    queue: &Receiver<CommitMessage>,
    next: &mut Option<QueuedCommit>,
    is_stopping: &mut bool,
) -> Vec<QueuedCommit> {
    let mut batch = Vec::new();
    let mut peers: HashSet<PeerId> = HashSet::new();
    let mut files = 0;
    while let Some(commit) = next.take() {
        if !peers.insert(*commit.request.peer()) {
            *next = Some(commit);
            break;
        }
        files += commit.request.registered_files();
        batch.push(commit);
        if batch.len() >= MAX_BATCH_CHANGES || files >= MAX_BATCH_FILES {
            break;
        }
        match queue.try_recv() {
            Ok(CommitMessage::Commit(commit)) => *next = Some(commit),
            Ok(CommitMessage::Stop) => *is_stopping = true,
            Err(_) => {}
        }
    }
    batch
}
