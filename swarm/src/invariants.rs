//! The invariants from the crate's documentation, as code for debug builds.

use std::collections::BTreeSet;

use crate::{MAX_REQUESTS_PER_UNIT, Swarm, peer::Peer};

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
        self.rarity.check();
    }

    /// Checks that no download waits for ever. Call it when there is no action left: while units
    /// are missing and nothing is in flight, every peer that claims one of them has a timer; if no
    /// peer claims one, every banned peer has a timer.
    #[track_caller]
    pub(crate) fn check_liveness(&self) {
        if self.is_finished() || !self.requests.is_empty() {
            return;
        }
        let claims = |peer: &Peer| peer.is_availability_known && self.useful_units(peer) > 0;
        let nobody = !self.peers.values().any(claims);
        for (key, peer) in &self.peers {
            let waits = claims(peer) || nobody && peer.is_banned();
            assert!(
                !waits || peer.timer.is_some(),
                "{key:?} could serve, and nobody asks it: {peer:?}"
            );
        }
    }

    #[track_caller]
    fn check_units(&self) {
        for unit in 0..self.have.len() {
            let flying = self.unit_requests.contains_key(&unit);
            let states = [self.have.get(unit), flying, self.rarity.contains(unit)];
            assert_eq!(
                states.iter().filter(|&&is| is).count(),
                1,
                "unit {unit} is in one state: {states:?}"
            );
            assert_eq!(
                self.fetching.get(unit),
                flying,
                "unit {unit} is told as being fetched"
            );
        }
        assert!(
            self.open_units
                .iter()
                .all(|unit| self.unit_requests.contains_key(unit)),
            "contested units are in flight"
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
                "unit {unit} is asked once of each peer"
            );
            assert!(requests.iter().all(|id| self.requests[id].unit == *unit));
            count += requests.len();
        }
        assert_eq!(count, self.requests.len(), "each request is in its unit's list");
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
        let mut holders = vec![0; self.unit_lens.len()];
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
                "{key:?} owes or does not"
            );
            requests += peer.requests.len();
            active += u32::from(!peer.requests.is_empty());
            if peer.is_banned() {
                assert!(
                    peer.requests.is_empty() && !peer.is_availability_known,
                    "{key:?} is banned and left alone"
                );
            }
            complete += u32::from(peer.is_complete());
            partial += u32::from(peer.is_availability_known && !peer.is_complete());
            peer.fetching.ones().for_each(|unit| counts[unit as usize] += 1);
            if !peer.is_complete() {
                peer.have.ones().for_each(|unit| counts[unit as usize] += 1);
                peer.have.ones().for_each(|unit| holders[unit as usize] += 1);
                let useful = peer
                    .have
                    .ones()
                    .filter(|&unit| self.rarity.contains(unit))
                    .count();
                assert_eq!(peer.useful_units as usize, useful, "useful units of {key:?}");
            }
            assert!(
                peer.refused.units().all(|unit| peer.have.get(unit)),
                "{key:?} refused what it has"
            );
            let withheld = peer.refused.units().filter(|&unit| self.rarity.contains(unit));
            assert_eq!(
                peer.withheld as usize,
                withheld.count(),
                "withheld units of {key:?}"
            );
            assert_eq!(
                peer.refused.due().is_some(),
                !peer.refused.is_empty(),
                "{key:?} is asked again for what it refused"
            );
            if let Some(at) = peer.timer {
                assert!(self.timers.contains(&(at, *key)), "the timer of {key:?} is set");
            }
        }
        let counted: Vec<u32> = (0..self.have.len()).map(|unit| self.rarity.count(unit)).collect();
        assert_eq!(
            counts, counted,
            "units are counted as often as peers have or fetch them"
        );
        assert_eq!(holders, self.holders, "holders are counted");
        assert_eq!(
            (complete, partial, active, requests),
            (
                self.complete_peers,
                self.partial_peers,
                self.active_peers,
                self.requests.len()
            )
        );
        assert!(self.timers.len() <= self.peers.len(), "at most one timer a peer");
    }
}
