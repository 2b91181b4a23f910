//! What the index knows now: catalog, leases and watchers, kept in step.
//!
//! Invariants: a peer is live in the catalog exactly as long as it has a lease that was not collected. Only the committer's thread
//! changes the catalog; anybody reads it. Watchers are told while the catalog cannot change, so that what they are told and what they
//! read agree. Locks are taken in the order catalog, leases, watchers, and never held across a wait.
//!
//! Readers wait for one slice of a change at most: no section that holds the catalog for writing handles more than [`SLICE`]
//! registrations, and after each the readers that wait go first (`parking_lot`'s fair unlock; the lock of `std` may be taken back by the
//! writer before any of them wakes up). A peer that is forgotten is hidden at once, and cleared later by [`Registry::clear`].

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use parking_lot::{Mutex, MutexGuard};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, Provider, ProviderEvent, Registration},
};

use crate::{
    catalog::{Catalog, PeerSlot, PutOutcome},
    leases::{Holder, LeaseTable},
    store::{PeerRecord, StoredPeer},
    watch::{Subscription, WatchError, WatchHub},
};

/// Registrations that are changed before readers get a turn: some 200 microseconds.
pub(crate) const SLICE: usize = 64;

/// Bytes of names after which a slice ends: what a name costs depends on its words.
const SLICE_BYTES: usize = 8 * 1024;

/// A peer that replaces more files than this is filled anew, and the old one cleared later: its caller and all others would wait for it.
const REPLACE_IN_PLACE: usize = 1024;

/// The index's knowledge.
#[derive(Debug)]
pub struct Registry {
    catalog: RwLock<Catalog>,
    leases: Mutex<LeaseTable>,
    hub: Arc<WatchHub>,
    /// Hidden peers that are not cleared yet.
    leftovers: Mutex<VecDeque<PeerSlot>>,
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

/// What a peer has in the index.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holding {
    /// How many files.
    pub file_count: u64,
    /// The digest of its registrations.
    pub digest: SetDigest,
    /// Where another live process is that claims to be this peer.
    pub rival: Option<Address>,
}

impl Registry {
    /// A registry of what a store gave: every peer has one lease from `now` to come back.
    pub fn new(mut restored: Restored, max_watchers: usize, now: Instant) -> Self {
        let mut leases = LeaseTable::default();
        for (peer, ttl) in restored.leases {
            leases.open(peer, ttl, None, now);
        }
        restored.catalog.take_work();
        Self {
            catalog: RwLock::new(restored.catalog),
            leases: Mutex::new(leases),
            hub: Arc::new(WatchHub::new(max_watchers)),
            leftovers: Mutex::default(),
        }
    }

    /// The catalog, to read. Not to be held across a wait.
    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read()
    }

    /// Changes the catalog by at most [`SLICE`] registrations, and lets those who wait to read it go next.
    fn change<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        let mut catalog = self.catalog.write();
        let result = change(&mut catalog);
        let work = catalog.take_work();
        debug_assert!(work <= SLICE, "readers waited for {work} registrations");
        RwLockWriteGuard::unlock_fair(catalog);
        result
    }

    /// The watchers.
    pub const fn hub(&self) -> &Arc<WatchHub> {
        &self.hub
    }

    /// Renews a peer's lease if it has one and is where it was: for how long, and what the peer has.
    pub fn renew(&self, peer: &PeerId, holder: &Holder, now: Instant) -> Option<(Duration, Holding)> {
        let catalog = self.catalog();
        catalog.address(peer).filter(|known| **known == holder.address)?;
        let ttl = self.leases().renew(peer, holder, now)?;
        Some((ttl, self.holding_in(&catalog, peer, now)))
    }

    /// What a peer has.
    pub fn holding(&self, peer: &PeerId, now: Instant) -> Holding {
        self.holding_in(&self.catalog(), peer, now)
    }

    fn holding_in(&self, catalog: &Catalog, peer: &PeerId, now: Instant) -> Holding {
        Holding {
            file_count: catalog.files_of(peer),
            digest: catalog.digest_of(peer),
            rival: self.leases().rival(peer, now).cloned(),
        }
    }

    /// Whether another live process holds the lease of this peer: then where it is.
    pub fn contest(&self, peer: &PeerId, holder: &Holder, now: Instant) -> Option<Address> {
        self.leases().contest(peer, holder, now)
    }

    /// Whether a peer's lease, if it has one, may be that of this run of it.
    pub fn may_be_of(&self, peer: &PeerId, instance: &[u8]) -> bool {
        self.leases().may_be_of(peer, instance)
    }

    /// Begins to watch a file, with a sample of its providers of now and how many there are.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn watch(
        &self,
        file: FileId,
        source: IpAddr,
        max: usize,
    ) -> Result<(Subscription, Vec<Provider>, u64), WatchError> {
        let catalog = self.catalog();
        let subscription = self.hub.subscribe(file, source)?;
        let (providers, count) = catalog.providers(&file, max, &mut rand::rng());
        Ok((subscription, providers, count))
    }

    /// Registers files, and opens or renews the lease. Returns how many files the peer then has.
    pub fn register(
        &self,
        peer: &PeerRecord,
        instance: &[u8],
        files: &[Registration],
        replace: bool,
        now: Instant,
    ) -> u64 {
        let gone = if replace {
            self.others(&peer.id, files)
        } else {
            Vec::new()
        };
        if gone.len() > REPLACE_IN_PLACE {
            self.fill_anew(peer, instance, files, now);
        } else {
            self.set_peer(peer, instance, now);
            for files in slices(files) {
                self.change(|catalog| {
                    let watched = !self.hub.is_idle();
                    for file in files {
                        let put = catalog.put(&peer.id, file);
                        if watched && put != PutOutcome::Unchanged {
                            self.notify_joined(catalog, &peer.id, &file.file.id);
                        }
                    }
                });
            }
            self.unregister(&peer.id, &gone);
        }
        self.catalog().files_of(&peer.id)
    }

    /// The files of a peer that are not among these.
    fn others(&self, peer: &PeerId, files: &[Registration]) -> Vec<FileId> {
        let kept: HashSet<FileId> = files.iter().map(|file| file.file.id).collect();
        let catalog = self.catalog();
        catalog
            .files(peer)
            .filter(|file| !kept.contains(*file))
            .copied()
            .collect()
    }

    fn set_peer(&self, peer: &PeerRecord, instance: &[u8], now: Instant) {
        let moved = self.change(|catalog| {
            let moved = catalog.set_peer(peer.id, &peer.address);
            self.open_lease(peer, instance, now);
            moved
        });
        if moved {
            let catalog = self.catalog();
            self.each_watched(&catalog, &peer.id, |file| {
                self.notify_joined(&catalog, &peer.id, file);
            });
        }
    }

    fn open_lease(&self, peer: &PeerRecord, instance: &[u8], now: Instant) {
        let holder = Holder {
            address: peer.address.clone(),
            instance: instance.to_vec(),
        };
        self.leases().open(peer.id, peer.ttl, Some(holder), now);
    }

    /// Registers files in the place of all that a peer has.
    fn fill_anew(&self, peer: &PeerRecord, instance: &[u8], files: &[Registration], now: Instant) {
        let new = self.change(|catalog| catalog.add_hidden(peer.id, &peer.address));
        for files in slices(files) {
            self.change(|catalog| {
                for file in files {
                    catalog.put_at(new, file);
                }
            });
        }
        let old = self.change(|catalog| {
            self.open_lease(peer, instance, now);
            catalog.publish(new)
        });
        let catalog = self.catalog();
        self.each_watched(&catalog, &peer.id, |file| {
            self.notify_joined(&catalog, &peer.id, file);
        });
        if let Some(old) = old {
            self.each_watched_of(&catalog, old, |file| {
                if !catalog.holds(&peer.id, file) {
                    self.tell_left(&peer.id, file);
                }
            });
            self.leftovers().push_back(old);
        }
    }

    /// Takes registrations back. Returns how many there were.
    pub fn unregister(&self, peer: &PeerId, files: &[FileId]) -> u64 {
        let mut removed = 0;
        for files in files.chunks(SLICE) {
            self.change(|catalog| {
                for file in files {
                    if catalog.remove(peer, file) {
                        removed += 1;
                        self.tell_left(peer, file);
                    }
                }
            });
        }
        removed
    }

    /// Forgets a peer and its lease: from now on nobody sees it. Returns how many files it had. Those of a large peer take memory until
    /// [`Self::clear`] has gone through them.
    pub fn forget(&self, peer: &PeerId) -> u64 {
        let hidden = self.change(|catalog| {
            let slot = catalog.hide(peer);
            self.leases().close(peer);
            slot
        });
        let Some(slot) = hidden else {
            return 0;
        };
        let catalog = self.catalog();
        let count = catalog.files_of_slot(slot);
        self.each_watched_of(&catalog, slot, |file| self.tell_left(peer, file));
        drop(catalog);
        if count > SLICE as u64 || !self.change(|catalog| catalog.clear(slot, SLICE)) {
            self.leftovers().push_back(slot);
        }
        count
    }

    /// Clears some `most` registrations of peers that were forgotten; true where there are more.
    pub fn clear(&self, max: usize) -> bool {
        let mut cleared = 0;
        let mut leftovers = self.leftovers();
        while let Some(&slot) = leftovers.front()
            && cleared < max
        {
            if self.change(|catalog| catalog.clear(slot, SLICE)) {
                leftovers.pop_front();
            }
            cleared += SLICE;
        }
        !leftovers.is_empty()
    }

    /// How long a peer's lease lasts each time, if it has one.
    pub fn ttl(&self, peer: &PeerId) -> Option<Duration> {
        self.leases().ttl(peer)
    }

    /// The peers whose leases have run out, at most `most`; their leases are collected, and they are to be forgotten next.
    pub fn take_expired(&self, now: Instant, max: usize) -> Vec<PeerId> {
        self.leases().take_expired(now, max)
    }

    /// When the next lease runs out.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leases().next_deadline()
    }

    /// Goes through the watched files of a live peer.
    fn each_watched(&self, catalog: &Catalog, peer: &PeerId, each: impl FnMut(&FileId)) {
        if let Some(slot) = catalog.slot_of(peer) {
            self.each_watched_of(catalog, slot, each);
        }
    }

    /// Goes through the watched files of a live or hidden peer: through its own, or through all that are watched, whichever are fewer.
    fn each_watched_of(&self, catalog: &Catalog, slot: PeerSlot, mut each: impl FnMut(&FileId)) {
        let watched = self.hub.file_count();
        if watched == 0 {
            return;
        }
        if catalog.files_of_slot(slot) <= watched as u64 {
            catalog.files_at(slot).for_each(each);
        } else {
            for file in self.hub.files() {
                if catalog.slot_holds(slot, &file) {
                    each(&file);
                }
            }
        }
    }

    fn notify_joined(&self, catalog: &Catalog, peer: &PeerId, file: &FileId) {
        self.hub
            .publish(file, || catalog.provider(peer, file).map(ProviderEvent::Joined));
    }

    fn tell_left(&self, peer: &PeerId, file: &FileId) {
        self.hub.publish(file, || Some(ProviderEvent::Left(*peer)));
    }

    fn leases(&self) -> MutexGuard<'_, LeaseTable> {
        self.leases.lock()
    }

    fn leftovers(&self) -> MutexGuard<'_, VecDeque<PeerSlot>> {
        self.leftovers.lock()
    }
}

/// Registrations in slices that readers can wait for.
fn slices(files: &[Registration]) -> impl Iterator<Item = &[Registration]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest.iter().take(SLICE).take_while(|file| {
            let fits = bytes < SLICE_BYTES;
            bytes += file.names.iter().map(String::len).sum::<usize>();
            fits
        });
        let (slice, after) = rest.split_at(count.count());
        rest = after;
        (!slice.is_empty()).then_some(slice)
    })
}
