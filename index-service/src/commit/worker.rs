//! The committer's thread: takes changes in batches, stores them, applies them and answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use potluck_core::{FileId, PeerId, index_client};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::{
    commit::{
        check::{BatchCheck, CheckedChange},
        recovery::recover,
        request::{CommitError, CommitRequest, CommitResult},
    },
    limits::LimitsInForce,
    registry::Registry,
    store::{Change, Followed, Following, IndexStore, PeerRecord, StoreError},
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

/// Time between two looks at what other processes changed in a shared store: a peer that registers at
/// one index is found at the others after it.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Time between two messages about changes that a part of a shared store refuses. While a primary is
/// down, nearly every batch has some.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(10);

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
    limits: LimitsInForce,
    /// Peers that are removed from the catalog but not yet from the store.
    to_forget: Vec<PeerId>,
    /// When to open a failed store again; `None` while the store works.
    retry: Option<StoreRetry>,
    /// When to follow a shared store next; `None` for a store of this process alone.
    follow_at: Option<Instant>,
    refusals: Refusals,
    store_works: watch::Sender<bool>,
}

/// Changes that were refused, and when that was logged last.
#[derive(Debug, Default)]
struct Refusals {
    since: usize,
    logged: Option<Instant>,
}

impl Refusals {
    /// Counts refused changes; returns those to log now, if any.
    fn add(&mut self, count: usize, now: Instant) -> Option<usize> {
        self.since += count;
        if self.logged.is_some_and(|logged| now < logged + REFUSALS_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
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
        limits: LimitsInForce,
    ) -> (Self, watch::Receiver<bool>) {
        let (store_works, receiver) = watch::channel(true);
        let mut store = store;
        let follow_at = store.shared().map(|_| Instant::now());
        if follow_at.is_some() {
            registry.note_renewals();
        }
        let worker = Self {
            store,
            follow_at,
            refusals: Refusals::default(),
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
        // The words of restored names may not be indexed.
        let mut has_leftovers = true;
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
            self.follow_if_due();
            self.commit(batch);
            // Both have to run.
            has_leftovers = self.registry.clear_hidden(MAX_CLEARED) | !self.registry.index_words();
        }
    }

    fn until_next_event(&self) -> Duration {
        let now = Instant::now();
        let retry_at = self.retry.map(|retry| retry.at);
        let next = self.registry.next_deadline().into_iter();
        let next = next.chain(retry_at).chain(self.follow_at).min();
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

    /// Takes over what other processes changed in a shared store.
    fn follow_if_due(&mut self) {
        let now = Instant::now();
        if self.follow_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(shared) = self.store.shared() else {
            return;
        };
        shared.renew_leases(self.registry.take_renewed());
        let registry = &self.registry;
        let digest_of = |peer: &PeerId| {
            let catalog = registry.catalog();
            catalog.address_of(peer).map(|_| catalog.digest_of(peer))
        };
        let followed = shared.follow(&digest_of);
        let works = followed.is_ok();
        let mut has_more = false;
        match followed {
            Ok(Following {
                changes,
                generation,
                has_more: more,
            }) => {
                has_more = more;
                changes.into_iter().for_each(|change| self.apply_followed(change));
                self.registry.set_store_generation(generation);
            }
            Err(error) if *self.store_works.borrow() => {
                tracing::error!(
                    %error,
                    "the shared store does not answer; changes are refused until it does: check the \
                     Redis Cluster"
                );
            }
            Err(error) => tracing::debug!(%error, "the shared store does not answer yet"),
        }
        if works != *self.store_works.borrow() {
            if works {
                tracing::info!("the shared store answers again");
            }
            self.store_works.send_replace(works);
        }
        let wait = if has_more { Duration::ZERO } else { FOLLOW_INTERVAL };
        self.follow_at = Some(Instant::now() + wait);
    }

    fn apply_followed(&self, change: Followed) {
        match change {
            Followed::Change(change) => _ = self.apply_to_registry(&change, None),
            Followed::Peer(peer) => {
                let now = Instant::now();
                self.registry.register(&peer.record, None, &peer.files, true, now);
            }
        }
    }

    fn commit(&mut self, batch: Vec<QueuedCommit>) {
        self.forget_expired();
        let is_shared = self.follow_at.is_some();
        let forget = |&peer: &PeerId| match is_shared {
            true => Change::Expire { peer },
            false => Change::Forget { peer },
        };
        let mut changes: Vec<Change> = self.to_forget.iter().map(forget).collect();
        let forgotten = changes.len();
        let mut callers = Vec::with_capacity(batch.len());
        let mut restarted = Vec::new();
        let limits = self.limits.get();
        let mut check = BatchCheck::new(&self.registry, &limits);
        for QueuedCommit { request, caller } in batch {
            match check.check(request) {
                Ok(CheckedChange::Store { change, instance }) => {
                    changes.push(change);
                    callers.push((caller, instance));
                }
                Ok(CheckedChange::RestartLease { peer, instance }) => {
                    restarted.push((peer.id, peer.ttl));
                    caller.answer(Ok(self.restart_lease(&peer, &instance)));
                }
                Ok(CheckedChange::Nothing) => caller.answer(Ok(0)),
                Err(error) => caller.answer(Err(error)),
            }
        }
        if let Some(shared) = self.store.shared() {
            restarted.retain(|(_, ttl)| !ttl.is_zero());
            shared.renew_leases(restarted);
        }
        if changes.is_empty() {
            return;
        }
        let stored = self.store(&changes);
        if stored == StoredChanges::All || is_shared {
            self.to_forget.clear();
        }
        for (place, change) in changes.iter().enumerate().take(forgotten) {
            // Other stores contain only peers of the catalog.
            if is_shared && stored.contains(place) {
                self.apply_to_registry(change, None);
            }
        }
        for (place, (caller, instance)) in (forgotten..).zip(callers) {
            caller.answer(match stored.contains(place) {
                true => Ok(self.apply_to_registry(&changes[place], Some(&instance))),
                false => Err(CommitError::Store),
            });
        }
    }

    /// Hides some peers whose lease has expired. The next flush removes them from the store.
    fn forget_expired(&mut self) {
        if self.store.shared().is_some() {
            return self.check_ended_leases();
        }
        for peer in self.registry.take_expired(Instant::now(), MAX_EXPIRED) {
            let files = self.registry.forget(&peer);
            tracing::debug!(%peer, files, "lease expired");
            if self.retry.is_none() {
                self.to_forget.push(peer);
            }
        }
    }

    /// Asks a shared store for leases that have ended here: another process may have renewed them.
    fn check_ended_leases(&mut self) {
        let now = Instant::now();
        let ended = self.registry.ended_leases(now, MAX_EXPIRED);
        if ended.is_empty() || !*self.store_works.borrow() {
            return;
        }
        let Some(shared) = self.store.shared() else {
            return;
        };
        // A renewal that was not written yet must not count as missing.
        shared.renew_leases(self.registry.take_renewed());
        for (peer, remaining) in shared.leases(&ended) {
            match remaining {
                Some(remaining) => self.registry.set_remaining_lease(&peer, remaining, now),
                None => {
                    tracing::debug!(%peer, "lease expired");
                    self.to_forget.push(peer);
                }
            }
        }
    }

    /// Makes changes durable.
    fn store(&mut self, changes: &[Change]) -> StoredChanges {
        if self.retry.is_some() || !*self.store_works.borrow() {
            return StoredChanges::None;
        }
        // sled panics on some failures. Its state may be broken then, until the store is opened
        // again.
        let applied = catch_unwind(AssertUnwindSafe(|| self.store.apply(changes)));
        let error = match applied {
            Ok(Ok(())) => return StoredChanges::All,
            Ok(Err(StoreError::Partly { failed, reason })) => {
                if let Some(refused) = self.refusals.add(failed.len(), Instant::now()) {
                    tracing::warn!(
                        refused,
                        reason,
                        "changes were refused since the last message: check the Redis Cluster"
                    );
                }
                return StoredChanges::Except(failed);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store panicked".to_owned(),
        };
        tracing::error!(
            %error,
            "the store failed; changes are refused until it is open again: check the disk"
        );
        self.store_works.send_replace(false);
        if self.follow_at.is_none() {
            self.retry = Some(StoreRetry::after(FIRST_RETRY_DELAY));
        }
        StoredChanges::None
    }

    fn restart_lease(&self, peer: &PeerRecord, instance: &[u8]) -> u64 {
        let now = Instant::now();
        self.registry.register(peer, Some(instance), &[], false, now)
    }

    fn apply_to_registry(&self, change: &Change, instance: Option<&[u8]>) -> u64 {
        match change {
            Change::Register {
                peer, files, replace, ..
            } => self
                .registry
                .register(peer, instance, files, *replace, Instant::now()),
            Change::Unregister { peer, files } => self.registry.unregister(peer, files),
            Change::Forget { peer } | Change::Expire { peer } => self.registry.forget(peer),
        }
    }
}

/// Which changes of a batch are durable.
#[derive(Debug, PartialEq, Eq)]
enum StoredChanges {
    All,
    None,
    /// All but these, by their places in ascending order.
    Except(Vec<usize>),
}

impl StoredChanges {
    fn contains(&self, place: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Except(failed) => failed.binary_search(&place).is_err(),
        }
    }
}

/// Takes the changes of a batch. `next` is its first change, and then the first change of the next
/// batch, if that was taken from the queue already.
fn take_batch(
    queue: &Receiver<CommitMessage>,
    next: &mut Option<QueuedCommit>,
    is_stopping: &mut bool,
) -> Vec<QueuedCommit> {
    let mut batch: Vec<QueuedCommit> = Vec::new();
    let mut peers = BatchPeers::default();
    let mut files = 0;
    while let Some(commit) = next.take() {
        if !peers.try_add(&batch, &commit.request) {
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

/// The peers in a batch.
///
/// A peer may occur several times if all of its changes add different files, with the same address
/// and the same lease. Such changes do not depend on each other: each can be checked against the
/// catalog as it was before the batch.
#[derive(Default)]
struct BatchPeers {
    peers: hashbrown::HashMap<PeerId, PeerInBatch>,
}

struct PeerInBatch {
    /// Position of its first change in the batch.
    first: usize,
    /// The files of its changes; `None` while there is one change.
    files: Option<hashbrown::HashSet<FileId>>,
}

impl BatchPeers {
    /// Adds a request that follows those in `batch`; false if it must wait for the next batch.
    fn try_add(&mut self, batch: &[QueuedCommit], request: &CommitRequest) -> bool {
        let peer = match self.peers.entry(*request.peer()) {
            hashbrown::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(PeerInBatch {
                    first: batch.len(),
                    files: None,
                });
                return true;
            }
            hashbrown::hash_map::Entry::Occupied(peer) => peer.into_mut(),
        };
        let Some(first) = batch.get(peer.first).map(|commit| &commit.request) else {
            return false;
        };
        let Some((earlier, new)) = first.added_files().zip(request.added_files()) else {
            return false;
        };
        if !first.has_same_holder(request) {
            return false;
        }
        let files = peer
            .files
            .get_or_insert_with(|| earlier.iter().map(|file| file.file.id).collect());
        if new.iter().any(|file| files.contains(&file.file.id)) {
            return false;
        }
        files.extend(new.iter().map(|file| file.file.id));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_and_rarely_logged() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.add(2, start), Some(2));
        assert_eq!(refusals.add(3, start + REFUSALS_INTERVAL / 2), None);
        assert_eq!(refusals.add(4, start + REFUSALS_INTERVAL), Some(7));
    }
}
