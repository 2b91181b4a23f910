//! The committer: one thread through which every change goes, so that many share one flush.
//!
//! It takes what is waiting, checks quotas, has the store make all of it durable at once, shows it to queries, and only then answers. A
//! change is taken whole or not at all. Being alone in changing the catalog, it can check a quota without a lock held for the time of a
//! flush. Leases that run out are collected here too, some with each batch: an expired peer is hidden from queries at once and removed
//! from the store with that batch's flush, in one order with registrations, so that a peer which comes back at that moment stays. What
//! hidden peers leave behind in the catalog is cleared between batches.
//!
//! A store that fails stays closed until it can be opened again, which is tried by itself ([`recovery`]). Until then changes are refused,
//! and leases go on: renewing one touches no disk.
//!
//! Bounds: what waits is bounded in number and in bytes; beyond that callers are told to come back.

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

/// Changes that may wait: as many as one second of flushes on a slow disk answers, one each.
const QUEUE: usize = 4096;

/// Bytes of changes that may wait, as they came on the wire.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Changes that share one flush at most: beyond it the wait for the first of them would grow.
const BATCH: usize = 512;

/// Registrations after which a batch is closed: as many as one request has at most, so that no caller waits for more than two of those.
const BATCH_FILES: usize = 10_000;

/// Expired peers that are collected with one batch: forgetting them takes some milliseconds.
const MAX_EXPIRED: usize = 256;

/// Registrations of hidden peers that are cleared between two batches: some milliseconds.
const CLEAR: usize = 1024;

/// First and longest wait before a store that failed is opened again. Tests have no disk to spare.
const FIRST_RETRY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
pub(crate) const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How long a caller waits for the disk: less than the 10 seconds that clients give a call, so that they are told why.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the thread sleeps where no lease tells it to wake.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// A request to change what the index holds.
#[derive(Debug)]
pub enum CommitRequest {
    /// As [`Change::Register`].
    Register {
        /// The peer with its address and lease.
        peer: PeerRecord,
        /// What it has.
        files: Vec<Registration>,
        /// Whether what it registered before is forgotten.
        replace: bool,
        /// The most memory that the files can take, in bytes.
        cost: u64,
        /// By which this run of the peer is known; empty where it says nothing.
        instance: Vec<u8>,
    },
    /// As [`Change::Unregister`].
    Unregister {
        /// The peer.
        peer: PeerId,
        /// The files.
        files: Vec<FileId>,
    },
    /// As [`Change::Forget`].
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
        /// How many it may have.
        limit: u64,
        /// How many it would have.
        requested: u64,
    },
    /// Too many peers have this address.
    #[error("{limit} peers with the address {host} are registered already: wait until some have left")]
    TooManyPeers {
        /// The address.
        host: String,
        /// How many there may be.
        limit: u64,
    },
    /// No memory is left for registrations.
    #[error("the index is full: try again later, or let it be started with a larger --max-memory-mib")]
    Full,
    /// No more memory is left for this peer, or for all peers of its host.
    #[error(
        "{who} has its share of the index's memory, {mib} MiB, and others need the rest: \
         unregister something, or let the index be started with a larger --max-memory-mib"
    )]
    Share {
        /// The peer or the host.
        who: String,
        /// What it has.
        mib: u64,
    },
    /// Another live process uses the peer's token and holds its lease.
    #[error(
        "another peer at {}:{} uses the same token: stop one of the two, and remove `state/token` from the home that is a copy",
        .address.host, .address.port
    )]
    IdentityInUse {
        /// Where it is.
        address: Address,
    },
    /// Too much is waiting.
    #[error("the index has too much to write: try again in a moment")]
    Busy,
    /// The disk takes its time.
    #[error("the index was not done writing within {COMMIT_TIMEOUT:?}: try again in a moment")]
    Slow,
    /// The store failed.
    #[error("the index cannot store anything now: try again later, and have its log looked at")]
    Store,
    /// The index is ending.
    #[error("the index is shutting down")]
    Closed,
}

/// What a change came to: for a registration how many files the peer now has, otherwise how many were removed.
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

/// The way to the committer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    queue: SyncSender<CommitMessage>,
    bytes: Arc<Semaphore>,
    working: watch::Receiver<bool>,
}

impl Committer {
    /// Starts the thread. It ends at [`Self::stop`], and then drops the store.
    ///
    /// # Errors
    /// Where the system gives no thread.
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

    /// Makes a change, and answers once it is durable and queries see it. `bytes`: its size on the wire.
    ///
    /// Once queued the change is made even if the caller goes away.
    ///
    /// # Errors
    /// [`CommitError`]; then nothing of it was taken, but for [`CommitError::Store`] and [`CommitError::Slow`], which leave it open.
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

    /// Whether changes can be stored, and each change of that.
    pub fn working(&self) -> watch::Receiver<bool> {
        self.working.clone()
    }

    /// Tells the thread to finish what waits and end. Blocks while the queue is full.
    pub fn stop(&self) {
        // It is gone already where this fails.
        let _ = self.queue.send(CommitMessage::Stop);
    }
}

struct CommitWorker {
    store: Box<dyn IndexStore>,
    registry: Arc<Registry>,
    limits: Limits,
    /// Peers that are gone from the catalog but not yet from the store.
    to_forget: Vec<PeerId>,
    failing: Option<Failing>,
    working: watch::Sender<bool>,
}

/// A store that failed.
#[derive(Debug, Clone, Copy)]
struct Failing {
    retry_at: Instant,
    wait: Duration,
}

type QueuedCommit = (CommitRequest, oneshot::Sender<CommitResult>, OwnedSemaphorePermit);

/// What a batch has taken so far, which the catalog does not show yet.
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
                // A peer stands once in a batch, so that quotas need only the catalog.
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
                // What came after the word to stop is told so by the queue's end.
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

    /// Opens a store that failed, if it is time.
    fn retry(&mut self) {
        let Some(Failing { retry_at, wait }) = self.failing else {
            return;
        };
        if Instant::now() < retry_at {
            return;
        }
        let store = &mut self.store;
        // As `Self::store`.
        let recovered = catch_unwind(AssertUnwindSafe(|| {
            recovery::recover(&mut **store, &self.registry)
        }));
        match recovered {
            Ok(Ok(changes)) => {
                tracing::info!(changes, "registrations can be stored again");
                // The store has what the catalog has.
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
                // The caller may be gone.
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
                // Room is made before the answer: a caller that was told may come back at once.
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

    /// The change that a request comes to, or its outcome where nothing needs to be stored.
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
                // Where everything of before is told again there is nothing to forget.
                replace &= current > (all.len() - new) as u64;
                if replace {
                    (new, current) = (all.len(), 0);
                } else if all.len() == files.len() {
                    // What is in the catalog is durable and need not be written again.
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

    /// Whether there is memory for so many bytes more of a peer, which frees some later, and whose host has this key.
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
        // Of what the others leave, one has its share at most.
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

    /// Makes changes durable; false where that failed.
    fn store(&mut self, changes: &[Change]) -> bool {
        if self.failing.is_some() {
            return false;
        }
        // sled panics on some failures. What it may have done to itself ends where the store is opened again.
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
