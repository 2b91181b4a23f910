//! What the index knows now: catalog, leases and watchers, kept in step.
//!
//! Invariants: a peer is in the catalog exactly as long as it has a lease that was not collected. Only the committer's thread changes
//! the catalog; anybody reads it. Watchers are told while the catalog is locked, so that what they are told and what they read agree.
//! Locks are taken in the order catalog, leases, watchers, and never held across a wait.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, PeerId,
    index_client::{Address, Provider, Registration, WatchEvent},
};

use crate::{
    catalog::{Catalog, Put},
    leases::LeaseTable,
    store::{PeerRecord, StoredPeer},
    watch::{Hub, Subscription, WatchError},
};

/// Files that are changed before readers get a turn: some 5 milliseconds.
const TURN: usize = 2_000;

/// The index's knowledge.
#[derive(Debug)]
pub struct Registry {
    catalog: RwLock<Catalog>,
    leases: Mutex<LeaseTable>,
    hub: Arc<Hub>,
}

/// Peers as a store gives them, on their way into a registry.
#[derive(Debug, Default)]
pub struct Restored {
    catalog: Catalog,
    leases: Vec<(PeerId, Duration)>,
}

impl Restored {
    /// Takes one peer in.
    pub fn add(&mut self, StoredPeer { record, mut files }: StoredPeer) {
        self.catalog.set_peer(record.id, &record.address);
        // Names that follow each other have words in common: what the catalog needs next is still in the processor's cache.
        files.sort_unstable_by(|a, b| a.names.cmp(&b.names));
        for file in &files {
            self.catalog.put(&record.id, file);
        }
        self.leases.push((record.id, record.ttl));
    }
}

/// A renewed lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// How long it lasts from now.
    pub ttl: Duration,
    /// How many files the peer has in the index.
    pub file_count: u64,
}

impl Registry {
    /// A registry of what a store gave: every peer has one lease from `now` to come back.
    pub fn new(restored: Restored, max_watchers: usize, now: Instant) -> Self {
        let mut leases = LeaseTable::default();
        for (peer, ttl) in restored.leases {
            leases.open(peer, ttl, now);
        }
        Self {
            catalog: RwLock::new(restored.catalog),
            leases: Mutex::new(leases),
            hub: Arc::new(Hub::new(max_watchers)),
        }
    }

    /// The catalog, to read. Not to be held across a wait.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watchers.
    pub const fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Renews a peer's lease if it has one and is where it was.
    pub fn renew(&self, peer: &PeerId, address: &Address, now: Instant) -> Option<Renewed> {
        let catalog = self.catalog();
        catalog.address(peer).filter(|known| *known == address)?;
        let ttl = self.leases().renew(peer, now)?;
        Some(Renewed {
            ttl,
            file_count: catalog.files_of(peer),
        })
    }

    /// Begins to watch a file, with a sample of its providers of now and how many there are.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn watch(
        &self,
        file: FileId,
        source: IpAddr,
        most: usize,
    ) -> Result<(Subscription, Vec<Provider>, u64), WatchError> {
        let catalog = self.catalog();
        let subscription = self.hub.subscribe(file, source)?;
        let (providers, count) = catalog.providers(&file, most, &mut rand::rng());
        Ok((subscription, providers, count))
    }

    /// Registers files, and opens or renews the lease. Returns how many files the peer then has.
    pub fn register(&self, peer: &PeerRecord, files: &[Registration], replace: bool, now: Instant) -> u64 {
        self.set_peer(peer, now);
        for files in files.chunks(TURN) {
            let mut catalog = self.write();
            let watched = !self.hub.is_idle();
            for file in files {
                let put = catalog.put(&peer.id, file);
                if watched && put != Put::Same {
                    self.tell_joined(&catalog, &peer.id, &file.file.id);
                }
            }
        }
        if replace {
            let kept: HashSet<FileId> = files.iter().map(|file| file.file.id).collect();
            let all = self.catalog().some_files_of(&peer.id, usize::MAX);
            let gone: Vec<FileId> = all.into_iter().filter(|file| !kept.contains(file)).collect();
            self.unregister(&peer.id, &gone);
        }
        self.catalog().files_of(&peer.id)
    }

    fn set_peer(&self, peer: &PeerRecord, now: Instant) {
        let mut catalog = self.write();
        let moved = catalog.set_peer(peer.id, &peer.address);
        self.leases().open(peer.id, peer.ttl, now);
        if moved {
            for file in self.hub.files() {
                self.tell_joined(&catalog, &peer.id, &file);
            }
        }
    }

    /// Takes registrations back. Returns how many there were.
    pub fn unregister(&self, peer: &PeerId, files: &[FileId]) -> u64 {
        let mut removed = 0;
        for files in files.chunks(TURN) {
            let mut catalog = self.write();
            for file in files {
                if catalog.remove(peer, file) {
                    removed += 1;
                    self.hub.tell(file, || Some(WatchEvent::Left(*peer)));
                }
            }
        }
        removed
    }

    /// Forgets a peer, its files and its lease. Returns how many files it had.
    pub fn forget(&self, peer: &PeerId) -> u64 {
        let mut removed = 0;
        loop {
            let some = self.catalog().some_files_of(peer, TURN);
            if some.is_empty() {
                break;
            }
            removed += self.unregister(peer, &some);
        }
        self.write().remove_peer(peer);
        self.leases().close(peer);
        removed
    }

    /// How long a peer's lease lasts each time, if it has one.
    pub fn ttl(&self, peer: &PeerId) -> Option<Duration> {
        self.leases().ttl(peer)
    }

    /// The peers whose leases have run out, at most `most`; their leases are collected, and they are to be forgotten next.
    pub fn take_expired(&self, now: Instant, most: usize) -> Vec<PeerId> {
        self.leases().take_expired(now, most)
    }

    /// When the next lease runs out.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases().next_deadline()
    }

    fn tell_joined(&self, catalog: &Catalog, peer: &PeerId, file: &FileId) {
        self.hub
            .tell(file, || catalog.provider(peer, file).map(WatchEvent::Joined));
    }

    fn write(&self) -> RwLockWriteGuard<'_, Catalog> {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, LeaseTable> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
