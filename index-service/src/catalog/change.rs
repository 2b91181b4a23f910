//! Changes of the catalog: peers and registrations come and go.

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration, RegistrationHash},
};
use smallvec::SmallVec;

use crate::{
    catalog::{
        lookup::Catalog,
        tables::{
            claims::ClaimRef,
            cost,
            files::{ProviderEntry, ProviderSet},
            peers::{PeerEntry, PeerSlot},
        },
    },
    registration::RegistrationRef,
};

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

impl Catalog {
    /// A catalog for many peers, whose names are searchable only after [`Self::index_words`].
    pub(crate) fn without_words() -> Self {
        let mut catalog = Self::default();
        catalog.names.defer_words();
        catalog
    }

    /// Makes room for this many registrations in an empty catalog. An estimate is enough.
    pub(crate) fn reserve(&mut self, registrations: usize) {
        self.files.reserve(registrations);
        self.names.reserve(registrations);
    }

    /// Gives back room that [`Self::reserve`] made and that is not used.
    pub(crate) fn shrink(&mut self) {
        self.files.shrink();
        self.names.shrink();
    }

    /// Indexes the words of up to `max` names; true once those of all names are indexed.
    pub(crate) fn index_words(&mut self, max: u32) -> bool {
        self.names.index_words(max)
    }

    /// Returns how many registrations were put or removed since the last call.
    pub(crate) const fn take_change_count(&mut self) -> usize {
        std::mem::replace(&mut self.change_count, 0)
    }

    /// Adds a live peer or changes its address; true if it was known under another address.
    pub fn set_peer(&mut self, id: PeerId, address: &Address) -> bool {
        let Some(slot) = self.slot_of(&id) else {
            let slot = self.add_hidden(id, address);
            self.publish(slot);
            return false;
        };
        if self.peers[slot].address == *address {
            return false;
        }
        let host = self.hosts.add_peer(&address.host);
        let peer = &mut self.peers[slot];
        peer.address = address.clone();
        let charge = peer.charge;
        let old_host = std::mem::replace(&mut peer.host, host);
        self.hosts[host].live_peers += 1;
        self.hosts[host].charge += charge;
        self.hosts[old_host].live_peers -= 1;
        self.hosts[old_host].charge -= charge;
        self.hosts.remove_peer(old_host);
        true
    }

    /// Adds a hidden peer. [`Self::put_at`] fills it, and [`Self::publish`] makes it live.
    pub(crate) fn add_hidden(&mut self, id: PeerId, address: &Address) -> PeerSlot {
        let host = self.hosts.add_peer(&address.host);
        self.hosts[host].charge += cost::PEER;
        self.bytes += cost::PEER;
        self.peers.add_hidden(id, address.clone(), host, cost::PEER)
    }

    /// Makes a hidden peer live. A live peer with the same id is hidden and returned.
    pub(crate) fn publish(&mut self, slot: PeerSlot) -> Option<PeerSlot> {
        let PeerEntry { id, files, host, .. } = &self.peers[slot];
        self.hidden_registrations -= files.len();
        self.hosts[*host].live_peers += 1;
        let id = *id;
        let old = self.hide(&id);
        self.peers.publish(slot);
        old
    }

    /// Adds a binder, or does nothing if there is one with this id. `owner` takes the place of an
    /// address: its host is who answers for the names.
    pub(crate) fn add_binder(&mut self, id: PeerId, owner: &Address) {
        if self.slot_of(&id).is_none() {
            let slot = self.add_hidden(id, owner);
            self.peers.make_binder(slot);
        }
    }

    /// Hides a live peer or a binder immediately. [`Self::clear`] then removes it in steps.
    pub(crate) fn hide(&mut self, id: &PeerId) -> Option<PeerSlot> {
        let was_live = self.slot_of(id).is_some_and(|slot| self.peers[slot].is_live);
        let slot = self.peers.hide(id)?;
        if was_live {
            let peer = &self.peers[slot];
            self.hidden_registrations += peer.files.len();
            self.hosts[peer.host].live_peers -= 1;
        }
        Some(slot)
    }

    /// Removes up to `max` files of a hidden peer; true once the peer is removed with all of its
    /// files.
    pub(crate) fn clear(&mut self, slot: PeerSlot, max: usize) -> bool {
        let files: SmallVec<[u32; 64]> = self.peers[slot].files.iter().take(max).collect();
        for file in files {
            self.remove_at(slot, file);
        }
        if !self.peers[slot].files.is_empty() {
            return false;
        }
        let peer = self.peers.remove(slot);
        self.hosts[peer.host].charge -= peer.charge;
        self.hosts.remove_peer(peer.host);
        self.bytes -= cost::PEER;
        true
    }

    /// Registers a file of a peer that [`Self::set_peer`] has added, and replaces its earlier
    /// registration.
    ///
    /// The caller guarantees that the names are valid and that the id matches size and root.
    pub fn put(&mut self, peer: &PeerId, registration: &Registration) -> PutOutcome {
        match self.slot_of(peer) {
            Some(slot) => self.put_at(slot, registration),
            None => PutOutcome::Unchanged,
        }
    }

    /// Registers a file of a live or hidden peer; otherwise like [`Self::put`].
    pub(crate) fn put_at(&mut self, slot: PeerSlot, registration: &Registration) -> PutOutcome {
        let registration = RegistrationRef::from(registration);
        self.put_hashed(slot, &registration, &registration.hash())
    }

    /// Brings what [`Self::put_hashed`] reads of the tables into the processor's cache. Worth it
    /// before several registrations: one after the other would wait for memory each time.
    pub(crate) fn touch(&self, registration: &RegistrationRef<'_>) {
        self.files.touch(&registration.file.id);
        if let Some(name) = registration.names.first() {
            self.names.touch(name);
        }
    }

    /// Like [`Self::put_at`], with the hash of the registration.
    pub(crate) fn put_hashed(
        &mut self,
        slot: PeerSlot,
        registration: &RegistrationRef<'_>,
        hash: &RegistrationHash,
    ) -> PutOutcome {
        self.change_count += 1;
        let (file, is_new_file) = self.files.intern(registration.file);
        let (claim, is_new_claim) = self.claims.intern(&mut self.names, registration);
        let mut provider = ProviderEntry::new(slot, claim, registration.is_complete);
        if is_new_file {
            self.bytes += cost::FILE;
            provider.charge_file();
        }
        if is_new_claim {
            provider.charge_claim();
        }
        if let Some(old) = self.files.provider(file, slot) {
            if old.pays_file() {
                provider.charge_file();
            }
            if old.claim() == claim && old.pays_claim() {
                provider.charge_claim();
            }
            let old_hash = self.registration_hash(file, old);
            self.adjust_charge(slot, self.charge_for(provider), self.charge_for(old));
            let digest = &mut self.peers[slot].digest;
            digest.remove(&old_hash);
            digest.insert(hash);
        }
        let ProviderSet {
            old,
            is_first_of_claim,
            was_last_of_claim,
        } = self.files.set_provider(file, provider);
        // Add before removing, so that a value that both claims share is not freed in between.
        if is_first_of_claim {
            self.add_claim_of_file(file, claim);
        }
        if let Some(old) = old {
            if was_last_of_claim {
                self.remove_claim_of_file(file, old.claim());
            }
            self.claims.release(old.claim());
            return match old.is_complete() == provider.is_complete() {
                true => PutOutcome::Unchanged,
                false => PutOutcome::CompletenessChanged,
            };
        }
        self.adjust_charge(slot, self.charge_for(provider), 0);
        let peer = &mut self.peers[slot];
        peer.digest.insert(hash);
        peer.files.insert(file);
        if !peer.is_live {
            self.hidden_registrations += 1;
        }
        self.registrations += 1;
        self.bytes += cost::REGISTRATION;
        PutOutcome::New
    }

    /// Removes a peer's registration of a file; true if there was one.
    pub(crate) fn remove(&mut self, peer: &PeerId, file: &FileId) -> bool {
        let Some(peer) = self.slot_of(peer) else {
            return false;
        };
        self.files
            .find(file)
            .is_some_and(|file| self.remove_at(peer, file))
    }

    /// Removes the registration of a file by a live or hidden peer; true if there was one.
    fn remove_at(&mut self, peer: PeerSlot, file: u32) -> bool {
        self.change_count += 1;
        let Some(provider) = self.files.provider(file, peer) else {
            return false;
        };
        let hash = self.registration_hash(file, provider);
        self.adjust_charge(peer, 0, self.charge_for(provider));
        let removed = self.files.remove_provider(file, peer);
        let (was_last_of_claim, was_last) = removed.map_or((false, false), |removed| {
            (removed.was_last_of_claim, removed.was_last)
        });
        if was_last_of_claim {
            self.remove_claim_of_file(file, provider.claim());
        }
        self.claims.release(provider.claim());
        let peer = &mut self.peers[peer];
        peer.digest.remove(&hash);
        peer.files.remove(file);
        if !peer.is_live {
            self.hidden_registrations -= 1;
        }
        self.registrations -= 1;
        self.bytes -= cost::REGISTRATION;
        if was_last {
            self.files.remove(file);
            self.bytes -= cost::FILE;
        }
        true
    }

    /// Bytes charged for a registration.
    fn charge_for(&self, provider: ProviderEntry) -> u64 {
        let mut charge = cost::REGISTRATION;
        if provider.pays_file() {
            charge += cost::FILE;
        }
        if provider.pays_claim() {
            charge += self.claims.cost(provider.claim(), &self.names);
        }
        charge
    }

    /// Adds to and subtracts from the charge of a peer and of its host.
    fn adjust_charge(&mut self, peer: PeerSlot, added: u64, removed: u64) {
        let peer = &mut self.peers[peer];
        peer.charge = peer.charge + added - removed;
        let host = &mut self.hosts[peer.host];
        host.charge = host.charge + added - removed;
    }

    /// Adds a file to the names and the SHA-256 of a claim that its first provider makes.
    fn add_claim_of_file(&mut self, file: u32, claim: ClaimRef) {
        let content = self.claims.get(claim);
        for &name in &*content.names {
            self.names.add_file(name, file);
            self.bytes += cost::NAME_OF_FILE;
        }
        if let Some(sum) = content.sum {
            self.claims.sums.add_file(sum, file);
            self.bytes += cost::SHA256_COST;
        }
    }

    /// Removes a file from the names and the SHA-256 of a claim that no provider of it makes.
    fn remove_claim_of_file(&mut self, file: u32, claim: ClaimRef) {
        let content = self.claims.get(claim);
        for &name in &*content.names {
            self.names.remove_file(name, file);
            self.bytes -= cost::NAME_OF_FILE;
        }
        if let Some(sum) = content.sum {
            self.claims.sums.remove_file(sum, file);
            self.bytes -= cost::SHA256_COST;
        }
    }
}
