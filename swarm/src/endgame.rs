//! Taking work from those who are too slow with it: units of stalled peers at any time, and at the end whatever another
//! peer would finish much sooner. Duplicate bytes are bounded: two live requests a unit at most, and a request of which no
//! byte came is taken over rather than raced; but only once, or under load a unit could go from hand to hand for ever.

use crate::{
    ENDGAME_TICK, MAX_REQUESTS_PER_UNIT, PeerKey, RequestId, Swarm, Time, peer::Peer, requests::Request,
};

/// A request of which nothing came is taken over by a peer that would finish it in this part of the time.
const STEAL_FACTOR: f64 = 1.5;

/// A request under way is raced by a peer that would finish it in this part of the time: it costs its bytes twice.
const HEDGE_FACTOR: f64 = 2.0;

/// Where the budget is the limit, a request is given up for one this much faster: what came of it is lost.
const REBALANCE_FACTOR: f64 = 3.0;

/// What a gain must be at least, in seconds: below it a message to cancel comes too late.
const MIN_GAIN: f64 = 0.02;

impl Swarm {
    /// Whether all that is not here is in flight.
    fn is_endgame(&self) -> bool {
        self.rarity.is_empty() && !self.unit_requests.is_empty()
    }

    pub(crate) fn arm_endgame_timer(&mut self, now: Time) {
        let starved = !self.blocked.is_empty() && (!self.has_budget_left() || self.has_enough_requested(now));
        if !(self.is_endgame() || starved) {
            self.endgame_tick = None;
        } else if self.endgame_tick.is_none() {
            self.endgame_tick = Some(now + ENDGAME_TICK);
        }
    }

    /// Estimates have aged: everyone may look again for something to take over.
    pub(crate) fn run_endgame_tick(&mut self) {
        self.endgame_tick = None;
        self.wake_blocked();
        for (&key, peer) in &mut self.peers {
            if peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    /// Opens a unit to others once all who are asked for it are stalled.
    pub(crate) fn open_to_others(&mut self, unit: u32) {
        let stalls = |id: &RequestId| {
            let request = &self.requests[id];
            request.outstanding_bytes > 0 && self.peers[&request.peer].is_stalled
        };
        let open = self.unit_requests.get(&unit).is_some_and(|requests| {
            requests.iter().all(stalls)
                && (requests.len() < MAX_REQUESTS_PER_UNIT || self.request_without_bytes(unit).is_some())
        });
        if open && self.open_units.insert(unit) {
            self.wake_blocked();
            for (&key, peer) in &mut self.peers {
                if peer.serves(unit) && peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                    self.ready.push_back(key);
                }
            }
        }
    }

    /// Asks one more peer for a contested unit; where there is no room for that, in place of one who stalls. One that gives
    /// way although it never sent a byte rests as after a time-out, so that a few mute peers do not take turns.
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

    /// A request for this unit of which no byte came.
    fn request_without_bytes(&self, unit: u32) -> Option<RequestId> {
        self.unit_requests
            .get(&unit)?
            .iter()
            .copied()
            .find(|id| self.requests[id].received == 0)
    }

    /// Takes a request from one peer and gives its unit to another.
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

    /// Gives a peer with nothing better to do the request that would gain most by it. Returns whether there was one: never while our own
    /// limit is what takes time, which it would take of anybody.
    pub(crate) fn rebalance(&mut self, key: PeerKey, now: Time) -> bool {
        if self.is_locally_throttled(now) {
            return false;
        }
        let starved = !self.has_budget_left();
        let Some((id, unit)) = self.slowest_request_for(key, starved, now) else {
            return false;
        };
        if starved || self.should_steal(id) {
            self.steal(id, key, now);
        } else {
            self.open_request(key, unit, now);
        }
        true
    }

    /// The request, the only one for its unit, that would take longest where it is, and for which this peer would be so much faster
    /// that it is worth it.
    fn slowest_request_for(&self, key: PeerKey, starved: bool, now: Time) -> Option<(RequestId, u32)> {
        let me = self.peers.get(&key)?;
        let latency = me.estimate.latency().unwrap_or(0.0);
        let mine = |len: u64| Some(me.estimate.seconds_for(me.outstanding_bytes + len, now)? + latency);
        let is_worth = |theirs: f64, mine: f64, factor: f64| theirs > mine * factor + MIN_GAIN;
        let min = mine(0)?;
        let mut slowest: Option<(f64, RequestId, u32)> = None;
        for (&other, peer) in &self.peers {
            let Some(&oldest) = peer.requests.first() else {
                continue;
            };
            if other == key || peer.outstanding_bytes == 0 {
                continue;
            }
            // Most are as fast as others: whatever they were asked for, it is not worth a look.
            let longest = self.estimated_seconds(peer, peer.outstanding_bytes, oldest, now);
            let least_factor = if starved { REBALANCE_FACTOR } else { STEAL_FACTOR };
            if !is_worth(longest, min, least_factor) || slowest.is_some_and(|(theirs, ..)| longest <= theirs)
            {
                continue;
            }
            let mut outstanding = 0;
            for &id in &peer.requests {
                let request = &self.requests[&id];
                let unit = request.unit;
                outstanding += request.outstanding_bytes;
                let theirs = self.estimated_seconds(peer, outstanding, id, now);
                let factor = match self.should_steal(id) {
                    _ if starved => REBALANCE_FACTOR,
                    true => STEAL_FACTOR,
                    false => HEDGE_FACTOR,
                };
                if request.outstanding_bytes > 0
                    && !(starved && request.stolen)
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

    /// Seconds until a peer has sent so many bytes more. Without an estimate: as long again as a request of it took so far.
    fn estimated_seconds(&self, peer: &Peer, outstanding: u64, asked_by: RequestId, now: Time) -> f64 {
        if peer.is_stalled {
            return f64::INFINITY;
        }
        let so_far = || now.saturating_sub(self.requests[&asked_by].sent).as_secs_f64();
        peer.estimate.seconds_for(outstanding, now).unwrap_or_else(so_far)
    }

    /// Whether a request is taken over rather than raced.
    fn should_steal(&self, id: RequestId) -> bool {
        let request = &self.requests[&id];
        request.received == 0 && !request.stolen
    }
}
