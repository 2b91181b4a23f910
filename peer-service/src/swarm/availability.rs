//! Peers that come and go, and what they have.

use super::{
    PeerKey, RequestId, Swarm, Time,
    peer::{Peer, Standing},
};
use crate::{bits::Bits, offer::Units};

impl Swarm {
    /// All that a peer has and is fetching, in place of whatever was known. Units of another number are no answer to what
    /// was asked and are ignored; so are peers that did not join.
    pub fn availability(&mut self, peer: PeerKey, units: &Units, now: Time) {
        self.replace(peer, units);
        self.heard(peer, now);
        self.settle();
    }

    /// What changed since: units that it has now, that it began to fetch, and that it gave up fetching. Units out of range
    /// are ignored, as is a change before the first whole.
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
            .is_some_and(|peer| peer.known && !peer.is_banned());
        if known {
            for &unit in have.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, false);
                self.set_have(peer, unit, true);
            }
            for &unit in fetching.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, true);
            }
            for &unit in abandoned.iter().filter(|&&unit| unit < count) {
                self.set_fetching(peer, unit, false);
            }
            if !(have.is_empty() && fetching.is_empty() && abandoned.is_empty()) {
                self.heard(peer, now);
            }
            self.wake(peer);
        }
        self.settle();
    }

    /// A peer told of something new: if it is partial, it gets further.
    fn heard(&mut self, key: PeerKey, now: Time) {
        if self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.known && !peer.is_complete())
        {
            (self.news, self.quiet) = ((now, 0), false);
        }
    }

    pub(super) fn join(&mut self, key: PeerKey, now: Time) {
        let units = self.have.len();
        let peer = self.peers.entry(key).or_insert_with(|| Peer::new(units));
        peer.failures = 0;
        if matches!(peer.standing, Standing::BackedOff { .. }) {
            peer.standing = Standing::Open;
        }
        self.arm(key, now);
        self.wake(key);
    }

    pub(super) fn part(&mut self, key: PeerKey, now: Time) {
        self.drop_requests_of(key, now);
        self.retract(key);
        if let Some(peer) = self.peers.get_mut(&key) {
            if let Some(at) = peer.wake.take() {
                self.timers.remove(&(at, key));
            }
            // A ban outlives the visit.
            if !peer.is_banned() {
                self.peers.remove(&key);
            }
        }
    }

    /// Cancels whatever this peer is asked for.
    pub(super) fn drop_requests_of(&mut self, key: PeerKey, now: Time) {
        let ids: Vec<RequestId> = self
            .peers
            .get(&key)
            .map(|peer| peer.requests.clone())
            .unwrap_or_default();
        ids.into_iter().for_each(|id| self.cancel(id, now));
    }

    fn replace(&mut self, key: PeerKey, units: &Units) {
        let fits = units.have.len() == self.have.len() && units.fetching.len() == self.have.len();
        if !fits || self.peers.get(&key).is_none_or(Peer::is_banned) {
            return;
        }
        self.retract(key);
        let complete = units.have.is_full();
        let mut useful = 0;
        if !complete {
            for unit in units.have.ones() {
                self.holders[unit as usize] += 1;
                self.rarity.increment(unit, &mut self.rng);
                useful += u32::from(self.rarity.contains(unit));
            }
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.known = true;
        peer.have = units.have.clone();
        peer.useful = useful;
        self.count_kind(complete, true);
        for unit in units.fetching.ones() {
            self.set_fetching(key, unit, true);
        }
        self.wake(key);
    }

    /// Forgets all that a peer has: it counts for nothing any more.
    pub(super) fn retract(&mut self, key: PeerKey) {
        let units = self.have.len();
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.known) else {
            return;
        };
        let complete = peer.is_complete();
        let have = std::mem::replace(&mut peer.have, Bits::new(units));
        let fetching = std::mem::replace(&mut peer.fetching, Bits::new(units));
        peer.known = false;
        peer.useful = 0;
        self.count_kind(complete, false);
        if !complete {
            for unit in have.ones() {
                self.holders[unit as usize] -= 1;
                self.rarity.decrement(unit, &mut self.rng);
            }
        }
        for unit in fetching.ones() {
            self.rarity.decrement(unit, &mut self.rng);
        }
    }

    /// A known peer has a unit or not. Turning complete, or no longer being so, counts or uncounts all its units at once.
    pub(super) fn set_have(&mut self, key: PeerKey, unit: u32, value: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let was_complete = peer.is_complete();
        if !peer.have.set(unit, value) {
            return;
        }
        let is_complete = peer.is_complete();
        if was_complete != is_complete {
            let others: Vec<u32> = peer.have.ones().filter(|&other| other != unit).collect();
            peer.useful = 0;
            self.count_kind(was_complete, false);
            self.count_kind(is_complete, true);
            others
                .into_iter()
                .for_each(|other| self.count_have(key, other, was_complete));
        } else {
            self.count_have(key, unit, value);
        }
    }

    /// Counts or uncounts one unit of a partial peer.
    fn count_have(&mut self, key: PeerKey, unit: u32, value: bool) {
        let missing = self.rarity.contains(unit);
        if value {
            self.holders[unit as usize] += 1;
            self.rarity.increment(unit, &mut self.rng);
        } else {
            self.holders[unit as usize] -= 1;
            self.rarity.decrement(unit, &mut self.rng);
        }
        if let Some(peer) = self
            .peers
            .get_mut(&key)
            .filter(|peer| missing && !peer.is_complete())
        {
            if value { peer.useful += 1 } else { peer.useful -= 1 }
        }
    }

    fn set_fetching(&mut self, key: PeerKey, unit: u32, value: bool) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // What a partial peer has is counted already.
        if value && peer.have.get(unit) && !peer.is_complete() || !peer.fetching.set(unit, value) {
            return;
        }
        if value {
            self.rarity.increment(unit, &mut self.rng);
        } else {
            self.rarity.decrement(unit, &mut self.rng);
        }
    }

    fn count_kind(&mut self, complete: bool, more: bool) {
        let count = if complete {
            &mut self.complete_peers
        } else {
            &mut self.partial_peers
        };
        if more { *count += 1 } else { *count -= 1 }
    }
}
