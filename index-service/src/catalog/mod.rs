//! The catalog: peers, files, names, words and claims, held compactly in memory for queries.
//!
//! Each value is stored once; other tables refer to it by a 4-byte slot. A *claim* holds the names,
//! SHA-256 and kind in a registration, once for all registrations that agree on them. Each file
//! counts its providers per claim, so the most common claims are known without a look at each
//! provider.
//!
//! A peer is *live* or *hidden*. Queries find only live peers. Hiding keeps readers from waiting:
//!
//! - A peer that leaves is hidden immediately and cleared in small steps.
//! - A peer that replaces all of its files is filled while hidden and then published.
//!
//! Counts of providers and registrations leave hidden peers out. The number of distinct files may
//! include files that only hidden peers have.
//!
//! Each registration is charged for the memory that it added. The first registration of a file pays
//! for the file, and the first with a new claim pays for the claim. A peer is charged for its
//! registrations, and a host for its peers.
//!
//! Invariant: a file, name, word or claim exists exactly as long as a registration refers to it.
//!
//! Pure: there is no clock, and randomness is a parameter. Non-goals: leases, durability, locks.

use std::{collections::HashMap, hash::BuildHasher as _};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use potluck_core::{
    FileId, PeerId, Root, Sha256,
    model::{Address, FileRecord, Provider, Registration, RegistrationHash, SetDigest},
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

/// Maximum names returned per file, as the contract says.
pub const MAX_NAMES: usize = 16;

/// The effect of a registration on the providers of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The peer is a new provider of the file.
    New,
    /// The peer was a provider, and changed from partial to complete or back.
    CompletenessChanged,
    /// The providers are as before.
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
    /// Bytes charged for its registrations.
    charge: u64,
}

/// A host (see [`crate::quota::host_key`]) with the totals of its peers.
#[derive(Debug)]
struct Host {
    key: String,
    /// Number of live peers.
    live: u64,
    /// Number of peers, live or hidden.
    peers: u64,
    /// Bytes charged to its peers.
    charge: u64,
}

/// The slot of a peer, live or hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSlot(u32);

/// A provider of one file, with the slot of its claim. The top bits say whether it is complete and
/// whether it pays for the file and the claim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderSlot {
    peer: u32,
    claim_and_flags: u32,
}

const COMPLETE: u32 = 1 << 31;

/// The registration is charged for the file.
const PAYS_FILE: u32 = 1 << 30;

/// The registration is charged for its claim.
const PAYS_VARIANT: u32 = 1 << 29;

const FLAGS: u32 = COMPLETE | PAYS_FILE | PAYS_VARIANT;

impl ProviderSlot {
    const fn new(peer: u32, variant: u32, is_complete: bool) -> Self {
        Self {
            peer,
            claim_and_flags: variant | if is_complete { COMPLETE } else { 0 },
        }
    }

    const fn claim(self) -> u32 {
        self.claim_and_flags & !FLAGS
    }

    const fn is_complete(self) -> bool {
        self.claim_and_flags & COMPLETE != 0
    }

    const fn pays(self, what: u32) -> bool {
        self.claim_and_flags & what != 0
    }
}

#[derive(Debug)]
struct FileEntry {
    id: FileId,
    root: Root,
    size: u64,
    /// Sorted by peer.
    providers: SmallVec<[ProviderSlot; 2]>,
    /// Claims with their number of providers, sorted by claim.
    claims: SmallVec<[(u32, u32); 2]>,
}

/// The peers with their files, names and claims.
#[derive(Debug, Default)]
pub struct Catalog {
    hasher: DefaultHashBuilder,
    peers: Slab<PeerEntry>,
    /// Live peers only.
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
    /// Registrations put or removed since [`Self::take_work`] was last called.
    work: usize,
}

impl Catalog {
    /// Number of live peers.
    pub fn peer_count(&self) -> u64 {
        self.peer_slots.len() as u64
    }

    /// Number of distinct files.
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Number of registrations of live peers.
    pub const fn registration_count(&self) -> u64 {
        self.registrations - self.hidden_registrations
    }

    /// Estimate of the memory used, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes + self.names.bytes + self.claims.bytes
    }

    /// Returns how many registrations were put or removed since the last call.
    pub const fn take_work(&mut self) -> usize {
        std::mem::replace(&mut self.work, 0)
    }

    /// Number of live peers at this host.
    pub fn peers_at(&self, host: &str) -> u64 {
        self.host(host).map_or(0, |host| host.live)
    }

    /// Bytes charged to the live and hidden peers of this host.
    pub fn charge_at(&self, host: &str) -> u64 {
        self.host(host).map_or(0, |host| host.charge)
    }

    fn host(&self, host: &str) -> Option<&Host> {
        let slot = self.host_slots.get(&crate::quota::host_key(host))?;
        self.hosts.get(*slot as usize)
    }

    /// Bytes charged to a live peer.
    pub fn charge_of(&self, peer: &PeerId) -> u64 {
        self.live(peer).map_or(0, |peer| peer.charge)
    }

    /// The digest of a live peer's registrations.
    pub fn digest_of(&self, peer: &PeerId) -> SetDigest {
        self.live(peer)
            .map_or_else(SetDigest::default, |peer| peer.digest)
    }

    fn live(&self, peer: &PeerId) -> Option<&PeerEntry> {
        self.peer_slots.get(peer).map(|&slot| &self.peers[slot as usize])
    }

    /// The address of a live peer.
    pub fn address(&self, peer: &PeerId) -> Option<&Address> {
        self.live(peer).map(|peer| &peer.address)
    }

    /// Number of files of a live peer.
    pub fn files_of(&self, peer: &PeerId) -> u64 {
        self.live(peer).map_or(0, |peer| peer.files.len())
    }

    /// Whether a live or hidden peer has a file.
    pub fn slot_holds(&self, PeerSlot(peer): PeerSlot, file: &FileId) -> bool {
        self.find_file(file)
            .is_some_and(|file| self.peers[peer as usize].files.contains(file))
    }

    /// Number of files of a live or hidden peer.
    pub fn files_of_slot(&self, PeerSlot(peer): PeerSlot) -> u64 {
        self.peers[peer as usize].files.len()
    }

    /// The slot of a live peer.
    pub fn slot_of(&self, peer: &PeerId) -> Option<PeerSlot> {
        self.peer_slots.get(peer).copied().map(PeerSlot)
    }

    /// The files of a live peer.
    pub fn files(&self, peer: &PeerId) -> impl Iterator<Item = &FileId> {
        self.slot_of(peer)
            .into_iter()
            .flat_map(move |slot| self.files_at(slot))
    }

    /// The files of a live or hidden peer.
    pub fn files_at(&self, PeerSlot(peer): PeerSlot) -> impl Iterator<Item = &FileId> {
        let files = self.peers[peer as usize].files.iter();
        files.map(|file| &self.files[file as usize].id)
    }

    /// The live peers, in no order.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peer_slots.keys()
    }

    /// Up to `max` registrations of a peer, starting at slot `from` (0 for the first page), and the
    /// slot where the next page starts, if there is one.
    pub fn registrations_of(&self, peer: &PeerId, from: u32, max: usize) -> (Vec<Registration>, Option<u32>) {
        let Some(live) = self.live(peer) else {
            return (Vec::new(), None);
        };
        let mut slots = live.files.range(from..);
        let found = slots.by_ref().take(max);
        let found = found.filter_map(|slot| self.registration(peer, &self.files[slot as usize].id));
        (found.collect(), slots.next())
    }

    /// A peer's registration of a file.
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
            is_complete: slot.is_complete(),
        })
    }

    /// Whether a live peer has a file.
    pub fn holds(&self, peer: &PeerId, file: &FileId) -> bool {
        self.provider_slot(peer, file).is_some()
    }

    /// Whether a peer has an identical registration. A registration that repeats a name never
    /// matches.
    pub fn has_registered(&self, peer: &PeerId, registration: &Registration) -> bool {
        let slot = self.provider_slot(peer, &registration.file.id);
        slot.is_some_and(|slot| {
            slot.is_complete() == registration.is_complete
                && self.claims[slot.claim()].matches(&self.names, registration)
        })
    }

    /// Whether a registration may add memory. It adds none if the peer has the file and some
    /// registration of the file has the same claim.
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

    /// A peer as a provider of a file, if it has the file.
    pub fn provider(&self, peer: &PeerId, file: &FileId) -> Option<Provider> {
        self.provider_slot(peer, file).map(|slot| self.to_provider(slot))
    }

    /// Adds a live peer or changes its address; true if it was known under another address.
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

    /// Adds a hidden peer. [`Self::put_at`] fills it, and [`Self::publish`] makes it live.
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

    /// Makes a hidden peer live. A live peer with the same id is hidden and returned.
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

    /// Hides a peer immediately. [`Self::clear`] then removes it in steps.
    pub fn hide(&mut self, id: &PeerId) -> Option<PeerSlot> {
        let slot = self.peer_slots.remove(id)?;
        let peer = &mut self.peers[slot as usize];
        peer.is_live = false;
        self.hidden_registrations += peer.files.len();
        self.hosts[peer.host as usize].live -= 1;
        Some(PeerSlot(slot))
    }

    /// Removes up to `max` files of a hidden peer; true once the peer is removed with all of its
    /// files.
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

    /// Registers a file of a peer that [`Self::set_peer`] has added, and replaces its earlier
    /// registration.
    ///
    /// The caller guarantees that the names are valid and that the id matches size and root.
    pub fn put(&mut self, peer: &PeerId, registration: &Registration) -> PutOutcome {
        match self.peer_slots.get(peer) {
            Some(&slot) => self.put_at(PeerSlot(slot), registration),
            None => PutOutcome::Unchanged,
        }
    }

    /// Registers a file of a live or hidden peer; otherwise like [`Self::put`].
    pub fn put_at(&mut self, PeerSlot(peer): PeerSlot, registration: &Registration) -> PutOutcome {
        self.work += 1;
        let (file, is_new_file) = self.intern_file(&registration.file);
        let (variant, is_new_variant) = self.claims.intern(&mut self.names, registration);
        let mut slot = ProviderSlot::new(peer, variant, registration.is_complete);
        if is_new_file {
            slot.claim_and_flags |= PAYS_FILE;
        }
        if is_new_variant {
            slot.claim_and_flags |= PAYS_VARIANT;
        }
        let element = RegistrationHash::from(registration);
        let providers = &self.files[file as usize].providers;
        match providers.binary_search_by_key(&peer, |slot| slot.peer) {
            Ok(at) => {
                let old = providers[at];
                slot.claim_and_flags |= old.claim_and_flags & PAYS_FILE;
                if old.claim() == variant {
                    slot.claim_and_flags |= old.claim_and_flags & PAYS_VARIANT;
                }
                let before = self.registration_hash(file, old);
                self.files[file as usize].providers[at] = slot;
                self.charge(peer, self.price(slot), self.price(old));
                let digest = &mut self.peers[peer as usize].digest;
                digest.remove(&before);
                digest.insert(&element);
                // Add before removing, so that a value that both claims share is not freed in
                // between.
                self.add_claim(file, variant);
                self.remove_claim(file, old.claim());
                match old.is_complete() == slot.is_complete() {
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

    /// Removes a peer's registration of a file; true if there was one.
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
        let element = self.registration_hash(slot, provider);
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

    /// A registration's element in the digest of its peer.
    fn registration_hash(&self, file: u32, slot: ProviderSlot) -> RegistrationHash {
        let claim = &self.claims[slot.claim()];
        let mut names: SmallVec<[&str; 4]> = claim.names.iter().map(|&name| self.names.text(name)).collect();
        let id = &self.files[file as usize].id;
        RegistrationHash::new(
            id,
            claim.sha256.as_ref(),
            claim.kind,
            slot.is_complete(),
            &mut names,
        )
    }

    /// Bytes charged for a registration.
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

    /// Adds a peer to a host and returns the host's slot.
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

    /// Removes a peer from a host.
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

    /// Counts one more provider of `file` with this claim. Takes over the reference from interning.
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

    /// Counts one provider less of `file` with this claim, and releases its reference.
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
            is_complete: slot.is_complete(),
        }
    }

    /// Number of live providers of a file.
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

/// The position of a claim in a tally, or where to insert it.
fn find_claim(tally: &[(u32, u32)], variant: u32) -> Result<usize, usize> {
    tally.binary_search_by_key(&variant, |&(variant, _)| variant)
}
