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
                self.set_have(peer, unit);
                self.reopen(peer, unit);
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
        peer.is_here = true;
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
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.is_here = false;
        if let Some(at) = peer.wake.take() {
            self.timers.remove(&(at, key));
        }
        // A ban outlives the visit, and so does what is known of a peer that was banned.
        if peer.bans == 0 {
            self.peers.remove(&key);
            return;
        }
        if !peer.is_banned() {
            let (standing, bans, probation) = (Standing::Open, peer.bans, peer.probation);
            let units = self.have.len();
            *peer = Peer {
                standing,
                bans,
                probation,
                bytes: peer.bytes,
                verified_bytes: peer.verified_bytes,
                last_failure: peer.last_failure,
                ..Peer::new(units)
            };
        }
        self.arm(key, now);
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
        peer.refused.clear();
        peer.withheld = 0;
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

    /// A known peer has a unit. Once it is complete, none of its units is counted by itself any
    /// more.
    fn set_have(&mut self, key: PeerKey, unit: u32) {
        let missing = self.rarity.contains(unit);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.have.set(unit, true) {
            return;
        }
        if !peer.is_complete() {
            peer.useful += u32::from(missing);
            self.holders[unit as usize] += 1;
            self.rarity.increment(unit, &mut self.rng);
            return;
        }
        peer.useful = 0;
        let others: Vec<u32> = peer.have.ones().filter(|&other| other != unit).collect();
        self.count_kind(false, false);
        self.count_kind(true, true);
        for other in others {
            self.holders[other as usize] -= 1;
            self.rarity.decrement(other, &mut self.rng);
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
