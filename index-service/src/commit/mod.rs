//! The committer: one thread makes all changes, so that many changes share one flush.
//!
//! For each batch, the thread
//!
//! 1. takes the waiting changes and checks their quotas,
//! 2. makes all of them durable in the store with one flush,
//! 3. applies them to the registry, so that queries see them,
//! 4. answers the callers.
//!
//! Each change is made whole or not at all. Only this thread changes the catalog, so a quota check
//! stays valid during the flush without a lock.
//!
//! The thread also collects expired leases, some with each batch. Queries stop seeing an expired
//! peer immediately, and the batch's flush removes it from the store. Expiry and registrations
//! share one order, so a peer that registers again at that moment stays. Between batches the thread
//! clears what hidden peers leave in the catalog.
//!
//! After a failure the store stays closed until it can be opened again; the thread retries on its
//! own (`recovery`). Until then it refuses changes. Leases still work, because a renewal touches
//! no disk.
//!
//! The queue is bounded in changes and in bytes. Callers beyond either bound must retry later.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::{
    catalog::{Catalog, cost},
    leases::Holder,
    quota::{Limits, MEMORY_SHARE, host_key, is_shared_host},
    registry::Registry,
    store::{Change, IndexStore, PeerRecord},
};

mod recovery;
#[cfg(test)]
mod tests;

/// Maximum changes that wait: as many as a slow disk flushes in a second, one per flush.
const QUEUE: usize = 4096;

/// Maximum encoded bytes of the changes that wait.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Maximum changes per flush: a larger batch would delay the answer to its first change.
const BATCH: usize = 512;

/// Registrations after which a batch is closed: the maximum of one request, so that a caller waits
/// for at most two such requests.
const BATCH_FILES: usize = 10_000;

/// Maximum expired peers collected per batch: forgetting them takes some milliseconds.
const MAX_EXPIRED: usize = 256;

/// Registrations of hidden peers cleared between two batches: some milliseconds.
const CLEAR: usize = 1024;

/// First and longest wait before a failed store is opened again. Tests use no real disk, so they
/// need not wait.
const FIRST_RETRY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
pub(crate) const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How long a caller waits for the disk: less than the 10 seconds of a client's call timeout, so
/// that the client receives the reason.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the thread sleeps if no lease expires earlier.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// A request to change the index.
#[derive(Debug)]
pub enum CommitRequest {
    /// See [`Change::Register`].
    Register {
        /// The peer with its address and lease.
        peer: PeerRecord,
        /// Its registrations.
        files: Vec<Registration>,
        /// Whether earlier registrations are dropped.
        replace: bool,
        /// Upper bound of the memory that the files add, in bytes.
        cost: u64,
        /// Identifies this run of the peer; empty if the peer sent none.
        instance: Vec<u8>,
    },
    /// See [`Change::Unregister`].
    Unregister {
        /// The peer.
        peer: PeerId,
        /// The files.
        files: Vec<FileId>,
    },
    /// See [`Change::Forget`].
    Forget {
        /// The peer.
        peer: PeerId,
    },
}

impl CommitRequest {
    const fn peer(&self) -> &PeerId {
        match self {
            Self::Register { peer, .. } => &peer.id,
            Self::Unregister { peer, .. } | Self::Forget { peer } => peer,
        }
    }
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The peer would have too many files.
    #[error("a peer may register {limit} files here, and this would make {requested}: unregister some first")]
    TooManyFiles {
        /// The maximum.
        limit: u64,
        /// How many files the peer would have.
        requested: u64,
    },
    /// Too many peers have this address.
    #[error("{limit} peers with the address {host} are registered already: wait until some have left")]
    TooManyPeers {
        /// The address.
        host: String,
        /// The maximum.
        limit: u64,
    },
    /// No memory is left for registrations.
    #[error("the index is full: try again later, or let it be started with a larger --max-memory-mib")]
    Full,
    /// The peer, or all peers of its host together, would exceed their part of the memory.
    #[error(
        "{who} has its share of the index's memory, {mib} MiB, and others need the rest: \
         unregister something, or let the index be started with a larger --max-memory-mib"
    )]
    Share {
        /// The peer or the host.
        who: String,
        /// The memory that it uses, in MiB.
        mib: u64,
    },
    /// Another live process uses the peer's token and holds its lease.
    #[error(
        "another peer at {}:{} uses the same token: stop one of the two, and remove `state/token` from the home that is a copy",
        .address.host, .address.port
    )]
    IdentityInUse {
        /// The address of that process.
        address: Address,
    },
    /// The queue is full.
    #[error("the index has too much to write: try again in a moment")]
    Busy,
    /// The change is not durable within the timeout.
    #[error("the index was not done writing within {COMMIT_TIMEOUT:?}: try again in a moment")]
    Slow,
    /// The store failed.
    #[error("the index cannot store anything now: try again later, and have its log looked at")]
    Store,
    /// The index is shutting down.
    #[error("the index is shutting down")]
    Closed,
}

/// The result of a change: for a registration the peer's number of files, otherwise the number of
/// removed registrations.
pub type CommitResult = Result<u64, CommitError>;

#[derive(Debug)]
enum CommitMessage {
    Change {
        request: CommitRequest,
        answer: oneshot::Sender<CommitResult>,
        _permit: OwnedSemaphorePermit,
    },
    Stop,
}

/// A handle to the committer's thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    queue: SyncSender<CommitMessage>,
    bytes: Arc<Semaphore>,
    working: watch::Receiver<bool>,
}

impl Committer {
    /// Starts the thread. [`Self::stop`] ends it, and the thread then drops the store.
    ///
    /// # Errors
    /// An I/O error if the system cannot start a thread.
    pub fn start(
        store: Box<dyn IndexStore>,
        registry: Arc<Registry>,
        limits: Limits,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, requests) = sync_channel(QUEUE);
        let working = watch::Sender::new(true);
        let is_working = working.subscribe();
        let worker = CommitWorker {
            store,
            registry,
            limits,
            to_forget: Vec::new(),
            failing: None,
            working,
        };
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || worker.run(&requests))?;
        Ok((
            Self {
                queue,
                bytes: Arc::new(Semaphore::new(QUEUE_BYTES)),
                working: is_working,
            },
            thread,
        ))
    }

    /// Makes a change, and returns once it is durable and visible to queries. `bytes` is its
    /// encoded size.
    ///
    /// A queued change is made even if the caller goes away.
    ///
    /// # Errors
    /// [`CommitError`]. The change was not made, except that after [`CommitError::Store`] and
    /// [`CommitError::Slow`] it may have been.
    pub async fn commit(&self, request: CommitRequest, bytes: usize) -> CommitResult {
        let bytes = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let current = Arc::clone(&self.bytes)
            .try_acquire_many_owned(bytes)
            .map_err(|_| CommitError::Busy)?;
        let (answer, outcome) = oneshot::channel();
        self.queue
            .try_send(CommitMessage::Change {
                request,
                answer,
                _permit: current,
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => CommitError::Busy,
                TrySendError::Disconnected(_) => CommitError::Closed,
            })?;
        let outcome = tokio::time::timeout(COMMIT_TIMEOUT, outcome)
            .await
            .map_err(|_| CommitError::Slow)?;
        outcome.unwrap_or(Err(CommitError::Closed))
    }

    /// Whether the store works; the receiver sees each change of this state.
    pub fn working(&self) -> watch::Receiver<bool> {
        self.working.clone()
    }

    /// Asks the thread to finish the queued changes and end. Blocks while the queue is full.
    pub fn stop(&self) {
        // An error means that the thread has ended already.
        let _ = self.queue.send(CommitMessage::Stop);
    }
}

struct CommitWorker {
    store: Box<dyn IndexStore>,
    registry: Arc<Registry>,
    limits: Limits,
    /// Peers that are removed from the catalog but not yet from the store.
    to_forget: Vec<PeerId>,
    failing: Option<Failing>,
    working: watch::Sender<bool>,
}

/// When to retry opening a failed store.
#[derive(Debug, Clone, Copy)]
struct Failing {
    retry_at: Instant,
    wait: Duration,
}

type QueuedCommit = (CommitRequest, oneshot::Sender<CommitResult>, OwnedSemaphorePermit);

/// Additions of the current batch that the catalog does not show yet.
#[derive(Default)]
struct PendingBatch {
    peers_at: HashMap<String, u64>,
    bytes: u64,
    bytes_at: HashMap<String, u64>,
}

impl CommitWorker {
    fn run(mut self, queue: &Receiver<CommitMessage>) {
        let mut next: Option<QueuedCommit> = None;
        let mut stopping = false;
        let mut leftovers = false;
        loop {
            let mut batch: Vec<QueuedCommit> = Vec::new();
            let mut peers: HashSet<PeerId> = HashSet::new();
            let mut files = 0;
            if next.is_none() && !stopping {
                let wait = if leftovers {
                    Duration::ZERO
                } else {
                    self.until_next_event()
                };
                match queue.recv_timeout(wait) {
                    Ok(CommitMessage::Change {
                        request,
                        answer,
                        _permit: _held,
                    }) => next = Some((request, answer, _held)),
                    Ok(CommitMessage::Stop) | Err(RecvTimeoutError::Disconnected) => stopping = true,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            loop {
                let Some(waiting) = next.take() else { break };
                // Each peer occurs once per batch, so the catalog is enough to check quotas.
                if !peers.insert(*waiting.0.peer()) {
                    next = Some(waiting);
                    break;
                }
                if let CommitRequest::Register { files: more, .. } = &waiting.0 {
                    files += more.len();
                }
                batch.push(waiting);
                if batch.len() >= BATCH || files >= BATCH_FILES {
                    break;
                }
                match queue.try_recv() {
                    Ok(CommitMessage::Change {
                        request,
                        answer,
                        _permit: _held,
                    }) => next = Some((request, answer, _held)),
                    Ok(CommitMessage::Stop) => stopping = true,
                    Err(_) => {}
                }
            }
            if batch.is_empty() && stopping && next.is_none() {
                // Later changes fail with `Closed` when the queue is dropped.
                return;
            }
            self.retry();
            self.process(batch);
            leftovers = self.registry.clear(CLEAR);
        }
    }

    fn until_next_event(&self) -> Duration {
        let now = Instant::now();
        let retry = self.failing.map(|failing| failing.retry_at);
        let next = self.registry.next_deadline().into_iter().chain(retry).min();
        next.map_or(MAX_SLEEP, |at| at.saturating_duration_since(now).min(MAX_SLEEP))
    }

    /// Reopens a failed store if its retry is due.
    fn retry(&mut self) {
        let Some(Failing { retry_at, wait }) = self.failing else {
            return;
        };
        if Instant::now() < retry_at {
            return;
        }
        let store = &mut self.store;
        // sled may panic, as in `Self::store`.
        let recovered = catch_unwind(AssertUnwindSafe(|| {
            recovery::recover(&mut **store, &self.registry)
        }));
        match recovered {
            Ok(Ok(changes)) => {
                tracing::info!(changes, "registrations can be stored again");
                // The store is now equal to the catalog.
                self.to_forget.clear();
                self.failing = None;
                self.working.send_replace(true);
            }
            failed => {
                let error = failed.map(|failed| failed.err().map(|error| error.to_string()));
                tracing::debug!(?error, "the store cannot be opened again yet");
                let wait = (wait * 2).min(LONGEST_RETRY);
                self.failing = Some(Failing {
                    retry_at: Instant::now() + wait,
                    wait,
                });
            }
        }
    }

    fn process(&mut self, batch: Vec<QueuedCommit>) {
        for peer in self.registry.take_expired(Instant::now(), MAX_EXPIRED) {
            let files = self.registry.forget(&peer);
            tracing::debug!(%peer, files, "lease ran out");
            if self.failing.is_none() {
                self.to_forget.push(peer);
            }
        }
        let mut changes: Vec<Change> = self
            .to_forget
            .iter()
            .map(|&peer| Change::Forget { peer })
            .collect();
        let forgotten = changes.len();
        let mut answers = Vec::with_capacity(batch.len());
        let mut instances = Vec::with_capacity(batch.len());
        let mut pending = PendingBatch::default();
        for (mut request, answer, current) in batch {
            let instance = match &mut request {
                CommitRequest::Register { instance, .. } => std::mem::take(instance),
                CommitRequest::Unregister { .. } | CommitRequest::Forget { .. } => Vec::new(),
            };
            match self.check(request, &instance, &mut pending) {
                Ok(change) => {
                    changes.push(change);
                    instances.push(instance);
                    answers.push((answer, current));
                }
                // Sending fails if the caller is gone.
                Err(outcome) => {
                    drop(current);
                    drop(answer.send(outcome));
                }
            }
        }
        if changes.is_empty() {
            return;
        }
        if self.store(&changes) {
            self.to_forget.clear();
            for ((change, instance), (answer, current)) in
                changes.into_iter().skip(forgotten).zip(instances).zip(answers)
            {
                let outcome = self.apply_to_registry(&change, &instance);
                // Release the permit first: the caller may send its next change right after the
                // answer.
                drop(current);
                drop(answer.send(Ok(outcome)));
            }
        } else {
            for (answer, current) in answers {
                drop(current);
                drop(answer.send(Err(CommitError::Store)));
            }
        }
    }

    /// Turns a request into a change, or into its result if nothing needs to be stored.
    fn check(
        &self,
        request: CommitRequest,
        instance: &[u8],
        pending: &mut PendingBatch,
    ) -> Result<Change, CommitResult> {
        let catalog = self.registry.catalog();
        match request {
            CommitRequest::Register {
                peer,
                mut files,
                mut replace,
                cost,
                ..
            } => {
                let holder = Holder {
                    address: peer.address.clone(),
                    instance: instance.to_vec(),
                };
                if let Some(address) = self.registry.contest(&peer.id, &holder, Instant::now()) {
                    return Err(Err(CommitError::IdentityInUse { address }));
                }
                let all: hashbrown::HashSet<FileId> = files.iter().map(|file| file.file.id).collect();
                let mut new = all.iter().filter(|file| !catalog.holds(&peer.id, file)).count();
                let mut current = catalog.files_of(&peer.id);
                // If the request repeats all earlier files, nothing needs to be dropped.
                replace &= current > (all.len() - new) as u64;
                if replace {
                    (new, current) = (all.len(), 0);
                } else if all.len() == files.len() {
                    // Registrations in the catalog are durable; do not write them again.
                    files.retain(|file| !catalog.has_registered(&peer.id, file));
                    let there = catalog.address(&peer.id) == Some(&peer.address)
                        && self.registry.ttl(&peer.id) == Some(peer.ttl);
                    if files.is_empty() && there {
                        drop(catalog);
                        let now = Instant::now();
                        return Err(Ok(self.registry.register(&peer, instance, &[], false, now)));
                    }
                }
                let requested = current + new as u64;
                let max = self.limits.max_files_per_peer;
                if requested > max && new > 0 {
                    return Err(Err(CommitError::TooManyFiles {
                        limit: max,
                        requested,
                    }));
                }
                let is_new = catalog.address(&peer.id).is_none();
                let key = host_key(&peer.address.host);
                let mut bytes = 0;
                if is_new || files.iter().any(|file| catalog.may_add_memory(&peer.id, file)) {
                    bytes = cost + if is_new { cost::PEER } else { 0 };
                    let freed = if replace { catalog.charge_of(&peer.id) } else { 0 };
                    self.check_memory(&catalog, &peer, &key, [bytes, freed], pending)
                        .map_err(Err)?;
                }
                let is_there = catalog
                    .address(&peer.id)
                    .is_some_and(|known| host_key(&known.host) == key);
                if !is_there {
                    let at = pending.peers_at.entry(key).or_default();
                    let max = self.limits.max_peers_per_address;
                    if catalog.peers_at(&peer.address.host) + *at >= max {
                        return Err(Err(CommitError::TooManyPeers {
                            host: peer.address.host,
                            limit: max,
                        }));
                    }
                    *at += 1;
                }
                pending.bytes += bytes;
                *pending.bytes_at.entry(host_key(&peer.address.host)).or_default() += bytes;
                Ok(Change::Register {
                    peer,
                    files,
                    new,
                    replace,
                })
            }
            CommitRequest::Unregister { peer, mut files } => {
                files.retain(|file| catalog.holds(&peer, file));
                match files.is_empty() {
                    true => Err(Ok(0)),
                    false => Ok(Change::Unregister { peer, files }),
                }
            }
            CommitRequest::Forget { peer } => match catalog.address(&peer) {
                None => Err(Ok(0)),
                Some(_) => Ok(Change::Forget { peer }),
            },
        }
    }

    /// Checks that a peer may use `bytes` more memory, of which it gives back `freed` later. `key`
    /// is the key of its host.
    fn check_memory(
        &self,
        catalog: &Catalog,
        peer: &PeerRecord,
        key: &str,
        [bytes, freed]: [u64; 2],
        pending: &PendingBatch,
    ) -> Result<(), CommitError> {
        let capacity = self.limits.max_memory_mib.saturating_mul(1024 * 1024);
        let used = catalog.bytes() + pending.bytes;
        if used + bytes > capacity {
            return Err(CommitError::Full);
        }
        // A peer or host may use at most `MEMORY_SHARE` percent of the memory that the others
        // leave.
        let allows = |own: u64| {
            let left = own + (capacity - used);
            own + bytes <= left / 100 * MEMORY_SHARE
        };
        let share = |who: String, own: u64| {
            let mib = own / (1024 * 1024);
            Err(CommitError::Share { who, mib })
        };
        let of_peer = catalog.charge_of(&peer.id) - freed;
        if !allows(of_peer) {
            return share("this peer".to_owned(), of_peer);
        }
        let pending = pending.bytes_at.get(key).copied().unwrap_or(0);
        let at_host = (catalog.charge_at(&peer.address.host) + pending).saturating_sub(freed);
        if is_shared_host(&peer.address.host) || allows(at_host) {
            return Ok(());
        }
        share(format!("the address {}", peer.address.host), at_host)
    }

    /// Makes changes durable; false on failure.
    fn store(&mut self, changes: &[Change]) -> bool {
        if self.failing.is_some() {
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
        tracing::error!(%error, "registrations cannot be stored and are refused until they can: look at the disk");
        self.failing = Some(Failing {
            retry_at: Instant::now() + FIRST_RETRY,
            wait: FIRST_RETRY,
        });
        self.working.send_replace(false);
        false
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
