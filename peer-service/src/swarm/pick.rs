//! Choosing what a peer is asked for next.

use rand::RngExt;

use super::{PeerKey, Swarm, Time};

/// How many contested units are looked through for one that a peer has.
const CONTESTED_LOOK: usize = 64;

impl Swarm {
    /// The peer is to be looked at.
    pub(super) fn wake(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.queued, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Peers that waited for the transfer's limits may try again.
    pub(super) fn unpark(&mut self) {
        self.ready.extend(self.parked.drain(..));
    }

    /// Makes the next request, if one is due; each peer in turn makes one.
    pub(super) fn pick(&mut self, now: Time) {
        while self.actions.is_empty() {
            let key = if let Some(key) = self.ready.pop_front() {
                key
            } else if !self.parked.is_empty()
                && self.budget_left()
                && !self.held_back(now)
                && !self.crowd_full()
            {
                // At random: in a crowd each peer comes to be asked, not the first few again and again.
                self.parked
                    .swap_remove(self.rng.random_range(0..self.parked.len()))
            } else {
                break;
            };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.queued = false;
                self.ask(key, now);
            }
        }
        self.arm_tick(now);
    }

    fn ask(&mut self, key: PeerKey, now: Time) {
        let crowd = self.is_crowd();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.has_room(&self.config, crowd, self.longest) {
            return;
        }
        let idle = peer.requests.is_empty();
        if peer.probation.is_some() {
            return self.ask_on_probation(key, now);
        }
        if let Some(unit) = self.contested_for(key) {
            self.race(key, unit, now);
        } else if let Some(unit) = self.missing_for(key) {
            if !self.budget_left() {
                if !self.relieve(key, now) {
                    return self.park(key);
                }
            } else if self.held_back(now) || idle && self.crowd_full() {
                return self.park(key);
            } else {
                self.open(key, unit, now);
            }
        } else if !self.rarity.is_empty() || !self.relieve(key, now) {
            return;
        }
        self.wake(key);
    }

    /// Whether any request fits the budget now.
    pub(super) fn budget_left(&self) -> bool {
        self.requests.is_empty() || self.in_flight_bytes + self.longest <= self.config.max_in_flight_bytes
    }

    fn crowd_full(&self) -> bool {
        self.is_crowd() && self.active_peers >= self.config.crowd_peers
    }

    fn park(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.queued, true)
        {
            self.parked.push(key);
        }
    }

    /// The rarest missing unit that the peer has; where nobody else downloads, the neighbour of its last one if that is as
    /// rare, so that the driver can ask for both in one call and the peer reads on.
    pub(super) fn missing_for(&self, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        if !peer.known || self.askable(peer) == 0 {
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

    fn contested_for(&self, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        let fits = |unit: &u32| peer.serves(*unit) && !self.is_racing(key, *unit);
        self.contested.iter().copied().take(CONTESTED_LOOK).find(fits)
    }

    /// Whether this peer is asked for the unit already.
    pub(super) fn is_racing(&self, key: PeerKey, unit: u32) -> bool {
        self.flights
            .get(&unit)
            .is_some_and(|racers| racers.iter().any(|id| self.requests[id].peer == key))
    }
}
