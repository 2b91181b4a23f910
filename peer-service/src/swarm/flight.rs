//! Requests, from asking to the last word about them, and what that makes of their unit.

use super::{Action, PeerKey, QUIET, QUIET_UNITS, RequestId, Swarm, Time};

/// A unit asked of a peer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) peer: PeerKey,
    pub(super) unit: u32,
    pub(super) sent: Time,
    /// Bytes that arrived.
    pub(super) received: u64,
    /// Bytes that did not arrive yet.
    pub(super) owed: u64,
    /// Whether it was taken from another peer.
    pub(super) stolen: bool,
}

impl Swarm {
    /// Asks a peer for a unit.
    pub(super) fn open(&mut self, key: PeerKey, unit: u32, now: Time) {
        let len = self.lens[unit as usize];
        let id = RequestId(self.next_request);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        self.next_request += 1;
        if peer.requests.is_empty() {
            self.active_peers += 1;
        }
        if peer.owed == 0 {
            peer.estimate.begin(now);
        }
        peer.requests.push(id);
        peer.asked += len;
        peer.owed += len;
        peer.cursor = Some(unit);
        self.requests.insert(
            id,
            Request {
                peer: key,
                unit,
                sent: now,
                received: 0,
                owed: len,
                stolen: false,
            },
        );
        if self.in_flight_bytes == 0 {
            self.line.begin(now);
        }
        self.in_flight_bytes += len;
        self.counters.requests += 1;
        self.counters.peak_in_flight_bytes = self.counters.peak_in_flight_bytes.max(self.in_flight_bytes);
        let racers = self.flights.entry(unit).or_default();
        racers.push(id);
        if racers.len() > 1 {
            self.counters.hedges += 1;
        }
        if self.rarity.contains(unit) {
            self.unmiss(unit);
            self.fetching.set(unit, true);
        }
        self.contested.remove(&unit);
        self.actions.push_back(Action::Request { id, peer: key, unit });
        self.arm(key, now);
    }

    /// Ends a request, whatever came of it. A unit that nobody is asked for any more is missing again.
    pub(super) fn close(&mut self, id: RequestId, now: Time) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        let Request {
            peer: key,
            unit,
            owed,
            ..
        } = request;
        let len = self.lens[unit as usize];
        self.in_flight_bytes -= len;
        if len > 0 && self.in_flight_bytes == 0 {
            self.line.end(now);
        }
        let mut silent = false;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.requests.retain(|&other| other != id);
            peer.asked -= len;
            peer.owed -= owed;
            if owed == 0 {
                peer.waiting -= len;
            }
            if owed > 0 && peer.owed == 0 {
                peer.estimate.end(now);
                silent = std::mem::take(&mut peer.stalled);
            }
            if peer.requests.is_empty() {
                self.active_peers -= 1;
            }
        }
        let last = self.flights.get_mut(&unit).is_some_and(|racers| {
            racers.retain(|&other| other != id);
            racers.is_empty()
        });
        if last {
            self.flights.remove(&unit);
            self.fetching.set(unit, false);
            self.contested.remove(&unit);
            if !self.have.get(unit) {
                self.miss(unit);
            }
        } else {
            self.contest(unit);
        }
        if silent {
            // Others did all that it was asked for while it said nothing: asked again at once, it would only hold up more.
            self.rest_silent(key, now);
        }
        self.wake(key);
        Some(request)
    }

    /// Bytes of a request arrived. More than were asked for count, but are owed by nobody.
    pub(super) fn receive(&mut self, id: RequestId, bytes: u64, now: Time) {
        self.counters.received_bytes += bytes;
        let Some(request) = self.requests.get_mut(&id) else {
            self.counters.duplicate_bytes += bytes;
            return;
        };
        self.line.arrived(bytes, now);
        let (key, unit, paid) = (request.peer, request.unit, bytes.min(request.owed));
        request.received += bytes;
        request.owed -= paid;
        let is_whole = paid > 0 && request.owed == 0;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.bytes += bytes;
        peer.refusals = 0;
        peer.estimate.arrived(bytes, now);
        peer.owed -= paid;
        if is_whole {
            peer.waiting += self.lens[unit as usize];
        }
        if paid > 0 && peer.owed == 0 {
            peer.estimate.end(now);
        }
        self.is_not_silent(key, unit, now);
        self.wake(key);
    }

    /// The peer is not silent, and least of all about this unit.
    pub(super) fn is_not_silent(&mut self, key: PeerKey, unit: u32, now: Time) {
        if let Some(peer) = self.peers.get_mut(&key)
            && std::mem::take(&mut peer.stalled)
        {
            let units: Vec<u32> = peer.requests.iter().map(|id| self.requests[id].unit).collect();
            units.iter().for_each(|unit| _ = self.contested.remove(unit));
        }
        self.contested.remove(&unit);
        self.arm(key, now);
    }

    /// A unit verified: it is had, and whoever else was asked for it is told to stop.
    pub(super) fn complete(&mut self, id: RequestId, now: Time) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let unit = request.unit;
        let len = self.lens[unit as usize];
        // Had before its requests are closed, so that it is never missing in between.
        self.have.set(unit, true);
        if let Some(request) = self.close(id, now) {
            self.counters.verified_bytes += len;
            let mut earns = false;
            if let Some(peer) = self.peers.get_mut(&request.peer) {
                earns = peer.probation.is_some() || peer.refused.is_retrying();
                peer.failures = 0;
                peer.verified_bytes += len;
                peer.estimate.unit_done(len, now.saturating_sub(request.sent));
            }
            if earns {
                self.has_sent(request.peer, unit);
            }
        }
        self.cancel_flight(unit, now);
        self.news.1 = self.news.1.saturating_add(1);
        self.quiet |= self.news.1 >= QUIET_UNITS && now.saturating_sub(self.news.0) >= QUIET;
        self.announce_finish();
        true
    }

    /// The unit is to be fetched anew.
    pub(super) fn reset(&mut self, unit: u32, now: Time) {
        if self.have.set(unit, false) {
            let len = self.lens[unit as usize];
            self.counters.verified_bytes = self.counters.verified_bytes.saturating_sub(len);
            self.announced = false;
            self.actions.retain(|action| *action != Action::Finished);
            self.miss(unit);
        } else {
            self.cancel_flight(unit, now);
        }
    }

    /// Takes back a request, its bytes lost.
    pub(super) fn cancel(&mut self, id: RequestId, now: Time) {
        if let Some(request) = self.close(id, now) {
            self.counters.duplicate_bytes += request.received;
            self.actions.push_back(Action::Cancel { id });
        }
    }

    fn cancel_flight(&mut self, unit: u32, now: Time) {
        for id in self.flights.get(&unit).cloned().unwrap_or_default() {
            self.cancel(id, now);
        }
    }

    /// The unit becomes missing: whoever has it may be asked.
    fn miss(&mut self, unit: u32) {
        self.rarity.insert(unit, &mut self.rng);
        self.each_holder(unit, 1);
    }

    /// The unit is missing no more.
    fn unmiss(&mut self, unit: u32) {
        self.rarity.remove(unit);
        self.each_holder(unit, -1);
    }

    fn each_holder(&mut self, unit: u32, change: i32) {
        for (&key, peer) in &mut self.peers {
            if !peer.have.get(unit) {
                continue;
            }
            if !peer.is_complete() {
                peer.useful = peer.useful.saturating_add_signed(change);
            }
            if peer.refused.contains(unit) {
                peer.withheld = peer.withheld.saturating_add_signed(change);
                continue;
            }
            if change > 0 && peer.is_open() && !std::mem::replace(&mut peer.queued, true) {
                self.ready.push_back(key);
            }
        }
    }
}
