//! Chooses the next unit to request from a peer.

use rand::RngExt;

use super::Swarm;
use crate::types::{PeerKey, Time};

/// Maximum number of open units to search for one that a peer has.
const MAX_OPEN_UNITS_SCANNED: usize = 64;

impl Swarm {
    /// Queues the peer to be examined for a new request.
    pub(crate) fn mark_ready(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Queues the peers that waited for the download's limits.
    pub(crate) fn wake_blocked(&mut self) {
        self.ready.extend(self.blocked.drain(..));
    }

    /// Makes the next request, if one is due. Peers are served round-robin, one request each.
    pub(crate) fn pick_next(&mut self, now: Time) {
        while self.actions.is_empty() {
            let key = if let Some(key) = self.ready.pop_front() {
                key
            } else if !self.blocked.is_empty()
                && self.has_budget_left()
                && !self.has_enough_requested(now)
                && !self.is_crowd_full()
            {
                // Choose at random: in a crowd every peer gets requests eventually, not always the
                // same few.
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
        let reserve = self.peers.get(&key).filter(|peer| peer.is_reserve);
        let least = reserve
            .map(|peer| self.reserve_pipeline(peer))
            .unwrap_or_default();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        // A reserve has an uplink of its own, which the crowd does not share.
        let (is_reserve, crowd) = (peer.is_reserve, crowd && !peer.is_reserve);
        if !peer.has_room(&self.config, crowd, self.longest_unit, least) {
            return;
        }
        let idle = peer.requests.is_empty();
        if peer.probation.is_some() {
            return self.request_on_probation(key, now);
        }
        let open = self.pick_open_unit(key);
        if let Some(unit) = open.filter(|_| !is_reserve || self.may_ask_reserve(key, now)) {
            self.hedge(key, unit, now);
        } else if let Some(unit) = match is_reserve {
            true => self.pick_for_reserve(key, now),
            false => self.pick_by_distance(key, now),
        } {
            if !self.has_budget_left() {
                if is_reserve || !self.rebalance(key, now) {
                    return self.block(key);
                }
            } else if self.has_enough_requested(now) || idle && self.is_crowd_full() {
                return self.block(key);
            } else {
                self.open_request(key, unit, now);
            }
        } else if is_reserve || !self.rarity.is_empty() || !self.rebalance(key, now) {
            return;
        }
        self.mark_ready(key);
    }

    /// Whether another request fits the budget now.
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

    /// The rarest missing unit that the peer has, or the first one for a reader. Outside a crowd, and
    /// of a reserve, the unit after its last one is preferred if it is equally rare: the driver can
    /// request both in one call, and the peer reads sequentially. In a crowd each peer so takes a
    /// stretch of its own from the reserve, and two rarely choose the same unit before they learn of
    /// each other's choice.
    pub(crate) fn pick_missing(&self, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        if !peer.is_availability_known || self.requestable_units(peer) == 0 {
            return None;
        }
        let mut served = self.rarity.rarest().filter(|&unit| peer.serves(unit));
        if self.window_end.is_some() {
            // A reserve is asked for what nobody has or fetches, as long as there is any.
            let unprovided = |&unit: &u32| self.rarity.count(unit) == 0;
            return match peer.is_reserve && self.rarity.uncounted() > 0 {
                true => served.filter(unprovided).min(),
                false => served.min(),
            };
        }
        let unit = served.next()?;
        let next = peer.cursor.map(|cursor| cursor + 1).filter(|&next| {
            (peer.is_reserve || !self.is_crowd())
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

    /// Whether the unit is in flight from this peer already.
    pub(crate) fn is_requested_from(&self, key: PeerKey, unit: u32) -> bool {
        self.unit_requests
            .get(&unit)
            .is_some_and(|requests| requests.iter().any(|id| self.requests[id].peer == key))
    }
}
