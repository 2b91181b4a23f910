//! The invariants from the crate's documentation, as code for debug builds.

use std::collections::BTreeSet;

use potluck_core::model::Distance;

use super::Swarm;
use crate::{config::MAX_REQUESTS_PER_UNIT, state::Peer};

/// A full check costs about units times peers; a large swarm runs it once in that cost divided by
/// this many events.
const CHECK_COST: usize = 256;

impl Swarm {
    #[track_caller]
    pub(crate) fn check_now_and_then(&mut self) {
        self.events += 1;
        let stride = 1 + self.unit_lens.len() * (1 + self.peers.len()) / CHECK_COST;
        if self.events.is_multiple_of(stride as u64) {
            self.check();
        }
    }

    /// Panics if an invariant does not hold.
    #[track_caller]
    pub(crate) fn check(&self) {
        self.check_units();
        self.check_requests();
        self.check_peers();
        self.check_nearby();
        self.rarity.check();
    }

    /// Checks that no download waits forever. Call it when there is no action left: while units are
    /// missing and nothing is in flight, every peer that claims one of them has a timer; if no peer
    /// claims one, every banned peer has a timer.
    #[track_caller]
    pub(crate) fn check_liveness(&self) {
        let is_waiting_for_reader = self.rarity.is_empty();
        if self.is_finished() || !self.requests.is_empty() || is_waiting_for_reader {
            return;
        }
        let claims = |peer: &Peer| peer.is_availability_known && self.useful_units(peer) > 0;
        let is_unclaimed = !self.peers.values().any(claims);
        for (key, peer) in &self.peers {
            let needs_timer = claims(peer) || is_unclaimed && peer.is_banned();
            assert!(
                !needs_timer || peer.timer.is_some(),
                "{key:?} could serve and has no timer: {peer:?}"
            );
        }
    }

    #[track_caller]
    fn check_nearby(&self) {
        let Some(levels) = self.nearby.levels() else {
            return;
        };
        for (level, farthest) in levels.iter().zip([Distance::Rack, Distance::Zone]) {
            let mut expected = (vec![0; self.unit_lens.len()], 0, 0);
            let known = self.peers.values().filter(|peer| peer.is_availability_known);
            for peer in known.filter(|peer| peer.distance <= farthest) {
                expected.1 += u32::from(peer.is_complete());
                expected.2 += u32::from(!peer.is_complete());
                let have = peer.have.ones().filter(|_| !peer.is_complete());
                have.chain(peer.fetching.ones())
                    .for_each(|unit| expected.0[unit as usize] += 1);
            }
            for unit in 0..self.have.len() {
                let is_free = self.rarity.contains(unit) && expected.0[unit as usize] == 0;
                assert_eq!(level.free.contains(unit), is_free, "unit {unit} is free");
                assert_eq!(level.free.count(unit), self.rarity.count(unit), "unit {unit}");
            }
            level.free.check();
            let counted = (level.units.clone(), level.complete, level.partial);
            assert_eq!(counted, expected, "what peers up to {farthest:?} provide");
        }
    }

    #[track_caller]
    fn check_units(&self) {
        for unit in 0..self.have.len() {
            let in_flight = self.unit_requests.contains_key(&unit);
            let is_beyond_window = self.window_end.is_some_and(|end| unit >= end);
            let states = [
                self.have.get(unit),
                in_flight,
                self.rarity.contains(unit),
                is_beyond_window && !self.have.get(unit),
            ];
            assert_eq!(
                states.iter().filter(|&&is| is).count(),
                1,
                "unit {unit} is in one state: {states:?}"
            );
            assert_eq!(
                self.fetching.get(unit),
                in_flight,
                "unit {unit} is in `fetching` if and only if it is in flight"
            );
        }
        assert!(
            self.open_units
                .iter()
                .all(|unit| self.unit_requests.contains_key(unit)),
            "open units are in flight"
        );
    }

    #[track_caller]
    fn check_requests(&self) {
        let mut count = 0;
        for (unit, requests) in &self.unit_requests {
            assert!(
                (1..=MAX_REQUESTS_PER_UNIT).contains(&requests.len()),
                "unit {unit} has {} requests",
                requests.len()
            );
            let peers: BTreeSet<_> = requests.iter().map(|id| self.requests[id].peer).collect();
            assert_eq!(
                peers.len(),
                requests.len(),
                "unit {unit} has at most one request per peer"
            );
            assert!(requests.iter().all(|id| self.requests[id].unit == *unit));
            count += requests.len();
        }
        assert_eq!(
            count,
            self.requests.len(),
            "each request is in the list of its unit"
        );
        let bytes: u64 = self
            .requests
            .values()
            .map(|request| self.unit_lens[request.unit as usize])
            .sum();
        assert_eq!(bytes, self.in_flight_bytes);
        let few = self.requests.len() <= 1;
        assert!(
            few || bytes <= self.in_flight_limit,
            "{bytes} bytes in flight, {} allowed",
            self.in_flight_limit
        );
    }

    #[track_caller]
    fn check_peers(&self) {
        let mut counts = vec![0; self.unit_lens.len()];
        let mut partial_providers = vec![0; self.unit_lens.len()];
        let (mut complete, mut partial, mut active, mut requests) = (0, 0, 0, 0);
        for (key, peer) in &self.peers {
            let own = || peer.requests.iter().map(|id| &self.requests[id]);
            assert!(own().all(|request| request.peer == *key));
            assert_eq!(
                own()
                    .map(|request| self.unit_lens[request.unit as usize])
                    .sum::<u64>(),
                peer.requested_bytes
            );
            assert_eq!(
                own().map(|request| request.outstanding_bytes).sum::<u64>(),
                peer.outstanding_bytes
            );
            let whole = own().filter(|request| request.outstanding_bytes == 0);
            assert_eq!(
                whole
                    .map(|request| self.unit_lens[request.unit as usize])
                    .sum::<u64>(),
                peer.unverified_bytes
            );
            assert_eq!(
                peer.outstanding_bytes > 0,
                peer.estimate.silent_since().is_some(),
                "{key:?} is busy if and only if bytes are outstanding"
            );
            requests += peer.requests.len();
            active += u32::from(!peer.requests.is_empty());
            if peer.is_banned() {
                assert!(
                    peer.requests.is_empty() && !peer.is_availability_known,
                    "{key:?} is banned, so it has no requests and no availability"
                );
            }
            complete += u32::from(peer.is_complete());
            partial += u32::from(peer.is_availability_known && !peer.is_complete());
            peer.fetching.ones().for_each(|unit| counts[unit as usize] += 1);
            if !peer.is_complete() {
                peer.have.ones().for_each(|unit| counts[unit as usize] += 1);
                peer.have
                    .ones()
                    .for_each(|unit| partial_providers[unit as usize] += 1);
                let useful = peer
                    .have
                    .ones()
                    .filter(|&unit| self.rarity.contains(unit))
                    .count();
                assert_eq!(peer.useful_units as usize, useful, "useful units of {key:?}");
            }
            assert!(
                peer.refused.units().all(|unit| peer.have.get(unit)),
                "{key:?} refused only units that it has"
            );
            let refused_missing = peer.refused.units().filter(|&unit| self.rarity.contains(unit));
            assert_eq!(
                peer.refused_missing as usize,
                refused_missing.count(),
                "missing refused units of {key:?}"
            );
            assert_eq!(
                peer.refused.due().is_some(),
                !peer.refused.is_empty(),
                "{key:?} has a retry time if and only if it refused units"
            );
            if let Some(at) = peer.timer {
                assert!(
                    self.timers.contains(&(at, *key)),
                    "the timer of {key:?} is in the list"
                );
            }
        }
        let counted: Vec<u32> = (0..self.have.len()).map(|unit| self.rarity.count(unit)).collect();
        assert_eq!(
            counts, counted,
            "the counts of units match what peers have and fetch"
        );
        assert_eq!(
            partial_providers, self.partial_providers,
            "the counts of partial providers match"
        );
        assert_eq!(
            (complete, partial, active, requests),
            (
                self.complete_peers,
                self.partial_peers,
                self.active_peers,
                self.requests.len()
            )
        );
        assert!(
            self.timers.len() <= self.peers.len(),
            "at most one timer per peer"
        );
    }
}
