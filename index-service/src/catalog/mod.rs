//! What queries read: peers, files, names, words and claims, compact and in memory.
//!
//! Invariants: a file, name, word or claim is here exactly as long as some peer's registration speaks of it; removing what was
//! put leaves nothing behind. Everything is held once and named by a 4-byte slot elsewhere. What registrations say of a
//! file (names, claimed SHA-256, kind) is held as a *variant*, once for all peers that say the same; a file tallies its variants,
//! so that what most providers say is known without asking each.
//!
//! A peer is *live* or *hidden*. Only live ones are found by their ids and given as providers. A peer that is gone is hidden at once and
//! cleared bit by bit, and one that replaces all it has is filled while it is hidden: neither keeps readers waiting. Counts and sizes
//! of files leave hidden peers out; the number of distinct files may count those that only hidden ones have.
//!
//! Each registration is charged with the memory that it added: the first of a file pays for the file, and the first that says something
//! for what it says. A peer is charged with all of its own, and a host with all of its peers.
//!
//! Pure: no clock, randomness as a parameter. Non-goals: leases, durability, locks.

use std::{collections::HashMap, hash::BuildHasher as _};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use potluck_core::{
    FileId, PeerId, Root, Sha256,
    model::{Address, FileRecord, Provider, Registration},
    set_digest::{Element, SetDigest},
};
use roaring::RoaringBitmap;
use slab::Slab;
use smallvec::SmallVec;

mod claims;
pub mod cost;
mod describe;
mod names;
mod ref_counted_set;
mod sample;
mod search;
#[cfg(test)]
mod tests;
pub mod words;

pub use crate::catalog::search::{
    Listing, MAX_CALL_STEPS, MAX_ITEM_STEPS, PAGE_STEPS, RankCursor, RankedPage, SearchCursor, SearchPage,
    SearchScan,
};
use claims::Claims;
use names::Names;
use ref_counted_set::RefCountedSet;
use sample::SAMPLED_FROM;

/// Most names given of one file, as the contract has it.
pub const MAX_NAMES: usize = 16;

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The peer had not registered the file.
    New,
    /// It had, and is complete where it was partial, or the other way round.
    CompletenessChanged,
    /// Nothing that concerns who provides the file.
    Unchanged,
}

#[derive(Debug)]
struct PeerEntry {
    id: PeerId,
    address: Address,
    host: u32,
    is_live: bool,
    files: RoaringBitmap,
    digest: SetDigest,
    /// Bytes that its registrations are charged with.
    charge: u64,
}

/// What counts as one host, with its peers.
#[derive(Debug)]
struct Host {
    key: String,
    /// Peers that are live.
    live: u64,
    /// Peers, live or hidden.
    peers: u64,
    /// Bytes that its peers are charged with.
    charge: u64,
}

/// A peer's place in the catalog, live or hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSlot(u32);

/// One peer having one file: the variant it claims, and in the top bits whether it is partial and what it pays for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderSlot {
    peer: u32,
    claim_and_partial: u32,
}

const PARTIAL: u32 = 1 << 31;

/// The registration is charged with the file.
const PAYS_FILE: u32 = 1 << 30;

/// The registration is charged with its variant.
const PAYS_VARIANT: u32 = 1 << 29;

const FLAGS: u32 = PARTIAL | PAYS_FILE | PAYS_VARIANT;

impl ProviderSlot {
    const fn new(peer: u32, variant: u32, partial: bool) -> Self {
        Self {
            peer,
            claim_and_partial: variant | if partial { PARTIAL } else { 0 },
        }
    }

    const fn claim(self) -> u32 {
        self.claim_and_partial & !FLAGS
    }

    const fn partial(self) -> bool {
        self.claim_and_partial & PARTIAL != 0
    }

    const fn pays(self, what: u32) -> bool {
        self.claim_and_partial & what != 0
    }
}

#[derive(Debug)]
struct FileEntry {
    id: FileId,
    root: Root,
    size: u64,
    /// Sorted by peer.
    providers: SmallVec<[ProviderSlot; 2]>,
    /// Variants with how many providers claim each, sorted by variant.
    claims: SmallVec<[(u32, u32); 2]>,
}

/// Who has what.
#[derive(Debug, Default)]
pub struct Catalog {
    hasher: DefaultHashBuilder,
    peers: Slab<PeerEntry>,
    /// Of live peers.
    peer_slots: HashMap<PeerId, u32>,
    hosts: Slab<Host>,
    host_slots: HashMap<String, u32>,
    files: Slab<FileEntry>,
    file_slots: HashTable<u32>,
    names: Names,
    claims: Claims,
    by_sha256: hashbrown::HashMap<Sha256, RefCountedSet>,
    /// Of live and hidden peers.
    registrations: u64,
    /// Of hidden peers.
    hidden_registrations: u64,
    bytes: u64,
    /// Registrations that were put or removed since this was last asked.
    work: usize,
}

impl Catalog {
    /// How many peers there are.
    pub fn peer_count(&self) -> u64 {
        self.peer_slots.len() as u64
    }

    /// How many distinct files some peer has.
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// How many pairs of peer and file there are.
    pub const fn registration_count(&self) -> u64 {
        self.registrations - self.hidden_registrations
    }

    /// Estimate of the memory held, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes + self.names.bytes + self.claims.bytes
    }

    /// How many registrations were put or removed since this was last called.
    pub const fn take_work(&mut self) -> usize {
        std::mem::replace(&mut self.work, 0)
    }

    /// How many peers have an address that counts as this host.
    pub fn peers_at(&self, host: &str) -> u64 {
        self.host(host).map_or(0, |host| host.live)
    }

    /// Bytes that the peers of this host are charged with.
    pub fn charge_at(&self, host: &str) -> u64 {
        self.host(host).map_or(0, |host| host.charge)
    }

    fn host(&self, host: &str) -> Option<&Host> {
        let slot = self.host_slots.get(&crate::quota::host_key(host))?;
        self.hosts.get(*slot as usize)
    }

    /// Bytes that a peer is charged with.
    pub fn charge_of(&self, peer: &PeerId) -> u64 {
        self.live(peer).map_or(0, |peer| peer.charge)
    }

    /// The digest of what a peer has registered.
    pub fn digest_of(&self, peer: &PeerId) -> SetDigest {
        self.live(peer)
            .map_or_else(SetDigest::default, |peer| peer.digest)
    }

    fn live(&self, peer: &PeerId) -> Option<&PeerEntry> {
        self.peer_slots.get(peer).map(|&slot| &self.peers[slot as usize])
    }

    /// Where a peer is, if it is known.
    pub fn address(&self, peer: &PeerId) -> Option<&Address> {
        self.live(peer).map(|peer| &peer.address)
    }

    /// How many files a peer has.
    pub fn files_of(&self, peer: &PeerId) -> u64 {
        self.live(peer).map_or(0, |peer| peer.files.len())
    }

    /// Whether a hidden or live peer has a file.
    pub fn slot_holds(&self, PeerSlot(peer): PeerSlot, file: &FileId) -> bool {
        self.find_file(file)
            .is_some_and(|file| self.peers[peer as usize].files.contains(file))
    }

    /// How many files a hidden or live peer has.
    pub fn files_of_slot(&self, PeerSlot(peer): PeerSlot) -> u64 {
        self.peers[peer as usize].files.len()
    }

    /// The place of a live peer.
    pub fn slot_of(&self, peer: &PeerId) -> Option<PeerSlot> {
        self.peer_slots.get(peer).copied().map(PeerSlot)
    }

    /// The files of a live peer.
    pub fn files(&self, peer: &PeerId) -> impl Iterator<Item = &FileId> {
        self.slot_of(peer)
            .into_iter()
            .flat_map(move |slot| self.files_at(slot))
    }

    /// The files of a hidden or live peer.
    pub fn files_at(&self, PeerSlot(peer): PeerSlot) -> impl Iterator<Item = &FileId> {
        let files = self.peers[peer as usize].files.iter();
        files.map(|file| &self.files[file as usize].id)
    }

    /// The peers that are live, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peer_slots.keys()
    }

    /// Up to `most` registrations of a peer, and where the next ones begin, if there are any. `from`: 0 for the first.
    pub fn registrations_of(&self, peer: &PeerId, from: u32, max: usize) -> (Vec<Registration>, Option<u32>) {
        let Some(live) = self.live(peer) else {
            return (Vec::new(), None);
        };
        let mut slots = live.files.range(from..);
        let found = slots.by_ref().take(max);
        let found = found.filter_map(|slot| self.registration(peer, &self.files[slot as usize].id));
        (found.collect(), slots.next())
    }

    /// What a peer has registered of a file.
    pub fn registration(&self, peer: &PeerId, file: &FileId) -> Option<Registration> {
        let slot = self.provider_slot(peer, file)?;
        let file = &self.files[self.find_file(file)? as usize];
        let claim = &self.claims[slot.claim()];
        Some(Registration {
            file: FileRecord {
                id: file.id,
                size: file.size,
                root: file.root,
                sha256: claim.sha256,
                kind: claim.kind,
            },
            names: claim
                .names
                .iter()
                .map(|&name| self.names.text(name).to_owned())
                .collect(),
            partial: slot.partial(),
        })
    }

    /// Whether a peer has registered a file.
    pub fn holds(&self, peer: &PeerId, file: &FileId) -> bool {
        self.provider_slot(peer, file).is_some()
    }

    /// Whether a peer has registered exactly this. A name that is given twice is taken for another registration.
    pub fn has_registered(&self, peer: &PeerId, registration: &Registration) -> bool {
        let slot = self.provider_slot(peer, &registration.file.id);
        slot.is_some_and(|slot| {
            slot.partial() == registration.partial
                && self.claims[slot.claim()].matches(&self.names, registration)
        })
    }

    /// Whether registering this can take more memory: a known peer that has the file takes none for what somebody says of it already.
    pub fn may_add_memory(&self, peer: &PeerId, registration: &Registration) -> bool {
        let claim = || {
            let file = self.find_file(&registration.file.id)?;
            let variant = self.claims.find(&self.names, registration)?;
            find_claim(&self.files[file as usize].claims, variant).ok()
        };
        !self.holds(peer, &registration.file.id) || claim().is_none()
    }

    fn provider_slot(&self, peer: &PeerId, file: &FileId) -> Option<ProviderSlot> {
        let slot = *self.peer_slots.get(peer)?;
        let providers = &self.files[self.find_file(file)? as usize].providers;
        let at = providers
            .binary_search_by_key(&slot, |provider| provider.peer)
            .ok()?;
        Some(providers[at])
    }

    /// A peer as the provider of a file, if it is one.
    pub fn provider(&self, peer: &PeerId, file: &FileId) -> Option<Provider> {
        self.provider_slot(peer, file).map(|slot| self.to_provider(slot))
    }

    /// Makes a peer known or changes its address; true if it was known under another.
    pub fn set_peer(&mut self, id: PeerId, address: &Address) -> bool {
        let Some(&slot) = self.peer_slots.get(&id) else {
            let slot = self.add_hidden(id, address);
            self.publish(slot);
            return false;
        };
        if self.peers[slot as usize].address == *address {
            return false;
        }
        let host = self.enter_host(&address.host);
        let peer = &mut self.peers[slot as usize];
        peer.address = address.clone();
        let charge = peer.charge;
        let old = std::mem::replace(&mut peer.host, host);
        self.hosts[host as usize].live += 1;
        self.hosts[host as usize].charge += charge;
        self.hosts[old as usize].live -= 1;
        self.hosts[old as usize].charge -= charge;
        self.leave_host(old);
        true
    }

    /// Adds a peer that nobody sees, to be filled by [`Self::put_at`] and shown by [`Self::publish`].
    pub fn add_hidden(&mut self, id: PeerId, address: &Address) -> PeerSlot {
        let host = self.enter_host(&address.host);
        let peer = PeerEntry {
            id,
            address: address.clone(),
            host,
            is_live: false,
            files: RoaringBitmap::new(),
            digest: SetDigest::default(),
            charge: cost::PEER,
        };
        self.hosts[host as usize].charge += cost::PEER;
        self.bytes += cost::PEER;
        PeerSlot(self.peers.insert(peer) as u32)
    }

    /// Shows a hidden peer, in the place of the one that has the same id and is hidden now.
    pub fn publish(&mut self, slot: PeerSlot) -> Option<PeerSlot> {
        let peer = &mut self.peers[slot.0 as usize];
        let id = peer.id;
        peer.is_live = true;
        self.hidden_registrations -= peer.files.len();
        self.hosts[peer.host as usize].live += 1;
        let old = self.hide(&id);
        self.peer_slots.insert(id, slot.0);
        old
    }

    /// Hides a peer at once, to be cleared by [`Self::clear`].
    pub fn hide(&mut self, id: &PeerId) -> Option<PeerSlot> {
        let slot = self.peer_slots.remove(id)?;
        let peer = &mut self.peers[slot as usize];
        peer.is_live = false;
        self.hidden_registrations += peer.files.len();
        self.hosts[peer.host as usize].live -= 1;
        Some(PeerSlot(slot))
    }

    /// Removes up to `most` files of a hidden peer; true once the peer is gone with all of them.
    pub fn clear(&mut self, slot: PeerSlot, max: usize) -> bool {
        let files: SmallVec<[u32; 64]> = self.peers[slot.0 as usize].files.iter().take(max).collect();
        for file in files {
            self.remove_held(slot.0, file);
        }
        if !self.peers[slot.0 as usize].files.is_empty() {
            return false;
        }
        let peer = self.peers.remove(slot.0 as usize);
        self.hosts[peer.host as usize].charge -= peer.charge;
        self.leave_host(peer.host);
        self.bytes -= cost::PEER;
        true
    }

    /// Registers a file of a peer that [`Self::set_peer`] has made known; a registration of before is replaced.
    ///
    /// The names are expected to be valid and the record's id to fit its size and root.
    pub fn put(&mut self, peer: &PeerId, registration: &Registration) -> PutOutcome {
        match self.peer_slots.get(peer) {
            Some(&slot) => self.put_at(PeerSlot(slot), registration),
            None => PutOutcome::Unchanged,
        }
    }

    /// Registers a file of a live or hidden peer, as [`Self::put`].
    pub fn put_at(&mut self, PeerSlot(peer): PeerSlot, registration: &Registration) -> PutOutcome {
        self.work += 1;
        let (file, is_new_file) = self.intern_file(&registration.file);
        let (variant, is_new_variant) = self.claims.intern(&mut self.names, registration);
        let mut slot = ProviderSlot::new(peer, variant, registration.partial);
        if is_new_file {
            slot.claim_and_partial |= PAYS_FILE;
        }
        if is_new_variant {
            slot.claim_and_partial |= PAYS_VARIANT;
        }
        let element = Element::from(registration);
        let providers = &self.files[file as usize].providers;
        match providers.binary_search_by_key(&peer, |slot| slot.peer) {
            Ok(at) => {
                let old = providers[at];
                slot.claim_and_partial |= old.claim_and_partial & PAYS_FILE;
                if old.claim() == variant {
                    slot.claim_and_partial |= old.claim_and_partial & PAYS_VARIANT;
                }
                let before = self.element(file, old);
                self.files[file as usize].providers[at] = slot;
                self.charge(peer, self.price(slot), self.price(old));
                let digest = &mut self.peers[peer as usize].digest;
                digest.remove(&before);
                digest.insert(&element);
                // The new one first: what both say is never dropped in between.
                self.add_claim(file, variant);
                self.remove_claim(file, old.claim());
                match old.partial() == slot.partial() {
                    true => PutOutcome::Unchanged,
                    false => PutOutcome::CompletenessChanged,
                }
            }
            Err(at) => {
                self.files[file as usize].providers.insert(at, slot);
                self.add_claim(file, variant);
                self.charge(peer, self.price(slot), 0);
                let peer = &mut self.peers[peer as usize];
                peer.digest.insert(&element);
                peer.files.insert(file);
                if !peer.is_live {
                    self.hidden_registrations += 1;
                }
                self.registrations += 1;
                self.bytes += cost::REGISTRATION;
                PutOutcome::New
            }
        }
    }

    /// Takes back a peer's registration of a file; true if there was one.
    pub fn remove(&mut self, peer: &PeerId, file: &FileId) -> bool {
        let Some(&peer) = self.peer_slots.get(peer) else {
            return false;
        };
        self.find_file(file)
            .is_some_and(|file| self.remove_held(peer, file))
    }

    fn remove_held(&mut self, peer: u32, slot: u32) -> bool {
        self.work += 1;
        let providers = &self.files[slot as usize].providers;
        let Ok(at) = providers.binary_search_by_key(&peer, |provider| provider.peer) else {
            return false;
        };
        let provider = providers[at];
        let element = self.element(slot, provider);
        self.charge(peer, 0, self.price(provider));
        self.files[slot as usize].providers.remove(at);
        let last = self.files[slot as usize].providers.is_empty();
        self.remove_claim(slot, provider.claim());
        let peer = &mut self.peers[peer as usize];
        peer.digest.remove(&element);
        peer.files.remove(slot);
        if !peer.is_live {
            self.hidden_registrations -= 1;
        }
        self.registrations -= 1;
        self.bytes -= cost::REGISTRATION;
        if last {
            let hash = self.hasher.hash_one(self.files[slot as usize].id);
            if let Ok(entry) = self.file_slots.find_entry(hash, |&other| other == slot) {
                entry.remove();
            }
            self.files.remove(slot as usize);
            self.bytes -= cost::FILE;
        }
        true
    }

    /// The hash of one registration in its peer's digest.
    fn element(&self, file: u32, slot: ProviderSlot) -> Element {
        let claim = &self.claims[slot.claim()];
        let mut names: SmallVec<[&str; 4]> = claim.names.iter().map(|&name| self.names.text(name)).collect();
        let id = &self.files[file as usize].id;
        Element::new(id, claim.sha256.as_ref(), claim.kind, slot.partial(), &mut names)
    }

    /// What a registration is charged with.
    fn price(&self, slot: ProviderSlot) -> u64 {
        let mut price = cost::REGISTRATION;
        if slot.pays(PAYS_FILE) {
            price += cost::FILE;
        }
        if slot.pays(PAYS_VARIANT) {
            price += u64::from(self.claims[slot.claim()].cost);
        }
        price
    }

    fn charge(&mut self, peer: u32, more: u64, less: u64) {
        let peer = &mut self.peers[peer as usize];
        peer.charge = peer.charge + more - less;
        let host = &mut self.hosts[peer.host as usize];
        host.charge = host.charge + more - less;
    }

    /// The slot of a host, with one more peer.
    fn enter_host(&mut self, host: &str) -> u32 {
        let key = crate::quota::host_key(host);
        let hosts = &mut self.hosts;
        let slot = *self.host_slots.entry(key).or_insert_with_key(|key| {
            hosts.insert(Host {
                key: key.clone(),
                live: 0,
                peers: 0,
                charge: 0,
            }) as u32
        });
        self.hosts[slot as usize].peers += 1;
        slot
    }

    /// One peer of a host less.
    fn leave_host(&mut self, slot: u32) {
        let host = &mut self.hosts[slot as usize];
        host.peers -= 1;
        if host.peers == 0 {
            let host = self.hosts.remove(slot as usize);
            self.host_slots.remove(&host.key);
        }
    }

    fn find_file(&self, id: &FileId) -> Option<u32> {
        let hash = self.hasher.hash_one(id);
        self.file_slots
            .find(hash, |&slot| self.files[slot as usize].id == *id)
            .copied()
    }

    fn intern_file(&mut self, record: &FileRecord) -> (u32, bool) {
        let Self {
            hasher,
            files,
            file_slots,
            bytes,
            ..
        } = self;
        let entry = file_slots.entry(
            hasher.hash_one(record.id),
            |&slot| files[slot as usize].id == record.id,
            |&slot| hasher.hash_one(files[slot as usize].id),
        );
        match entry {
            Entry::Occupied(entry) => (*entry.get(), false),
            Entry::Vacant(vacant) => {
                let slot = files.insert(FileEntry {
                    id: record.id,
                    root: record.root,
                    size: record.size,
                    providers: SmallVec::new(),
                    claims: SmallVec::new(),
                }) as u32;
                vacant.insert(slot);
                *bytes += cost::FILE;
                (slot, true)
            }
        }
    }

    /// One more provider of `file` claims `claim`. Takes over the reference that interning gave.
    fn add_claim(&mut self, file: u32, variant: u32) {
        let tally = &mut self.files[file as usize].claims;
        match find_claim(tally, variant) {
            Ok(at) => tally[at].1 += 1,
            Err(at) => {
                tally.insert(at, (variant, 1));
                let claim = &self.claims[variant];
                for &name in &claim.names {
                    self.names.add_file(name, file);
                    self.bytes += cost::NAME_OF_FILE;
                }
                if let Some(sum) = claim.sha256 {
                    self.by_sha256.entry(sum).or_default().add(file);
                    self.bytes += cost::SHA256_COST;
                }
            }
        }
    }

    /// One provider of `file` less claims `claim`.
    fn remove_claim(&mut self, file: u32, variant: u32) {
        let tally = &mut self.files[file as usize].claims;
        if let Ok(at) = find_claim(tally, variant) {
            tally[at].1 -= 1;
            if tally[at].1 == 0 {
                tally.remove(at);
                let claim = &self.claims[variant];
                for &name in &claim.names {
                    self.names.remove_file(name, file);
                    self.bytes -= cost::NAME_OF_FILE;
                }
                if let Some(sum) = claim.sha256 {
                    self.bytes -= cost::SHA256_COST;
                    if self
                        .by_sha256
                        .get_mut(&sum)
                        .is_some_and(|files| files.subtract(file))
                    {
                        self.by_sha256.remove(&sum);
                    }
                }
            }
        }
        self.claims.release(variant);
    }

    fn to_provider(&self, slot: ProviderSlot) -> Provider {
        let peer = &self.peers[slot.peer as usize];
        Provider {
            peer: peer.id,
            address: peer.address.clone(),
            partial: slot.partial(),
        }
    }

    /// How many live peers have a file.
    fn provider_count(&self, file: u32) -> u64 {
        let providers = &self.files[file as usize].providers;
        let count = match self.has_hidden() {
            true => providers.iter().filter(|slot| self.is_live(**slot)).count(),
            false => providers.len(),
        };
        count as u64
    }

    fn has_hidden(&self) -> bool {
        self.peers.len() > self.peer_slots.len()
    }

    fn is_live(&self, slot: ProviderSlot) -> bool {
        self.peers[slot.peer as usize].is_live
    }
}

/// Where a variant is in a tally, or where it belongs.
fn find_claim(tally: &[(u32, u32)], variant: u32) -> Result<usize, usize> {
    tally.binary_search_by_key(&variant, |&(variant, _)| variant)
}
