//! Moves work away from slow peers.
//!
//! Units of stalled peers may be fetched by others at any time. In the endgame, so may every unit
//! that another peer would finish much sooner. Duplicate bytes are bounded: a unit has at most two
//! live requests, and a request without any received byte is stolen instead of hedged. A request is
//! stolen only once; under load a unit could otherwise move between peers forever.

use super::Swarm;
use crate::{
    config::{ENDGAME_TICK, MAX_REQUESTS_PER_UNIT},
    state::{Peer, Request},
    types::{PeerKey, RequestId, Time},
};

/// A request without received bytes is stolen by a peer that is faster by this factor.
const STEAL_FACTOR: f64 = 1.5;

/// A request that receives bytes is hedged by a peer that is faster by this factor: the unit's
/// bytes may arrive twice.
const HEDGE_FACTOR: f64 = 2.0;

/// If the budget is exhausted, a request is cancelled in favour of a peer that is faster by this
/// factor; the bytes received so far are lost.
const REBALANCE_FACTOR: f64 = 3.0;

/// Minimum gain in seconds: below it, a cancel message arrives too late.
const MIN_GAIN: f64 = 0.02;

impl Swarm {
    /// Whether every missing unit is in flight.
    fn is_endgame(&self) -> bool {
        self.rarity.is_empty() && !self.unit_requests.is_empty()
    }

    pub(crate) fn arm_endgame_timer(&mut self, now: Time) {
        let is_limited = !self.has_budget_left() || self.has_enough_requested(now);
        let starved = is_limited && !self.blocked.is_empty();
        if !(self.is_endgame() || starved) {
            self.endgame_tick = None;
        } else if self.endgame_tick.is_none() {
            self.endgame_tick = Some(now + ENDGAME_TICK);
        }
    }

    /// The estimates have aged: lets every peer look for work to take over.
    pub(crate) fn run_endgame_tick(&mut self) {
        self.endgame_tick = None;
        self.wake_blocked();
        for (&key, peer) in &mut self.peers {
            if peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    /// Opens a unit to other peers once every peer that it was requested from is stalled.
    pub(crate) fn open_to_others(&mut self, unit: u32) {
        let stalls = |id: &RequestId| {
            let request = &self.requests[id];
            request.outstanding_bytes > 0 && self.peers[&request.peer].is_stalled
        };
        let open = self.unit_requests.get(&unit).is_some_and(|requests| {
            let has_room = requests.len() < MAX_REQUESTS_PER_UNIT;
            requests.iter().all(stalls) && (has_room || self.request_without_bytes(unit).is_some())
        });
        if open && self.open_units.insert(unit) {
            self.wake_blocked();
            for (&key, peer) in &mut self.peers {
                let may_serve = peer.serves(unit) && peer.is_open();
                if may_serve && !std::mem::replace(&mut peer.is_ready, true) {
                    self.ready.push_back(key);
                }
            }
        }
    }

    /// Requests an open unit from one more peer. If the unit has too many requests or the budget is
    /// exhausted, the new request replaces one of a stalled peer. A replaced peer that never sent a
    /// byte is backed off as after a timeout, so that a few silent peers do not alternate.
    pub(crate) fn hedge(&mut self, key: PeerKey, unit: u32, now: Time) {
        let requests = self.unit_requests.get(&unit).map_or(&[][..], Vec::as_slice);
        if requests.len() >= MAX_REQUESTS_PER_UNIT || !self.has_budget_left() {
            let Some(id) = self
                .request_without_bytes(unit)
                .or_else(|| requests.first().copied())
            else {
                return;
            };
            self.counters.steals += 1;
            if self.requests[&id].received == 0 {
                self.time_out_request(id, now);
            } else {
                self.cancel_request(id, now);
            }
        }
        self.open_request(key, unit, now);
    }

    /// A request for this unit without any received byte.
    fn request_without_bytes(&self, unit: u32) -> Option<RequestId> {
        self.unit_requests
            .get(&unit)?
            .iter()
            .copied()
            .find(|id| self.requests[id].received == 0)
    }

    /// Cancels a request and makes a new one for its unit to another peer.
    fn steal(&mut self, id: RequestId, by: PeerKey, now: Time) {
        let Request { peer, unit, sent, .. } = self.requests[&id];
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.estimate
                .outpaced(self.unit_lens[unit as usize], now.saturating_sub(sent));
        }
        self.counters.steals += 1;
        self.cancel_request(id, now);
        self.open_request(by, unit, now);
        if let Some(id) = self.unit_requests.get(&unit).and_then(|requests| requests.last()) {
            self.requests
                .entry(*id)
                .and_modify(|request| request.stolen = true);
        }
    }

    /// Gives an idle peer the request that gains the most time. Returns whether there was one.
    /// Never acts while our own rate limit is the bottleneck: no other peer would be faster.
    pub(crate) fn rebalance(&mut self, key: PeerKey, now: Time) -> bool {
        if self.is_locally_throttled(now) {
            return false;
        }
        let starved = !self.has_budget_left();
        let Some((id, unit)) = self.slowest_request(key, now) else {
            return false;
        };
        if starved || self.should_steal(id) {
            self.steal(id, key, now);
        } else {
            self.open_request(key, unit, now);
        }
        true
    }

    /// The request that would take longest at its current peer and that this peer would finish
    /// sooner by enough. Only units with a single request are considered.
    fn slowest_request(&self, by: PeerKey, now: Time) -> Option<(RequestId, u32)> {
        let is_starved = !self.has_budget_left();
        let me = self.peers.get(&by)?;
        let latency = me.estimate.latency().unwrap_or(0.0);
        let mine = |len: u64| {
            let bytes = me.outstanding_bytes + len;
            Some(me.estimate.seconds_for(bytes, now)? + latency)
        };
        let is_worth = |theirs: f64, mine: f64, factor: f64| theirs > mine * factor + MIN_GAIN;
        let min = mine(0)?;
        let mut slowest: Option<(f64, RequestId, u32)> = None;
        for (&other, peer) in &self.peers {
            let Some(&oldest) = peer.requests.first() else {
                continue;
            };
            if other == by || peer.outstanding_bytes == 0 {
                continue;
            }
            // Skip a peer whose requests all finish soon enough, without looking at each.
            let longest = self.estimated_seconds(peer, peer.outstanding_bytes, oldest, now);
            let least_factor = if is_starved {
                REBALANCE_FACTOR
            } else {
                STEAL_FACTOR
            };
            let is_slowest = slowest.is_none_or(|(theirs, ..)| longest > theirs);
            if !is_slowest || !is_worth(longest, min, least_factor) {
                continue;
            }
            let mut outstanding = 0;
            for &id in &peer.requests {
                let request = &self.requests[&id];
                let unit = request.unit;
                outstanding += request.outstanding_bytes;
                let theirs = self.estimated_seconds(peer, outstanding, id, now);
                let factor = match self.should_steal(id) {
                    _ if is_starved => REBALANCE_FACTOR,
                    true => STEAL_FACTOR,
                    false => HEDGE_FACTOR,
                };
                if request.outstanding_bytes > 0
                    && !(is_starved && request.stolen)
                    && slowest.is_none_or(|(slowest, ..)| theirs > slowest)
                    && is_worth(theirs, mine(self.unit_lens[unit as usize])?, factor)
                    && me.serves(unit)
                    && self
                        .unit_requests
                        .get(&unit)
                        .is_some_and(|requests| requests.len() == 1)
                {
                    slowest = Some((theirs, id, unit));
                }
            }
        }
        slowest.map(|(_, id, unit)| (id, unit))
    }

    /// Seconds until a peer has sent this many more bytes. Without an estimate, the age of the
    /// given request.
    fn estimated_seconds(&self, peer: &Peer, bytes: u64, oldest: RequestId, now: Time) -> f64 {
        if peer.is_stalled {
            return f64::INFINITY;
        }
        let so_far = || now.saturating_sub(self.requests[&oldest].sent).as_secs_f64();
        peer.estimate.seconds_for(bytes, now).unwrap_or_else(so_far)
    }

    /// Whether to steal the request instead of hedging it.
    fn should_steal(&self, id: RequestId) -> bool {
        let request = &self.requests[&id];
        request.received == 0 && !request.stolen
    }
}
