//! What queries read: peers, files, names, words and claims, compact and in memory.
//!
//! Invariants: a file, name, word or claim is here exactly as long as some peer's registration speaks of it; removing what was
//! put leaves nothing behind. Everything is held once and named by a 4-byte slot elsewhere. What registrations say of a
//! file (names, claimed SHA-256, kind) is held as a *variant*, once for all peers that say the same; a file tallies its variants,
//! so that what most providers say is known without asking each.
//!
//! Pure: no clock, randomness as a parameter. Non-goals: leases, durability, locks.

use std::{collections::HashMap, hash::BuildHasher as _};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use potluck_core::{
    FileId, PeerId, Root, Sha256,
    index_client::{Address, FileRecord, Provider, Registration},
};
use roaring::RoaringBitmap;
use slab::Slab;
use smallvec::SmallVec;

pub mod cost;
mod counted;
mod describe;
mod find;
mod names;
mod sample;
#[cfg(test)]
mod tests;
mod variants;
pub mod words;

use counted::Counted;
pub use find::{
    Cursor, Listing, MAX_CALL_STEPS, MAX_ITEM_STEPS, PAGE_STEPS, RankCursor, Ranked, Search, Searched,
};
use names::Names;
use sample::SAMPLED_FROM;
use variants::Variants;

/// Most names given of one file, as the contract has it.
pub const MAX_NAMES: usize = 16;

/// What a registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The peer had not registered the file.
    New,
    /// It had, and is complete where it was partial, or the other way round.
    Completeness,
    /// Nothing that concerns who provides the file.
    Same,
}

#[derive(Debug)]
struct Peer {
    id: PeerId,
    address: Address,
    /// Equal for peers whose addresses count as one host.
    host: u64,
    files: RoaringBitmap,
}

/// One peer having one file: the variant it claims, and in the top bit whether it is partial.
#[derive(Debug, Clone, Copy)]
struct Held {
    peer: u32,
    says: u32,
}

const PARTIAL: u32 = 1 << 31;

impl Held {
    const fn new(peer: u32, variant: u32, partial: bool) -> Self {
        Self {
            peer,
            says: variant | if partial { PARTIAL } else { 0 },
        }
    }

    const fn variant(self) -> u32 {
        self.says & !PARTIAL
    }

    const fn partial(self) -> bool {
        self.says & PARTIAL != 0
    }
}

#[derive(Debug)]
struct File {
    id: FileId,
    root: Root,
    size: u64,
    /// Sorted by peer.
    providers: SmallVec<[Held; 2]>,
    /// Variants with how many providers claim each, sorted by variant.
    tally: SmallVec<[(u32, u32); 2]>,
}

/// Who has what.
#[derive(Debug, Default)]
pub struct Catalog {
    hasher: DefaultHashBuilder,
    peers: Slab<Peer>,
    peer_slots: HashMap<PeerId, u32>,
    hosts: HashMap<String, u64>,
    files: Slab<File>,
    file_slots: HashTable<u32>,
    names: Names,
    variants: Variants,
    claims: hashbrown::HashMap<Sha256, Counted>,
    registrations: u64,
    bytes: u64,
}

impl Catalog {
    /// How many peers there are.
    pub fn peer_count(&self) -> u64 {
        self.peers.len() as u64
    }

    /// How many distinct files some peer has.
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// How many pairs of peer and file there are.
    pub const fn registration_count(&self) -> u64 {
        self.registrations
    }

    /// Estimate of the memory held, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes + self.names.bytes + self.variants.bytes
    }

    /// How many peers have an address that counts as this host.
    pub fn peers_at(&self, host: &str) -> u64 {
        self.hosts
            .get(&crate::quota::host_key(host))
            .copied()
            .unwrap_or(0)
    }

    /// Where a peer is, if it is known.
    pub fn address(&self, peer: &PeerId) -> Option<&Address> {
        self.peer_slots
            .get(peer)
            .map(|&slot| &self.peers[slot as usize].address)
    }

    /// How many files a peer has.
    pub fn files_of(&self, peer: &PeerId) -> u64 {
        self.peer_slots
            .get(peer)
            .map_or(0, |&slot| self.peers[slot as usize].files.len())
    }

    /// Whether a peer has registered a file.
    pub fn holds(&self, peer: &PeerId, file: &FileId) -> bool {
        self.held(peer, file).is_some()
    }

    /// Whether a peer has registered exactly this. A name that is given twice is taken for another registration.
    pub fn says(&self, peer: &PeerId, registration: &Registration) -> bool {
        let held = self.held(peer, &registration.file.id);
        held.is_some_and(|held| {
            held.partial() == registration.partial
                && self.variants[held.variant()].says(&self.names, registration)
        })
    }

    /// Whether registering this can take more memory: a known peer that has the file takes none for what somebody says of it already.
    pub fn adds(&self, peer: &PeerId, registration: &Registration) -> bool {
        let said = || {
            let file = self.find_file(&registration.file.id)?;
            let variant = self.variants.find(&self.names, registration)?;
            find_variant(&self.files[file as usize].tally, variant).ok()
        };
        !self.holds(peer, &registration.file.id) || said().is_none()
    }

    fn held(&self, peer: &PeerId, file: &FileId) -> Option<Held> {
        let slot = *self.peer_slots.get(peer)?;
        let providers = &self.files[self.find_file(file)? as usize].providers;
        let at = providers.binary_search_by_key(&slot, |held| held.peer).ok()?;
        Some(providers[at])
    }

    /// A peer as the provider of a file, if it is one.
    pub fn provider(&self, peer: &PeerId, file: &FileId) -> Option<Provider> {
        self.held(peer, file).map(|held| self.to_provider(held))
    }

    /// Up to `most` files of a peer.
    pub fn some_files_of(&self, peer: &PeerId, most: usize) -> Vec<FileId> {
        let Some(&slot) = self.peer_slots.get(peer) else {
            return Vec::new();
        };
        let files = self.peers[slot as usize].files.iter().take(most);
        files.map(|file| self.files[file as usize].id).collect()
    }

    /// Makes a peer known or changes its address; true if it was known under another.
    pub fn set_peer(&mut self, id: PeerId, address: &Address) -> bool {
        let Some(&slot) = self.peer_slots.get(&id) else {
            let peer = Peer {
                id,
                address: address.clone(),
                host: self.hash_host(&address.host),
                files: RoaringBitmap::new(),
            };
            let slot = self.peers.insert(peer) as u32;
            self.peer_slots.insert(id, slot);
            *self
                .hosts
                .entry(crate::quota::host_key(&address.host))
                .or_default() += 1;
            self.bytes += cost::PEER;
            return false;
        };
        let host = self.hash_host(&address.host);
        let peer = &mut self.peers[slot as usize];
        if peer.address == *address {
            return false;
        }
        peer.host = host;
        let old = std::mem::replace(&mut peer.address, address.clone());
        self.leave_host(&old.host);
        *self
            .hosts
            .entry(crate::quota::host_key(&address.host))
            .or_default() += 1;
        true
    }

    /// Registers a file of a peer that [`Self::set_peer`] has made known; a registration of before is replaced.
    ///
    /// The names are expected to be valid and the record's id to fit its size and root.
    pub fn put(&mut self, peer: &PeerId, registration: &Registration) -> Put {
        let Some(&peer) = self.peer_slots.get(peer) else {
            return Put::Same;
        };
        let file = self.intern_file(&registration.file);
        let variant = self.variants.intern(&mut self.names, registration);
        let held = Held::new(peer, variant, registration.partial);
        let providers = &mut self.files[file as usize].providers;
        match providers.binary_search_by_key(&peer, |held| held.peer) {
            Ok(at) => {
                let old = std::mem::replace(&mut providers[at], held);
                // The new one first: what both say is never dropped in between.
                self.count_variant(file, variant);
                self.discount_variant(file, old.variant());
                match old.partial() == held.partial() {
                    true => Put::Same,
                    false => Put::Completeness,
                }
            }
            Err(at) => {
                providers.insert(at, held);
                self.count_variant(file, variant);
                self.peers[peer as usize].files.insert(file);
                self.registrations += 1;
                self.bytes += cost::REGISTRATION;
                Put::New
            }
        }
    }

    /// Takes back a peer's registration of a file; true if there was one.
    pub fn remove(&mut self, peer: &PeerId, file: &FileId) -> bool {
        let Some(&peer) = self.peer_slots.get(peer) else {
            return false;
        };
        let Some(slot) = self.find_file(file) else {
            return false;
        };
        let providers = &mut self.files[slot as usize].providers;
        let Ok(at) = providers.binary_search_by_key(&peer, |held| held.peer) else {
            return false;
        };
        let held = providers.remove(at);
        let last = providers.is_empty();
        self.discount_variant(slot, held.variant());
        self.peers[peer as usize].files.remove(slot);
        self.registrations -= 1;
        self.bytes -= cost::REGISTRATION;
        if last {
            let hash = self.hasher.hash_one(file);
            if let Ok(entry) = self.file_slots.find_entry(hash, |&other| other == slot) {
                entry.remove();
            }
            self.files.remove(slot as usize);
            self.bytes -= cost::FILE;
        }
        true
    }

    /// Forgets a peer and all that it registered. For a peer with many files, [`Self::remove`] them bit by bit first.
    pub fn remove_peer(&mut self, peer: &PeerId) -> bool {
        for file in self.some_files_of(peer, usize::MAX) {
            self.remove(peer, &file);
        }
        let Some(slot) = self.peer_slots.remove(peer) else {
            return false;
        };
        let peer = self.peers.remove(slot as usize);
        self.leave_host(&peer.address.host);
        self.bytes -= cost::PEER;
        true
    }

    fn hash_host(&self, host: &str) -> u64 {
        self.hasher.hash_one(crate::quota::host_key(host))
    }

    fn leave_host(&mut self, host: &str) {
        let key = crate::quota::host_key(host);
        if let Some(count) = self.hosts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.hosts.remove(&key);
            }
        }
    }

    fn find_file(&self, id: &FileId) -> Option<u32> {
        let hash = self.hasher.hash_one(id);
        self.file_slots
            .find(hash, |&slot| self.files[slot as usize].id == *id)
            .copied()
    }

    fn intern_file(&mut self, record: &FileRecord) -> u32 {
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
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(vacant) => {
                let slot = files.insert(File {
                    id: record.id,
                    root: record.root,
                    size: record.size,
                    providers: SmallVec::new(),
                    tally: SmallVec::new(),
                }) as u32;
                vacant.insert(slot);
                *bytes += cost::FILE;
                slot
            }
        }
    }

    /// One more provider of `file` claims `variant`. Takes over the reference that interning gave.
    fn count_variant(&mut self, file: u32, variant: u32) {
        let tally = &mut self.files[file as usize].tally;
        match find_variant(tally, variant) {
            Ok(at) => tally[at].1 += 1,
            Err(at) => {
                tally.insert(at, (variant, 1));
                let said = &self.variants[variant];
                for &name in &said.names {
                    self.names.add_file(name, file);
                    self.bytes += cost::BEARER;
                }
                if let Some(sum) = said.sha256 {
                    self.claims.entry(sum).or_default().add(file);
                    self.bytes += cost::CLAIM;
                }
            }
        }
    }

    /// One provider of `file` less claims `variant`.
    fn discount_variant(&mut self, file: u32, variant: u32) {
        let tally = &mut self.files[file as usize].tally;
        if let Ok(at) = find_variant(tally, variant) {
            tally[at].1 -= 1;
            if tally[at].1 == 0 {
                tally.remove(at);
                let said = &self.variants[variant];
                for &name in &said.names {
                    self.names.remove_file(name, file);
                    self.bytes -= cost::BEARER;
                }
                if let Some(sum) = said.sha256 {
                    self.bytes -= cost::CLAIM;
                    if self
                        .claims
                        .get_mut(&sum)
                        .is_some_and(|files| files.subtract(file))
                    {
                        self.claims.remove(&sum);
                    }
                }
            }
        }
        self.variants.release(variant);
    }

    fn to_provider(&self, held: Held) -> Provider {
        let peer = &self.peers[held.peer as usize];
        Provider {
            peer: peer.id,
            address: peer.address.clone(),
            partial: held.partial(),
        }
    }
}

/// Where a variant is in a tally, or where it belongs.
fn find_variant(tally: &[(u32, u32)], variant: u32) -> Result<usize, usize> {
    tally.binary_search_by_key(&variant, |&(variant, _)| variant)
}
