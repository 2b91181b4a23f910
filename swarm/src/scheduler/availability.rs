//! Peers that join and leave, and their availability.

use super::Swarm;
use crate::{
    state::{Eligibility, Peer},
    types::{PeerKey, RequestId, Time},
};
use potluck_core::{availability::Availability, bitfield::Bitfield, model::Distance};

impl Swarm {
    /// Replaces everything known about what a peer has and is fetching. An availability with a
    /// different number of units is ignored, as are peers that did not join.
    pub fn availability(&mut self, peer: PeerKey, units: &Availability, now: Time) {
        self.replace_availability(peer, units);
        self.record_partial_progress(peer, now);
        self.after_event();
    }

    /// Applies changes to a peer's availability: units that it now has, that it began to fetch, and
    /// that it stopped fetching without having them. Units out of range are ignored, as are changes
    /// before the first complete availability.
    pub fn availability_changed(
        &mut self,
        peer: PeerKey,
        have: &[u32],
        fetching: &[u32],
        abandoned: &[u32],
        now: Time,
    ) {
        let count = self.have.len();
        let known = self
            .peers
            .get(&peer)
            .is_some_and(|peer| peer.is_availability_known && !peer.is_banned());
        if known {
            for &unit in have.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, false);
                self.set_have(peer, unit);
                self.reopen(peer, unit);
            }
            for &unit in fetching.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, true);
            }
            for &unit in abandoned.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, false);
            }
            if !abandoned.is_empty() {
                self.wake_reserves();
                self.wake_distant();
            }
            if !(have.is_empty() && fetching.is_empty() && abandoned.is_empty()) {
                self.record_partial_progress(peer, now);
            }
            self.mark_ready(peer);
        }
        self.after_event();
    }

    /// A peer announced a change. If the peer is partial, the crowd makes progress.
    fn record_partial_progress(&mut self, key: PeerKey, now: Time) {
        if self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.is_availability_known && !peer.is_complete())
        {
            (self.partial_progress, self.stalled_crowd) = ((now, 0), false);
        }
    }

    pub(crate) fn add_peer(&mut self, key: PeerKey, now: Time) {
        let units = self.have.len();
        let peer = self.peers.entry(key).or_insert_with(|| Peer::new(units));
        peer.has_joined = true;
        peer.failures = 0;
        if matches!(peer.eligibility, Eligibility::BackedOff { .. }) {
            peer.eligibility = Eligibility::Open;
        }
        self.arm_timer(key, now);
        self.mark_ready(key);
    }

    pub(crate) fn remove_peer(&mut self, key: PeerKey, now: Time) {
        self.cancel_requests_of(key, now);
        self.forget_availability(key);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.has_joined = false;
        if let Some(at) = peer.timer.take() {
            self.timers.remove(&(at, key));
        }
        // The ban and its history are kept after the peer leaves.
        if peer.bans == 0 {
            self.peers.remove(&key);
            return;
        }
        if !peer.is_banned() {
            let (standing, bans, probation) = (Eligibility::Open, peer.bans, peer.probation);
            let units = self.have.len();
            *peer = Peer {
                eligibility: standing,
                bans,
                probation,
                bytes: peer.bytes,
                verified_bytes: peer.verified_bytes,
                last_failure: peer.last_failure,
                distance: peer.distance,
                ..Peer::new(units)
            };
        }
        self.arm_timer(key, now);
    }

    /// Cancels all requests to this peer.
    pub(crate) fn cancel_requests_of(&mut self, key: PeerKey, now: Time) {
        let ids: Vec<RequestId> = self
            .peers
            .get(&key)
            .map(|peer| peer.requests.clone())
            .unwrap_or_default();
        ids.into_iter().for_each(|id| self.cancel_request(id, now));
    }

    pub(crate) fn replace_availability(&mut self, key: PeerKey, units: &Availability) {
        let fits = units.have.len() == self.have.len() && units.fetching.len() == self.have.len();
        if !fits || self.peers.get(&key).is_none_or(Peer::is_banned) {
            return;
        }
        self.forget_availability(key);
        let complete = units.have.is_full();
        let distance = self.distance(key);
        let mut useful = 0;
        if !complete {
            for unit in units.have.ones() {
                self.partial_providers[unit as usize] += 1;
                self.count_unit(distance, unit, true);
                useful += u32::from(self.rarity.contains(unit));
            }
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.is_availability_known = true;
        peer.have = units.have.clone();
        peer.useful_units = useful;
        self.count_peer_kind(distance, complete, true);
        for unit in units.fetching.ones() {
            self.set_fetching(key, unit, true);
        }
        self.mark_ready(key);
    }

    /// Forgets what a peer has and is fetching; its units no longer count.
    pub(crate) fn forget_availability(&mut self, key: PeerKey) {
        let units = self.have.len();
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_availability_known) else {
            return;
        };
        let (complete, distance) = (peer.is_complete(), peer.distance);
        let have = std::mem::replace(&mut peer.have, Bitfield::new(units));
        let fetching = std::mem::replace(&mut peer.fetching, Bitfield::new(units));
        peer.is_availability_known = false;
        peer.useful_units = 0;
        peer.refused.clear();
        peer.refused_missing = 0;
        self.count_peer_kind(distance, complete, false);
        if !complete {
            for unit in have.ones() {
                self.partial_providers[unit as usize] -= 1;
                self.count_unit(distance, unit, false);
            }
        }
        for unit in fetching.ones() {
            self.count_unit(distance, unit, false);
        }
        self.wake_reserves();
        self.wake_distant();
    }

    /// A known peer has a unit. Once the peer is complete, its units are no longer counted one by
    /// one.
    fn set_have(&mut self, key: PeerKey, unit: u32) {
        let missing = self.rarity.contains(unit);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.have.set(unit, true) {
            return;
        }
        let distance = peer.distance;
        if !peer.is_complete() {
            peer.useful_units += u32::from(missing);
            self.partial_providers[unit as usize] += 1;
            self.count_unit(distance, unit, true);
            return;
        }
        peer.useful_units = 0;
        let others: Vec<u32> = peer.have.ones().filter(|&other| other != unit).collect();
        self.count_peer_kind(distance, false, false);
        self.count_peer_kind(distance, true, true);
        for other in others {
            self.partial_providers[other as usize] -= 1;
            self.count_unit(distance, other, false);
        }
    }

    fn set_fetching(&mut self, key: PeerKey, unit: u32, value: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // The units that a partial peer has are counted already.
        if value && peer.have.get(unit) && !peer.is_complete() || !peer.fetching.set(unit, value) {
            return;
        }
        let distance = peer.distance;
        self.count_unit(distance, unit, value);
    }

    /// One more or one fewer peer at this distance has or fetches the unit.
    fn count_unit(&mut self, distance: Distance, unit: u32, more: bool) {
        if more {
            self.rarity.increment(unit, &mut self.rng);
        } else {
            self.rarity.decrement(unit, &mut self.rng);
        }
        let is_missing = self.rarity.contains(unit);
        self.nearby
            .count_unit((distance, unit), more, is_missing, &mut self.rng);
    }

    fn count_peer_kind(&mut self, distance: Distance, complete: bool, more: bool) {
        self.nearby.count_peer(distance, complete, more);
        let count = if complete {
            &mut self.complete_peers
        } else {
            &mut self.partial_peers
        };
        if more { *count += 1 } else { *count -= 1 }
    }
}
