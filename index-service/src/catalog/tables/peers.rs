//! Peers, live and hidden, and binders. Queries find only live peers.
//!
//! Invariants:
//!
//! - At most one peer with an id is live or a binder; any number may be hidden.
//! - A peer is in `not_live` exactly if it is not live.

use std::{
    hash::BuildHasher as _,
    ops::{Index, IndexMut},
};

use hashbrown::DefaultHashBuilder;
use potluck_core::{
    PeerId,
    model::{Address, SetDigest},
};
use roaring::RoaringBitmap;

use crate::catalog::storage::{paged_slab::Slots, sharded_table::ShardedTable};

/// Maximum slot of a peer: files use the three highest bits and a few values.
pub(crate) const MAX_PEER: u32 = (1 << 29) - 4;

/// Maximum slots that one page of peers visits: a fraction of a millisecond.
const MAX_VISITED: u32 = 10_000;

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
    hasher: DefaultHashBuilder,
    peers: Slots<PeerEntry>,
    by_id: ShardedTable,
    binders: usize,
    /// Hidden peers and binders.
    not_live: RoaringBitmap,
}

impl Peers {
    /// A live peer or a binder.
    pub(crate) fn get(&self, id: &PeerId) -> Option<&PeerEntry> {
        self.slot_of(id).map(|slot| &self[slot])
    }

    /// The slot of a live peer or a binder.
    pub(crate) fn slot_of(&self, id: &PeerId) -> Option<PeerSlot> {
        let hash = self.hasher.hash_one(id);
        let slot = self.by_id.find(hash, |slot| self.peers[slot].id == *id);
        slot.map(PeerSlot)
    }

    /// The ids of the live peers and the binders, in no order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &PeerId> {
        let peers = self.peers.iter();
        peers
            .filter(|peer| peer.is_live || peer.is_binder)
            .map(|peer| &peer.id)
    }

    /// Up to `max` live peers from this slot on, and the slot that follows; `None` after the last one.
    /// Visits at most [`MAX_VISITED`] slots.
    pub(crate) fn live_from(&self, from: u32, max: usize) -> (Vec<&PeerEntry>, Option<u32>) {
        let mut found = Vec::new();
        let end = self.peers.end();
        for slot in from..end {
            if found.len() == max || slot - from == MAX_VISITED {
                return (found, Some(slot));
            }
            found.extend(self.peers.get(slot).filter(|peer| peer.is_live));
        }
        (found, None)
    }

    /// Number of live peers.
    pub(crate) const fn live_count(&self) -> usize {
        self.by_id.len() - self.binders
    }

    /// The hidden peers and the binders.
    pub(crate) const fn not_live(&self) -> &RoaringBitmap {
        &self.not_live
    }

    /// Adds a hidden peer without files.
    pub(crate) fn add_hidden(
        &mut self,
        id: PeerId,
        address: Address,
        host: u32,
        charge: u64,
    ) -> PeerSlot {
        let slot = self.peers.insert(PeerEntry {
            id,
            address,
            host,
            is_live: false,
            is_binder: false,
            files: RoaringBitmap::new(),
            digest: SetDigest::default(),
            charge,
        });
        assert!(slot <= MAX_PEER, "too many peers");
        self.not_live.insert(slot);
        PeerSlot(slot)
    }

    /// Makes a hidden peer live. No other peer with its id may be live.
    pub(crate) fn publish(&mut self, slot: PeerSlot) {
        self[slot].is_live = true;
        self.not_live.remove(slot.0);
        self.index(slot);
    }

    /// Makes a hidden peer a binder. No other peer with its id may be live or a binder.
    pub(crate) fn make_binder(&mut self, slot: PeerSlot) {
        self[slot].is_binder = true;
        self.binders += 1;
        self.index(slot);
    }

    fn index(&mut self, slot: PeerSlot) {
        let id = self[slot].id;
        debug_assert_eq!(self.slot_of(&id), None, "two peers with one id");
        let Self {
            hasher, peers, by_id, ..
        } = self;
        by_id.insert(hasher.hash_one(id), slot.0, |slot| {
            hasher.hash_one(peers[slot].id)
        });
    }

    /// Hides a live peer or a binder.
    pub(crate) fn hide(&mut self, id: &PeerId) -> Option<PeerSlot> {
        let slot = self.slot_of(id)?;
        self.by_id.remove(self.hasher.hash_one(id), slot.0);
        if std::mem::take(&mut self[slot].is_binder) {
            self.binders -= 1;
        }
        self[slot].is_live = false;
        self.not_live.insert(slot.0);
        Some(slot)
    }

    /// Removes a hidden peer.
    pub(crate) fn remove(&mut self, slot: PeerSlot) -> PeerEntry {
        self.not_live.remove(slot.0);
        self.peers.remove(slot.0)
    }
}

impl Index<PeerSlot> for Peers {
    type Output = PeerEntry;

    fn index(&self, slot: PeerSlot) -> &PeerEntry {
        &self.peers[slot.0]
    }
}

impl IndexMut<PeerSlot> for Peers {
    fn index_mut(&mut self, slot: PeerSlot) -> &mut PeerEntry {
        &mut self.peers[slot.0]
    }
}
