//! The state of the index: keeps catalog, leases and watchers consistent.
//!
//! Invariants:
//!
//! - A peer is live in the catalog exactly as long as it has a lease that was not collected.
//! - Only the committer's thread changes the catalog; any thread may read it.
//! - Events are published while the catalog cannot change, so that they agree with what a watcher
//!   reads. They are delivered later, without a lock.
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
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, ListedPeer, Provider, ProviderEvent, Registration, RegistrationHash},
};
use prometheus_client::metrics::histogram::Histogram;
use smallvec::SmallVec;

use crate::{
    catalog::{Catalog, PeerCursor, PeerSlot, PutOutcome},
    leases::{LeaseHolder, LeaseTable},
    registration::RegistrationRef,
    store::{PeerPart, PeerRecord, PeerSink, StoredPeer, packed::EntryRef},
    watch::{Subscription, WatchError, WatchHub},
};

/// Maximum registrations changed per write lock, which takes about 200 microseconds.
const MAX_SLICE: usize = 64;

/// Upper bounds of the time for which a change locks the catalog, in seconds.
const LOCK_SECONDS: [f64; 8] = [0.000_01, 0.000_03, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1];

/// Bytes of names after which a slice ends, because the cost of a name grows with its words.
const MAX_SLICE_NAME_BYTES: usize = 8 * 1024;

/// Names whose words are indexed when the registry is built, in about 0.1 s. The words of others
/// are indexed while the index runs.
const FEW_NAMES: u32 = 50_000;

/// Slices of names that are indexed between two batches of changes: a few milliseconds of work.
const WORD_SLICES: usize = 32;

/// Registrations of which the places in the tables are brought into the processor's cache together.
const TOUCHED: usize = 16;

/// Removed files above which a replacement fills a new peer entry and clears the old one later.
/// Removing more in place would delay the caller and all other changes.
const MAX_REMOVED_IN_PLACE: usize = 1024;

/// The catalog, the leases and the watchers.
#[derive(Debug)]
pub(crate) struct Registry {
    catalog: RwLock<Catalog>,
    leases: Mutex<LeaseTable>,
    watch_hub: WatchHub,
    /// How long changes kept the catalog locked, in seconds.
    lock_seconds: Histogram,
    /// Hidden peers that are not cleared yet.
    to_clear: Mutex<VecDeque<PeerSlot>>,
    store_generation: AtomicU64,
}

/// Peers read from a store, from which a registry is built.
#[derive(Debug)]
pub struct RestoredPeers {
    catalog: Catalog,
    leases: Vec<(PeerId, Duration)>,
}

impl Default for RestoredPeers {
    fn default() -> Self {
        Self {
            catalog: Catalog::without_words(),
            leases: Vec::new(),
        }
    }
}

impl RestoredPeers {
    /// No peers, but room for about this many registrations.
    pub fn with_room_for(registrations: usize) -> Self {
        let mut restored = Self::default();
        restored.catalog.reserve(registrations);
        restored
    }

    /// Adds a whole peer.
    pub fn add_stored(&mut self, StoredPeer { record, files }: &StoredPeer) {
        if let Some(slot) = self.add_peer(record) {
            for file in files {
                self.catalog.put_at(slot, file);
            }
        }
    }

    fn add_peer(&mut self, record: &PeerRecord) -> Option<PeerSlot> {
        if record.holds_bindings() {
            self.catalog.add_binder(record.id, &record.address);
        } else {
            self.catalog.set_peer(record.id, &record.address);
            self.leases.push((record.id, record.ttl));
        }
        self.catalog.slot_of(&record.id)
    }

    /// Indexes the words of up to `max` names; true once those of all names are indexed. Searches
    /// find nothing before.
    pub fn index_words(&mut self, max: u32) -> bool {
        self.catalog.index_words(max)
    }
}

impl PeerSink for RestoredPeers {
    fn add(&mut self, part: &PeerPart) -> usize {
        let slot = match part.is_first {
            true => self.add_peer(&part.record),
            false => self.catalog.slot_of(&part.record.id),
        };
        let Some(slot) = slot else {
            return part.entries.len();
        };
        let mut entries = part.entries.iter();
        let mut group: SmallVec<[EntryRef<'_>; TOUCHED]> = SmallVec::new();
        loop {
            group.extend(entries.by_ref().take(TOUCHED));
            if group.is_empty() {
                break;
            }
            for entry in &group {
                if let EntryRef::Registered(file, _) = entry {
                    self.catalog.touch(file);
                }
            }
            for entry in group.drain(..) {
                match entry {
                    EntryRef::Registered(file, hash) => {
                        self.catalog.put_hashed(slot, &file, hash);
                    }
                    EntryRef::Removed(id) => {
                        self.catalog.remove(&part.record.id, id);
                    }
                }
            }
        }
        usize::try_from(self.catalog.file_count_at(slot)).unwrap_or(usize::MAX)
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
        restored.catalog.shrink();
        restored.index_words(FEW_NAMES);
        for (peer, ttl) in restored.leases {
            leases.open(peer, ttl, None, now);
        }
        restored.catalog.take_change_count();
        Self {
            catalog: RwLock::new(restored.catalog),
            leases: Mutex::new(leases),
            watch_hub: WatchHub::new(max_watchers),
            lock_seconds: Histogram::new(LOCK_SECONDS),
            to_clear: Mutex::default(),
            store_generation: AtomicU64::new(0),
        }
    }

    /// Indexes the words of some names that were read from the store; true once those of all names
    /// are indexed.
    pub(crate) fn index_words(&self) -> bool {
        if self.catalog().unindexed_names() == 0 {
            return true;
        }
        (0..WORD_SLICES)
            .any(|_| self.change_catalog(|catalog| catalog.index_words(MAX_SLICE as u32)))
    }

    /// How long changes kept the catalog locked, in seconds.
    pub(crate) const fn lock_seconds(&self) -> &Histogram {
        &self.lock_seconds
    }

    /// Locks the catalog for reading. Do not hold the guard across an await.
    pub(crate) fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read()
    }

    /// Changes the catalog by at most [`MAX_SLICE`] registrations, then lets waiting readers go
    /// first.
    fn change_catalog<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        let mut catalog = self.catalog.write();
        let locked = Instant::now();
        let result = change(&mut catalog);
        let changed = catalog.take_change_count();
        debug_assert!(changed <= MAX_SLICE, "readers waited for {changed} registrations");
        let held = locked.elapsed();
        RwLockWriteGuard::unlock_fair(catalog);
        self.lock_seconds.observe(held.as_secs_f64());
        result
    }

    /// The watchers.
    pub(crate) const fn watch_hub(&self) -> &WatchHub {
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

    /// Keeps the version that a peer reported.
    pub(crate) fn set_version(&self, peer: &PeerId, version: &str) {
        self.leases().set_version(peer, version);
    }

    /// Up to `max` peers from a cursor on, and the cursor of the next page.
    pub(crate) fn list_peers(
        &self,
        cursor: PeerCursor,
        max: usize,
        now: Instant,
    ) -> (Vec<ListedPeer>, Option<PeerCursor>) {
        let (peers, next) = self.catalog().peers_from(cursor, max);
        let leases = self.leases();
        let listed = peers.into_iter().filter_map(|(peer, address, file_count)| {
            let (seen, version) = leases.last_seen(&peer)?;
            Some(ListedPeer {
                peer,
                address,
                file_count,
                last_seen: now.saturating_duration_since(seen),
                version: version.to_owned(),
            })
        });
        (listed.collect(), next)
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
    /// afterwards. `instance` is the run of the peer; `None` if the peer registered at another
    /// process, so that the first run to renew holds the lease.
    pub(crate) fn register(
        &self,
        peer: &PeerRecord,
        instance: Option<&[u8]>,
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
                // Hashed before the lock, so that readers do not wait for it.
                let files = hashed(files);
                self.change_catalog(|catalog| {
                    let has_watchers = !self.watch_hub.is_idle();
                    files.iter().for_each(|(file, _)| catalog.touch(file));
                    for (file, hash) in &files {
                        let outcome = match catalog.slot_of(&peer.id) {
                            Some(slot) => catalog.put_hashed(slot, file, hash),
                            None => PutOutcome::Unchanged,
                        };
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
            .filter(|file| !kept.contains(file))
            .collect()
    }

    fn set_peer(&self, peer: &PeerRecord, instance: Option<&[u8]>, now: Instant) {
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

    fn open_lease(&self, peer: &PeerRecord, instance: Option<&[u8]>, now: Instant) {
        let holder = instance.map(|instance| LeaseHolder {
            address: peer.address.clone(),
            instance: instance.to_vec(),
        });
        self.leases().open(peer.id, peer.ttl, holder, now);
    }

    /// Replaces all files of a peer by filling a new entry and publishing it.
    fn replace_all_files(
        &self,
        peer: &PeerRecord,
        instance: Option<&[u8]>,
        files: &[Registration],
        now: Instant,
    ) {
        let new = self.change_catalog(|catalog| catalog.add_hidden(peer.id, &peer.address));
        for files in slices(files) {
            let files = hashed(files);
            self.change_catalog(|catalog| {
                files.iter().for_each(|(file, _)| catalog.touch(file));
                for (file, hash) in &files {
                    catalog.put_hashed(new, file, hash);
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

    /// Begins to note which leases are renewed here; see [`LeaseTable::note_renewals`].
    pub(crate) fn note_renewals(&self) {
        self.leases().note_renewals();
    }

    /// See [`LeaseTable::take_renewed`].
    pub(crate) fn take_renewed(&self) -> Vec<(PeerId, Duration)> {
        self.leases().take_renewed()
    }

    /// See [`LeaseTable::ended`].
    pub(crate) fn ended_leases(&self, now: Instant, max: usize) -> Vec<PeerId> {
        self.leases().ended(now, max)
    }

    /// See [`LeaseTable::set_remaining`].
    pub(crate) fn set_remaining_lease(&self, peer: &PeerId, remaining: Duration, now: Instant) {
        self.leases().set_remaining(peer, remaining, now);
    }

    /// The generation of the store; 0 if only this process uses it.
    pub(crate) fn store_generation(&self) -> u64 {
        self.store_generation.load(Ordering::Relaxed)
    }

    /// Sets the generation of the store.
    pub(crate) fn set_store_generation(&self, generation: u64) {
        self.store_generation.store(generation, Ordering::Relaxed);
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
            catalog.files_at(slot).for_each(|file| each(&file));
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

/// The registrations of a slice with their hashes.
type HashedSlice<'a> = SmallVec<[(RegistrationRef<'a>, RegistrationHash); MAX_SLICE]>;

fn hashed(files: &[Registration]) -> HashedSlice<'_> {
    let files = files.iter().map(RegistrationRef::from);
    files
        .map(|file| {
            let hash = file.hash();
            (file, hash)
        })
        .collect()
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
