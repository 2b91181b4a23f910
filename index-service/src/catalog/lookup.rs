//! The catalog's tables, and lookups of one peer or one file.

use potluck_core::{
    FileId, PeerId,
    model::{Address, FileRecord, Provider, Registration, RegistrationHash, SetDigest},
};
use smallvec::SmallVec;

use crate::catalog::tables::{
    claims::{ClaimRef, Claims},
    files::{Files, ProviderEntry},
    hosts::Hosts,
    names::Names,
    peers::{PeerSlot, Peers},
};

/// The peers with their files, names and claims.
#[derive(Debug, Default)]
pub struct Catalog {
    pub(super) peers: Peers,
    pub(super) hosts: Hosts,
    pub(super) files: Files,
    pub(super) names: Names,
    pub(super) claims: Claims,
    /// Number of registrations of live and hidden peers.
    pub(super) registrations: u64,
    /// Number of registrations of hidden peers.
    pub(super) hidden_registrations: u64,
    /// Estimate of the memory used, in bytes, without `names` and `claims`.
    pub(super) bytes: u64,
    /// Registrations put or removed since [`Self::take_change_count`] was last called.
    pub(super) change_count: usize,
}

/// The slot of the first peer of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerCursor(pub(crate) u32);

impl Catalog {
    /// Number of live peers.
    pub(crate) fn peer_count(&self) -> u64 {
        self.peers.live_count() as u64
    }

    /// Up to `max` live peers from a cursor on, with the numbers of their registrations, and the cursor
    /// of the next page. Does a bounded amount of work.
    pub(crate) fn peers_from(
        &self,
        cursor: PeerCursor,
        max: usize,
    ) -> (Vec<(PeerId, Address, u64)>, Option<PeerCursor>) {
        let (peers, next) = self.peers.live_from(cursor.0, max);
        let listed = peers
            .into_iter()
            .map(|peer| (peer.id, peer.address.clone(), peer.files.len()));
        (listed.collect(), next.map(PeerCursor))
    }

    /// Number of distinct files.
    pub(crate) fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Number of registrations of live peers.
    pub(crate) const fn registration_count(&self) -> u64 {
        self.registrations - self.hidden_registrations
    }

    /// Number of names that searches do not find yet, because a large index has just started.
    pub(crate) fn unindexed_names(&self) -> u32 {
        self.names.unindexed()
    }

    /// Estimate of the memory used, in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes + self.names.bytes + self.claims.bytes
    }

    /// Number of live peers on the host of this address.
    pub(crate) fn peers_on_host(&self, address: &str) -> u64 {
        self.hosts.get(address).map_or(0, |host| host.live_peers)
    }

    /// Bytes charged to the live and hidden peers on the host of this address.
    pub(crate) fn charge_of_host(&self, address: &str) -> u64 {
        self.hosts.get(address).map_or(0, |host| host.charge)
    }

    /// Bytes charged to a live peer.
    pub(crate) fn charge_of_peer(&self, peer: &PeerId) -> u64 {
        self.peers.get(peer).map_or(0, |peer| peer.charge)
    }

    /// The digest of a live peer's registrations.
    pub(crate) fn digest_of(&self, peer: &PeerId) -> SetDigest {
        self.peers
            .get(peer)
            .map_or_else(SetDigest::default, |peer| peer.digest)
    }

    /// The address of a live peer.
    pub(crate) fn address_of(&self, peer: &PeerId) -> Option<&Address> {
        self.peers.get(peer).map(|peer| &peer.address)
    }

    /// The live peers and the binders, in no order.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peers.ids()
    }

    /// The slot of a live peer.
    pub(crate) fn slot_of(&self, peer: &PeerId) -> Option<PeerSlot> {
        self.peers.slot_of(peer)
    }

    /// Number of files of a live peer.
    pub(crate) fn file_count_of(&self, peer: &PeerId) -> u64 {
        self.slot_of(peer).map_or(0, |slot| self.file_count_at(slot))
    }

    /// Number of files of a live or hidden peer.
    pub(crate) fn file_count_at(&self, slot: PeerSlot) -> u64 {
        self.peers[slot].files.len()
    }

    /// The files of a live peer.
    pub(crate) fn files_of(&self, peer: &PeerId) -> impl Iterator<Item = FileId> {
        self.slot_of(peer)
            .into_iter()
            .flat_map(move |slot| self.files_at(slot))
    }

    /// The files of a live or hidden peer.
    pub(crate) fn files_at(&self, slot: PeerSlot) -> impl Iterator<Item = FileId> {
        let files = self.peers[slot].files.iter();
        files.map(|file| self.files.id(file))
    }

    /// Whether a live peer has a file.
    pub(crate) fn has_file(&self, peer: &PeerId, file: &FileId) -> bool {
        self.slot_of(peer)
            .is_some_and(|slot| self.has_file_at(slot, file))
    }

    /// Whether a live or hidden peer has a file.
    pub(crate) fn has_file_at(&self, slot: PeerSlot, file: &FileId) -> bool {
        self.files
            .find(file)
            .is_some_and(|file| self.peers[slot].files.contains(file))
    }

    /// Up to `max` registrations of a peer, starting at slot `from` (0 for the first page), and the
    /// slot where the next page starts, if there is one.
    pub(crate) fn registrations_of(
        &self,
        peer: &PeerId,
        from: u32,
        max: usize,
    ) -> (Vec<Registration>, Option<u32>) {
        let Some(live) = self.peers.get(peer) else {
            return (Vec::new(), None);
        };
        let mut slots = live.files.range(from..);
        let page = slots.by_ref().take(max);
        let page = page.filter_map(|slot| self.registration(peer, &self.files.id(slot)));
        (page.collect(), slots.next())
    }

    /// A live peer's registration of a file.
    pub(crate) fn registration(&self, peer: &PeerId, file: &FileId) -> Option<Registration> {
        let (slot, provider) = self.find_provider(peer, file)?;
        let claim = self.claims.get(provider.claim());
        Some(Registration {
            file: FileRecord {
                id: *file,
                size: self.files.size(slot),
                root: self.files.root(slot),
                sha256: self.claims.sha256(&claim).copied(),
                kind: claim.kind,
            },
            names: claim
                .names
                .iter()
                .map(|&name| self.names.text(name).to_owned())
                .collect(),
            is_complete: provider.is_complete(),
        })
    }

    /// Whether a peer has an identical registration. A registration that repeats a name never
    /// matches.
    pub(crate) fn has_registered(&self, peer: &PeerId, registration: &Registration) -> bool {
        self.find_provider(peer, &registration.file.id)
            .is_some_and(|(_, provider)| {
                provider.is_complete() == registration.is_complete
                    && self
                        .claims
                        .matches(provider.claim(), &self.names, &registration.into())
            })
    }

    /// Whether a registration may increase the memory use. It does not if the peer has the file and
    /// some registration of the file has the same claim.
    pub(crate) fn may_add_memory(&self, peer: &PeerId, registration: &Registration) -> bool {
        let has_claim = || {
            let file = self.files.find(&registration.file.id)?;
            let claim = self.claims.find(&self.names, &registration.into())?;
            Some(self.makes_claim(file, claim))
        };
        !self.has_file(peer, &registration.file.id) || has_claim() != Some(true)
    }

    /// A live peer as a provider of a file, if it has the file.
    pub(crate) fn provider(&self, peer: &PeerId, file: &FileId) -> Option<Provider> {
        self.find_provider(peer, file)
            .filter(|(_, provider)| self.is_live(*provider))
            .map(|(_, provider)| self.to_provider(provider))
    }

    /// Whether this is the id of a binder.
    pub(crate) fn is_binder(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.is_binder)
    }

    /// The binders of a file: their ids, and the owners that [`Self::add_binder`] got.
    pub(crate) fn binders_of(&self, file: &FileId) -> Vec<(PeerId, Address)> {
        let Some(slot) = self.files.find(file) else {
            return Vec::new();
        };
        let providers = self.files.providers(slot).iter();
        let peers = providers.map(|provider| &self.peers[provider.peer()]);
        peers
            .filter(|peer| peer.is_binder)
            .map(|peer| (peer.id, peer.address.clone()))
            .collect()
    }

    /// The live peers that provide a file.
    pub(crate) fn providers_of(&self, file: &FileId) -> Vec<PeerId> {
        let Some(slot) = self.files.find(file) else {
            return Vec::new();
        };
        let providers = self.files.providers(slot).iter();
        providers
            .filter(|provider| self.is_live(**provider))
            .map(|provider| self.peers[provider.peer()].id)
            .collect()
    }

    /// The slot of a file, and a live peer or a binder among its providers.
    fn find_provider(&self, peer: &PeerId, file: &FileId) -> Option<(u32, ProviderEntry)> {
        let peer = self.slot_of(peer)?;
        let slot = self.files.find(file)?;
        Some((slot, self.files.provider(slot, peer)?))
    }

    /// Whether a provider of a file makes a claim.
    fn makes_claim(&self, file: u32, claim: ClaimRef) -> bool {
        let claims = self.files.claims(file);
        claims.binary_search_by_key(&claim, |&(claim, _)| claim).is_ok()
    }

    pub(super) fn to_provider(&self, provider: ProviderEntry) -> Provider {
        let peer = &self.peers[provider.peer()];
        Provider {
            peer: peer.id,
            address: peer.address.clone(),
            is_complete: provider.is_complete(),
        }
    }

    /// Number of live providers of a file.
    pub(super) fn provider_count(&self, file: u32) -> u64 {
        let providers = self.files.providers(file);
        (providers.len() - self.hidden_count(file, providers)) as u64
    }

    /// How many of a file's providers are not live. Goes through the providers or through all peers
    /// that are not live, whichever are fewer.
    pub(super) fn hidden_count(&self, file: u32, providers: &[ProviderEntry]) -> usize {
        let hidden = self.peers.not_live();
        if hidden.is_empty() {
            return 0;
        }
        if hidden.len() < providers.len() as u64 {
            let has_file = |peer: &u32| self.peers[PeerSlot(*peer)].files.contains(file);
            return hidden.iter().filter(has_file).count();
        }
        let is_hidden = |provider: &&ProviderEntry| !self.is_live(**provider);
        providers.iter().filter(is_hidden).count()
    }

    pub(super) fn is_live(&self, provider: ProviderEntry) -> bool {
        self.peers[provider.peer()].is_live
    }

    /// The hash of a registration, for the digest of its peer.
    pub(super) fn registration_hash(&self, file: u32, provider: ProviderEntry) -> RegistrationHash {
        let claim = self.claims.get(provider.claim());
        let mut names: SmallVec<[&str; 4]> =
            claim.names.iter().map(|&name| self.names.text(name)).collect();
        RegistrationHash::new(
            &self.files.id(file),
            self.claims.sha256(&claim),
            claim.kind,
            provider.is_complete(),
            &mut names,
        )
    }
}
