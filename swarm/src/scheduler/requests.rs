//! Requests, from sending to completion, and the state of their units.

use super::Swarm;
use crate::{
    config::{CROWD_STALL, CROWD_STALL_UNITS},
    state::Request,
    types::{Action, PeerKey, RequestId, Time},
};

impl Swarm {
    /// Requests a unit from a peer.
    pub(crate) fn open_request(&mut self, key: PeerKey, unit: u32, now: Time) {
        let len = self.unit_lens[unit as usize];
        let id = RequestId(self.next_request);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        self.next_request += 1;
        if peer.requests.is_empty() {
            self.active_peers += 1;
        }
        if peer.outstanding_bytes == 0 {
            peer.estimate.begin_busy(now);
        }
        peer.requests.push(id);
        peer.requested_bytes += len;
        peer.outstanding_bytes += len;
        peer.cursor = Some(unit);
        self.requests.insert(
            id,
            Request {
                peer: key,
                unit,
                sent: now,
                received: 0,
                outstanding_bytes: len,
                stolen: false,
            },
        );
        if self.in_flight_bytes == 0 {
            self.downlink.begin_busy(now);
        }
        self.in_flight_bytes += len;
        self.counters.requests += 1;
        let peak = &mut self.counters.peak_in_flight_bytes;
        *peak = (*peak).max(self.in_flight_bytes);
        let requests = self.unit_requests.entry(unit).or_default();
        requests.push(id);
        if requests.len() > 1 {
            self.counters.hedges += 1;
        }
        if self.rarity.contains(unit) {
            self.clear_missing(unit);
            self.fetching.set(unit, true);
        }
        self.open_units.remove(&unit);
        self.actions.push_back(Action::Request { id, peer: key, unit });
        self.arm_timer(key, now);
    }

    /// Removes a request after any result. A unit without requests is missing again.
    pub(crate) fn close_request(&mut self, id: RequestId, now: Time) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        let Request {
            peer: key,
            unit,
            outstanding_bytes: outstanding,
            ..
        } = request;
        let len = self.unit_lens[unit as usize];
        self.in_flight_bytes -= len;
        if len > 0 && self.in_flight_bytes == 0 {
            self.downlink.end_busy(now);
        }
        let mut silent = false;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.requests.retain(|&other| other != id);
            peer.requested_bytes -= len;
            peer.outstanding_bytes -= outstanding;
            if outstanding == 0 {
                peer.unverified_bytes -= len;
            }
            if outstanding > 0 && peer.outstanding_bytes == 0 {
                peer.estimate.end_busy(now);
                silent = std::mem::take(&mut peer.is_stalled);
            }
            if peer.requests.is_empty() {
                self.active_peers -= 1;
            }
        }
        let last = self.unit_requests.get_mut(&unit).is_some_and(|requests| {
            requests.retain(|&other| other != id);
            requests.is_empty()
        });
        if last {
            self.unit_requests.remove(&unit);
            self.fetching.set(unit, false);
            self.open_units.remove(&unit);
            if !self.have.get(unit) {
                self.mark_missing(unit);
            }
        } else {
            self.open_to_others(unit);
        }
        if silent {
            // Other peers finished all requests of this peer while it was silent. A new request to
            // it would only delay more units.
            self.back_off_stalled(key, now);
        }
        self.mark_ready(key);
        Some(request)
    }

    /// Bytes of a request arrived. Bytes beyond the requested ones are counted, but do not reduce
    /// the outstanding bytes.
    pub(crate) fn receive_bytes(&mut self, id: RequestId, bytes: u64, now: Time) {
        self.counters.received_bytes += bytes;
        let Some(request) = self.requests.get_mut(&id) else {
            self.counters.duplicate_bytes += bytes;
            return;
        };
        self.downlink.bytes_arrived(bytes, now);
        let (key, unit, paid) = (request.peer, request.unit, bytes.min(request.outstanding_bytes));
        request.received += bytes;
        request.outstanding_bytes -= paid;
        let is_whole = paid > 0 && request.outstanding_bytes == 0;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.bytes += bytes;
        peer.busy_answers = 0;
        peer.estimate.bytes_arrived(bytes, now);
        peer.outstanding_bytes -= paid;
        if is_whole {
            peer.unverified_bytes += self.unit_lens[unit as usize];
        }
        if paid > 0 && peer.outstanding_bytes == 0 {
            peer.estimate.end_busy(now);
        }
        self.end_stall(key, unit, now);
        self.mark_ready(key);
    }

    /// The peer is no longer stalled: other peers must not fetch its units, which include `unit`.
    pub(crate) fn end_stall(&mut self, key: PeerKey, unit: u32, now: Time) {
        if let Some(peer) = self.peers.get_mut(&key)
            && std::mem::take(&mut peer.is_stalled)
        {
            let units: Vec<u32> = peer.requests.iter().map(|id| self.requests[id].unit).collect();
            units.iter().for_each(|unit| _ = self.open_units.remove(unit));
        }
        self.open_units.remove(&unit);
        self.arm_timer(key, now);
    }

    /// A unit verified: all other requests for it are cancelled.
    pub(crate) fn complete_unit(&mut self, id: RequestId, now: Time) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let unit = request.unit;
        let len = self.unit_lens[unit as usize];
        // Set before the requests are closed, so that the unit never becomes missing in between.
        self.have.set(unit, true);
        self.last_verified = now;
        if let Some(request) = self.close_request(id, now) {
            self.counters.verified_bytes += len;
            let mut was_doubted = false;
            if let Some(peer) = self.peers.get_mut(&request.peer) {
                was_doubted = peer.probation.is_some() || peer.refused.is_retrying();
                peer.failures = 0;
                peer.verified_bytes += len;
                peer.estimate.unit_done(len, now.saturating_sub(request.sent));
            }
            if was_doubted {
                self.record_delivery(request.peer, unit);
            }
        }
        self.cancel_requests_for(unit, now);
        self.partial_progress.1 = self.partial_progress.1.saturating_add(1);
        self.stalled_crowd |= self.partial_progress.1 >= CROWD_STALL_UNITS
            && now.saturating_sub(self.partial_progress.0) >= CROWD_STALL;
        self.announce_finish();
        true
    }

    /// Makes the unit missing again and cancels its requests.
    pub(crate) fn refetch(&mut self, unit: u32, now: Time) {
        if self.have.set(unit, false) {
            let len = self.unit_lens[unit as usize];
            self.counters.verified_bytes = self.counters.verified_bytes.saturating_sub(len);
            self.finish_announced = false;
            self.actions.retain(|action| *action != Action::Finished);
            self.mark_missing(unit);
        } else {
            self.cancel_requests_for(unit, now);
        }
    }

    /// Cancels a request; its bytes are lost.
    pub(crate) fn cancel_request(&mut self, id: RequestId, now: Time) {
        if let Some(request) = self.close_request(id, now) {
            self.counters.duplicate_bytes += request.received;
            self.actions.push_back(Action::Cancel { id });
        }
    }

    fn cancel_requests_for(&mut self, unit: u32, now: Time) {
        for id in self.unit_requests.get(&unit).cloned().unwrap_or_default() {
            self.cancel_request(id, now);
        }
    }

    /// The unit becomes missing: any peer that has it may get a request.
    pub(crate) fn mark_missing(&mut self, unit: u32) {
        self.rarity.insert(unit, &mut self.rng);
        self.nearby.set_missing(unit, true, &mut self.rng);
        self.adjust_useful_units(unit, 1);
    }

    /// The unit is no longer missing.
    fn clear_missing(&mut self, unit: u32) {
        self.rarity.remove(unit);
        self.nearby.set_missing(unit, false, &mut self.rng);
        self.adjust_useful_units(unit, -1);
    }

    fn adjust_useful_units(&mut self, unit: u32, change: i32) {
        for (&key, peer) in &mut self.peers {
            if !peer.have.get(unit) {
                continue;
            }
            if !peer.is_complete() {
                peer.useful_units = peer.useful_units.saturating_add_signed(change);
            }
            if peer.refused.contains(unit) {
                peer.refused_missing = peer.refused_missing.saturating_add_signed(change);
                continue;
            }
            if change > 0 && peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }
}
