//! Choosing what a peer is asked for next.

use rand::RngExt;

use crate::{PeerKey, Swarm, Time};

/// How many contested units are looked through for one that a peer has.
const MAX_OPEN_UNITS_SCANNED: usize = 64;

impl Swarm {
    /// The peer is to be looked at.
    pub(crate) fn mark_ready(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Peers that waited for the transfer's limits may try again.
    pub(crate) fn wake_blocked(&mut self) {
        self.ready.extend(self.blocked.drain(..));
    }

    /// Makes the next request, if one is due; each peer in turn makes one.
    pub(crate) fn pick_next(&mut self, now: Time) {
        while self.actions.is_empty() {
            let key = if let Some(key) = self.ready.pop_front() {
                key
            } else if !self.blocked.is_empty()
                && self.has_budget_left()
                && !self.has_enough_requested(now)
                && !self.is_crowd_full()
            {
                // At random: in a crowd each peer comes to be asked, not the first few again and again.
                self.blocked
                    .swap_remove(self.rng.random_range(0..self.blocked.len()))
            } else {
                break;
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.is_ready = false;
                self.request_from(key, now);
            }
        }
        self.arm_endgame_timer(now);
    }

    fn request_from(&mut self, key: PeerKey, now: Time) {
        let crowd = self.is_crowd();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.has_room(&self.config, crowd, self.longest_unit) {
            return;
        }
        let idle = peer.requests.is_empty();
        if peer.probation.is_some() {
            return self.ask_on_probation(key, now);
        }
        if let Some(unit) = self.pick_open_unit(key) {
            self.hedge(key, unit, now);
        } else if let Some(unit) = self.pick_missing(key) {
            if !self.has_budget_left() {
                if !self.rebalance(key, now) {
                    return self.block(key);
                }
            } else if self.has_enough_requested(now) || idle && self.is_crowd_full() {
                return self.block(key);
            } else {
                self.open_request(key, unit, now);
            }
        } else if !self.rarity.is_empty() || !self.rebalance(key, now) {
            return;
        }
        self.mark_ready(key);
    }

    /// Whether any request fits the budget now.
    pub(crate) fn has_budget_left(&self) -> bool {
        self.requests.is_empty()
            || self.in_flight_bytes + self.longest_unit <= self.config.max_in_flight_bytes
    }

    fn is_crowd_full(&self) -> bool {
        self.is_crowd() && self.active_peers >= self.config.crowd_peers
    }

    fn block(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.is_ready, true)
        {
            self.blocked.push(key);
        }
    }

    /// The rarest missing unit that the peer has; where nobody else downloads, the neighbour of its last one if that is as
    /// rare, so that the driver can ask for both in one call and the peer reads on.
    pub(crate) fn pick_missing(&self, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        if !peer.is_availability_known || self.askable(peer) == 0 {
            return None;
        }
        let unit = self.rarity.rarest().find(|&unit| peer.serves(unit))?;
        let next = peer.cursor.map(|cursor| cursor + 1).filter(|&next| {
            !self.is_crowd()
                && peer.serves(next)
                && self.rarity.contains(next)
                && self.rarity.count(next) == self.rarity.count(unit)
        });
        Some(next.unwrap_or(unit))
    }

    fn pick_open_unit(&self, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        let fits = |unit: &u32| peer.serves(*unit) && !self.is_requested_from(key, *unit);
        self.open_units
            .iter()
            .copied()
            .take(MAX_OPEN_UNITS_SCANNED)
            .find(fits)
    }

    /// Whether this peer is asked for the unit already.
    pub(crate) fn is_requested_from(&self, key: PeerKey, unit: u32) -> bool {
        self.unit_requests
            .get(&unit)
            .is_some_and(|requests| requests.iter().any(|id| self.requests[id].peer == key))
    }
}
