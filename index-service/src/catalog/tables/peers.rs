//! Peers, live and hidden, and binders. Queries find only live peers.
//!
//! Invariant: at most one peer with an id is live or a binder; any number may be hidden.

use std::{
    collections::HashMap,
    ops::{Index, IndexMut},
};

use potluck_core::{
    PeerId,
    model::{Address, SetDigest},
};
use roaring::RoaringBitmap;
use slab::Slab;

/// The slot of a peer, live or hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerSlot(pub(crate) u32);

/// A peer.
#[derive(Debug)]
pub(crate) struct PeerEntry {
    pub(crate) id: PeerId,
    pub(crate) address: Address,
    /// Slot of its host.
    pub(crate) host: u32,
    pub(crate) is_live: bool,
    /// Whether it only binds names to files: it is indexed by its id, but it provides nothing.
    pub(crate) is_binder: bool,
    /// Slots of its files.
    pub(crate) files: RoaringBitmap,
    /// The digest of its registrations.
    pub(crate) digest: SetDigest,
    /// Bytes charged for the peer and its registrations.
    pub(crate) charge: u64,
}

/// The peers. Live ones and binders are indexed by id.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    peers: Slab<PeerEntry>,
    by_id: HashMap<PeerId, PeerSlot>,
    binders: usize,
}

impl Peers {
    /// A live peer or a binder.
    pub(crate) fn get(&self, id: &PeerId) -> Option<&PeerEntry> {
        self.slot_of(id).map(|slot| &self[slot])
    }

    /// The slot of a live peer or a binder.
    pub(crate) fn slot_of(&self, id: &PeerId) -> Option<PeerSlot> {
        self.by_id.get(id).copied()
    }

    /// The ids of the live peers and the binders, in no order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &PeerId> {
        self.by_id.keys()
    }

    /// Number of live peers.
    pub(crate) fn live_count(&self) -> usize {
        self.by_id.len() - self.binders
    }

    /// Whether any peer is hidden or a binder.
    pub(crate) fn has_hidden(&self) -> bool {
        self.peers.len() > self.live_count()
    }

    /// Adds a hidden peer without files.
    pub(crate) fn add_hidden(
        &mut self,
        id: PeerId,
        address: Address,
        host: u32,
        charge: u64,
    ) -> PeerSlot {
        PeerSlot(self.peers.insert(PeerEntry {
            id,
            address,
            host,
            is_live: false,
            is_binder: false,
            files: RoaringBitmap::new(),
            digest: SetDigest::default(),
            charge,
        }) as u32)
    }

    /// Makes a hidden peer live. No other peer with its id may be live.
    pub(crate) fn publish(&mut self, slot: PeerSlot) {
        self[slot].is_live = true;
        let id = self[slot].id;
        let previous = self.by_id.insert(id, slot);
        debug_assert_eq!(previous, None, "two live peers with one id");
    }

    /// Makes a hidden peer a binder. No other peer with its id may be live or a binder.
    pub(crate) fn make_binder(&mut self, slot: PeerSlot) {
        self[slot].is_binder = true;
        self.binders += 1;
        let id = self[slot].id;
        let previous = self.by_id.insert(id, slot);
        debug_assert_eq!(previous, None, "a binder with the id of another peer");
    }

    /// Hides a live peer or a binder.
    pub(crate) fn hide(&mut self, id: &PeerId) -> Option<PeerSlot> {
        let slot = self.by_id.remove(id)?;
        if std::mem::take(&mut self[slot].is_binder) {
            self.binders -= 1;
        }
        self[slot].is_live = false;
        Some(slot)
    }

    /// Removes a hidden peer.
    pub(crate) fn remove(&mut self, slot: PeerSlot) -> PeerEntry {
        self.peers.remove(slot.0 as usize)
    }
}

impl Index<PeerSlot> for Peers {
    type Output = PeerEntry;

    fn index(&self, slot: PeerSlot) -> &PeerEntry {
        &self.peers[slot.0 as usize]
    }
}

impl IndexMut<PeerSlot> for Peers {
    fn index_mut(&mut self, slot: PeerSlot) -> &mut PeerEntry {
        &mut self.peers[slot.0 as usize]
    }
}
