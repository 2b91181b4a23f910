//! The state of the index: keeps catalog, leases and watchers consistent.
//!
//! Invariants:
//!
//! - A peer is live in the catalog exactly as long as it has a lease that was not collected.
//! - Only the committer's thread changes the catalog; any thread may read it.
//! - Watchers are notified while the catalog cannot change, so that events agree with what a
//!   watcher reads.
//! - Locks are taken in the order catalog, leases, watchers, and are never held across an await.
//!
//! Readers wait for at most one slice of a change. No section that holds the catalog's write lock
//! handles more than `MAX_SLICE` registrations, and waiting readers go first after each section.
//! `parking_lot`'s fair unlock guarantees this; with the lock of `std`, the writer could take the
//! lock again before a reader wakes up. A peer that leaves is hidden immediately and cleared later
//! by [`Registry::clear_hidden`].

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, Provider, ProviderEvent, Registration},
};

use crate::{
    catalog::{Catalog, PeerSlot, PutOutcome},
    leases::{LeaseHolder, LeaseTable},
    store::{PeerRecord, StoredPeer},
    watch::{Subscription, WatchError, WatchHub},
};

/// Maximum registrations changed per write lock, which takes about 200 microseconds.
const MAX_SLICE: usize = 64;

/// Bytes of names after which a slice ends, because the cost of a name grows with its words.
const MAX_SLICE_NAME_BYTES: usize = 8 * 1024;

/// Removed files above which a replacement fills a new peer entry and clears the old one later.
/// Removing more in place would delay the caller and all other changes.
const MAX_REMOVED_IN_PLACE: usize = 1024;

/// The catalog, the leases and the watchers.
#[derive(Debug)]
pub(crate) struct Registry {
    catalog: RwLock<Catalog>,
    leases: Mutex<LeaseTable>,
    watch_hub: Arc<WatchHub>,
    /// Hidden peers that are not cleared yet.
    to_clear: Mutex<VecDeque<PeerSlot>>,
}

/// Peers read from a store, from which a registry is built.
#[derive(Debug, Default)]
pub struct RestoredPeers {
    catalog: Catalog,
    leases: Vec<(PeerId, Duration)>,
}

impl RestoredPeers {
    /// Adds one peer.
    pub fn add(&mut self, StoredPeer { record, mut files }: StoredPeer) {
        if record.holds_bindings() {
            self.catalog.add_binder(record.id, &record.address);
        } else {
            self.catalog.set_peer(record.id, &record.address);
            self.leases.push((record.id, record.ttl));
        }
        // Neighbours in sorted order share words, so the catalog's entries for them are still in
        // the processor's cache.
        files.sort_unstable_by(|a, b| a.names.cmp(&b.names));
        for file in &files {
            self.catalog.put(&record.id, file);
        }
    }
}

/// Summary of a peer's registrations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PeerSummary {
    /// Number of files.
    pub(crate) file_count: u64,
    /// The digest of its registrations.
    pub(crate) digest: SetDigest,
    /// Address of another live process that uses the same identity.
    pub(crate) conflicting_address: Option<Address>,
}

impl Registry {
    /// Builds a registry from stored peers. From `now` on, each peer has one lease duration to
    /// renew.
    pub(crate) fn new(mut restored: RestoredPeers, max_watchers: usize, now: Instant) -> Self {
        let mut leases = LeaseTable::default();
        for (peer, ttl) in restored.leases {
            leases.open(peer, ttl, None, now);
        }
        restored.catalog.take_change_count();
        Self {
            catalog: RwLock::new(restored.catalog),
            leases: Mutex::new(leases),
            watch_hub: Arc::new(WatchHub::new(max_watchers)),
            to_clear: Mutex::default(),
        }
    }

    /// Locks the catalog for reading. Do not hold the guard across an await.
    pub(crate) fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read()
    }

    /// Changes the catalog by at most [`MAX_SLICE`] registrations, then lets waiting readers go
    /// first.
    fn change_catalog<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        let mut catalog = self.catalog.write();
        let result = change(&mut catalog);
        let changed = catalog.take_change_count();
        debug_assert!(changed <= MAX_SLICE, "readers waited for {changed} registrations");
        RwLockWriteGuard::unlock_fair(catalog);
        result
    }

    /// The watchers.
    pub(crate) const fn watch_hub(&self) -> &Arc<WatchHub> {
        &self.watch_hub
    }

    /// Renews the lease of a peer at an unchanged address. Returns the lease's duration and a
    /// summary of the peer; `None` if there is no such lease.
    pub(crate) fn renew(
        &self,
        peer: &PeerId,
        holder: &LeaseHolder,
        now: Instant,
    ) -> Option<(Duration, PeerSummary)> {
        let catalog = self.catalog();
        catalog
            .address_of(peer)
            .filter(|known| **known == holder.address)?;
        let ttl = self.leases().renew(peer, holder, now)?;
        Some((ttl, self.summarize(&catalog, peer, now)))
    }

    /// A summary of a peer's registrations.
    pub(crate) fn summary_of(&self, peer: &PeerId, now: Instant) -> PeerSummary {
        self.summarize(&self.catalog(), peer, now)
    }

    fn summarize(&self, catalog: &Catalog, peer: &PeerId, now: Instant) -> PeerSummary {
        PeerSummary {
            file_count: catalog.file_count_of(peer),
            digest: catalog.digest_of(peer),
            conflicting_address: self.leases().conflicting_address(peer, now).cloned(),
        }
    }

    /// Returns the lease holder's address if `holder` must be refused, as in
    /// [`LeaseTable::check_conflict`].
    pub(crate) fn check_conflict(
        &self,
        peer: &PeerId,
        holder: &LeaseHolder,
        now: Instant,
    ) -> Option<Address> {
        self.leases().check_conflict(peer, holder, now)
    }

    /// Whether this run of a peer may hold the peer's lease; true if there is no lease.
    pub(crate) fn may_hold(&self, peer: &PeerId, instance: &[u8]) -> bool {
        self.leases().may_hold(peer, instance)
    }

    /// Starts watching a file. Also returns a sample of its current providers and their total
    /// number.
    ///
    /// # Errors
    /// [`WatchError`] if too many callers watch or the index is shutting down.
    pub(crate) fn watch(
        &self,
        file: FileId,
        source: IpAddr,
        max: usize,
    ) -> Result<(Subscription, Vec<Provider>, u64), WatchError> {
        let catalog = self.catalog();
        let subscription = self.watch_hub.subscribe(file, source)?;
        let (providers, count) = catalog.sample_providers(&file, max, &mut rand::rng());
        Ok((subscription, providers, count))
    }

    /// Registers files, and opens or renews the lease. Returns the peer's number of files
    /// afterwards.
    pub(crate) fn register(
        &self,
        peer: &PeerRecord,
        instance: &[u8],
        files: &[Registration],
        replace: bool,
        now: Instant,
    ) -> u64 {
        let removed = if replace {
            self.files_not_in(&peer.id, files)
        } else {
            Vec::new()
        };
        if removed.len() > MAX_REMOVED_IN_PLACE {
            self.replace_all_files(peer, instance, files, now);
        } else {
            self.set_peer(peer, instance, now);
            for files in slices(files) {
                self.change_catalog(|catalog| {
                    let has_watchers = !self.watch_hub.is_idle();
                    for file in files {
                        let outcome = catalog.put(&peer.id, file);
                        if has_watchers && outcome != PutOutcome::Unchanged {
                            self.notify_joined(catalog, &peer.id, &file.file.id);
                        }
                    }
                });
            }
            self.unregister(&peer.id, &removed);
        }
        self.catalog().file_count_of(&peer.id)
    }

    /// The files of a peer that are not in `files`.
    fn files_not_in(&self, peer: &PeerId, files: &[Registration]) -> Vec<FileId> {
        let kept: HashSet<FileId> = files.iter().map(|file| file.file.id).collect();
        let catalog = self.catalog();
        catalog
            .files_of(peer)
            .filter(|file| !kept.contains(*file))
            .copied()
            .collect()
    }

    fn set_peer(&self, peer: &PeerRecord, instance: &[u8], now: Instant) {
        if peer.holds_bindings() {
            self.change_catalog(|catalog| catalog.add_binder(peer.id, &peer.address));
            return;
        }
        let moved = self.change_catalog(|catalog| {
            let moved = catalog.set_peer(peer.id, &peer.address);
            self.open_lease(peer, instance, now);
            moved
        });
        if moved {
            let catalog = self.catalog();
            self.for_each_watched_of(&catalog, &peer.id, |file| {
                self.notify_joined(&catalog, &peer.id, file);
            });
        }
    }

    fn open_lease(&self, peer: &PeerRecord, instance: &[u8], now: Instant) {
        let holder = LeaseHolder {
            address: peer.address.clone(),
            instance: instance.to_vec(),
        };
        self.leases().open(peer.id, peer.ttl, Some(holder), now);
    }

    /// Replaces all files of a peer by filling a new entry and publishing it.
    fn replace_all_files(
        &self,
        peer: &PeerRecord,
        instance: &[u8],
        files: &[Registration],
        now: Instant,
    ) {
        let new = self.change_catalog(|catalog| catalog.add_hidden(peer.id, &peer.address));
        for files in slices(files) {
            self.change_catalog(|catalog| {
                for file in files {
                    catalog.put_at(new, file);
                }
            });
        }
        let old = self.change_catalog(|catalog| {
            self.open_lease(peer, instance, now);
            catalog.publish(new)
        });
        let catalog = self.catalog();
        self.for_each_watched_of(&catalog, &peer.id, |file| {
            self.notify_joined(&catalog, &peer.id, file);
        });
        if let Some(old) = old {
            self.for_each_watched_at(&catalog, old, |file| {
                if !catalog.has_file(&peer.id, file) {
                    self.notify_left(&peer.id, file);
                }
            });
            self.to_clear().push_back(old);
        }
    }

    /// Removes registrations and returns their number.
    pub(crate) fn unregister(&self, peer: &PeerId, files: &[FileId]) -> u64 {
        let mut removed = 0;
        for files in files.chunks(MAX_SLICE) {
            self.change_catalog(|catalog| {
                let is_binder = catalog.is_binder(peer);
                for file in files {
                    if catalog.remove(peer, file) {
                        removed += 1;
                        if !is_binder {
                            self.notify_left(peer, file);
                        }
                    }
                }
            });
        }
        removed
    }

    /// Removes a peer and its lease; it becomes invisible immediately. Returns its number of files.
    /// The files of a large peer use memory until [`Self::clear_hidden`] has removed them.
    pub(crate) fn forget(&self, peer: &PeerId) -> u64 {
        let is_binder = self.catalog().is_binder(peer);
        let hidden = self.change_catalog(|catalog| {
            let slot = catalog.hide(peer);
            self.leases().close(peer);
            slot
        });
        let Some(slot) = hidden else {
            return 0;
        };
        let catalog = self.catalog();
        let count = catalog.file_count_at(slot);
        if !is_binder {
            self.for_each_watched_at(&catalog, slot, |file| self.notify_left(peer, file));
        }
        drop(catalog);
        if count > MAX_SLICE as u64
            || !self.change_catalog(|catalog| catalog.clear(slot, MAX_SLICE))
        {
            self.to_clear().push_back(slot);
        }
        count
    }

    /// Clears about `max` registrations of hidden peers; true if more remain.
    pub(crate) fn clear_hidden(&self, max: usize) -> bool {
        let mut cleared = 0;
        let mut to_clear = self.to_clear();
        while let Some(&slot) = to_clear.front()
            && cleared < max
        {
            if self.change_catalog(|catalog| catalog.clear(slot, MAX_SLICE)) {
                to_clear.pop_front();
            }
            cleared += MAX_SLICE;
        }
        !to_clear.is_empty()
    }

    /// The lease duration of a peer, if it has a lease; zero for bindings.
    pub(crate) fn ttl(&self, catalog: &Catalog, peer: &PeerId) -> Option<Duration> {
        match catalog.is_binder(peer) {
            true => Some(Duration::ZERO),
            false => self.leases().ttl(peer),
        }
    }

    /// Removes up to `max` expired leases and returns their peers, which the caller must forget
    /// next.
    pub(crate) fn take_expired(&self, now: Instant, max: usize) -> Vec<PeerId> {
        self.leases().take_expired(now, max)
    }

    /// When the next lease expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.leases().next_deadline()
    }

    /// Calls `each` for the watched files of a live peer.
    fn for_each_watched_of(&self, catalog: &Catalog, peer: &PeerId, each: impl FnMut(&FileId)) {
        if let Some(slot) = catalog.slot_of(peer) {
            self.for_each_watched_at(catalog, slot, each);
        }
    }

    /// Calls `each` for the watched files of a live or hidden peer. Iterates over the peer's files
    /// or over all watched files, whichever are fewer.
    fn for_each_watched_at(
        &self,
        catalog: &Catalog,
        slot: PeerSlot,
        mut each: impl FnMut(&FileId),
    ) {
        let watched_count = self.watch_hub.file_count();
        if watched_count == 0 {
            return;
        }
        if catalog.file_count_at(slot) <= watched_count as u64 {
            catalog.files_at(slot).for_each(each);
        } else {
            for file in self.watch_hub.files() {
                if catalog.has_file_at(slot, &file) {
                    each(&file);
                }
            }
        }
    }

    fn notify_joined(&self, catalog: &Catalog, peer: &PeerId, file: &FileId) {
        self.watch_hub
            .publish(file, || catalog.provider(peer, file).map(ProviderEvent::Joined));
    }

    fn notify_left(&self, peer: &PeerId, file: &FileId) {
        self.watch_hub.publish(file, || Some(ProviderEvent::Left(*peer)));
    }

    fn leases(&self) -> MutexGuard<'_, LeaseTable> {
        self.leases.lock()
    }

    fn to_clear(&self) -> MutexGuard<'_, VecDeque<PeerSlot>> {
        self.to_clear.lock()
    }
}

/// Splits registrations into slices that are short enough for readers to wait for.
fn slices(files: &[Registration]) -> impl Iterator<Item = &[Registration]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take(MAX_SLICE).take_while(|file| {
            let fits = bytes < MAX_SLICE_NAME_BYTES;
            bytes += file.names.iter().map(String::len).sum::<usize>();
            fits
        });
        let (slice, after) = rest.split_at(count.count());
        rest = after;
        (!slice.is_empty()).then_some(slice)
    })
}
