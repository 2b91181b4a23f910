//! Read-only views of the swarm's state.

use super::Swarm;
use crate::{
    state::{Eligibility, Peer},
    types::{Counters, MissingRun, PeerKey, PeerPhase, PeerView, RequestId, StuckReason, Time},
};
use potluck_core::bitfield::Bitfield;

impl Swarm {
    /// The verified units.
    pub const fn have(&self) -> &Bitfield {
        &self.have
    }

    /// The units in flight.
    pub const fn fetching(&self) -> &Bitfield {
        &self.fetching
    }

    /// Bytes requested and not yet verified.
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Bytes received of units in flight and not yet verified. Duplicate bytes count once.
    pub fn unverified_bytes(&self) -> u64 {
        let received = |id: &RequestId| self.requests[id].received;
        let of_unit = |(&unit, requests): (&u32, &Vec<RequestId>)| {
            let max = requests.iter().map(received).max().unwrap_or(0);
            max.min(self.unit_lens[unit as usize])
        };
        self.unit_requests.iter().map(of_unit).sum()
    }

    /// Whether another peer downloads the same file and makes progress. Uplinks are then shared,
    /// and a queue at one peer delays the others.
    pub const fn is_crowd(&self) -> bool {
        self.partial_peers > 0 && !self.stalled_crowd
    }

    /// Whether every unit is verified.
    pub const fn is_finished(&self) -> bool {
        self.have.is_full()
    }

    /// Statistics of the download so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The peers by key, including banned ones that left.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> + '_ {
        self.peers.iter().map(|(&key, peer)| self.peer_view(key, peer))
    }

    /// The missing units, in runs with the same number of providers; without those beyond a reader's
    /// window.
    pub fn missing(&self) -> Vec<MissingRun> {
        let mut runs: Vec<MissingRun> = Vec::new();
        let end = self.window_end.unwrap_or(self.have.len());
        for unit in (0..end).filter(|&unit| !self.have.get(unit)) {
            let providers = self.complete_peers + self.partial_providers[unit as usize];
            let in_flight = self.fetching.get(unit);
            let state = (providers, in_flight);
            match runs.last_mut() {
                Some(run) if run.units.end == unit && (run.providers, run.in_flight) == state => {
                    run.units.end += 1;
                }
                _ => runs.push(MissingRun {
                    units: unit..unit + 1,
                    providers,
                    in_flight,
                }),
            }
        }
        runs
    }

    /// The reason why nothing is in flight. `None` if something is in flight, if `poll_action` can
    /// make a request, or if the download is finished.
    pub fn stuck_reason(&self) -> Option<StuckReason> {
        // Without missing units, a reader keeps the download waiting.
        let is_waiting_for_reader = self.rarity.is_empty();
        if self.is_finished() || !self.requests.is_empty() || is_waiting_for_reader {
            return None;
        }
        let joined = || {
            self.peers
                .values()
                .filter(|peer| peer.has_joined && !peer.is_banned())
        };
        if joined().next().is_none() {
            let banned = self.peers.values().filter_map(|peer| match peer.eligibility {
                Eligibility::Banned { until, .. } => Some(until),
                _ => None,
            });
            let first = banned.min();
            return Some(match first {
                Some(until) => StuckReason::AllBanned { until },
                None => StuckReason::NoPeers,
            });
        }
        if !joined().any(|peer| peer.is_availability_known) {
            return Some(StuckReason::NoAvailability);
        }
        if !joined().any(|peer| self.useful_units(peer) > 0) {
            return Some(StuckReason::NoProvider {
                units: self.rarity.len() as u32,
            });
        }
        let until = |peer: &Peer| match peer.eligibility {
            Eligibility::BackedOff { until } => until,
            _ => Time::ZERO,
        };
        match joined()
            .filter(|peer| self.requestable_units(peer) > 0)
            .map(until)
            .min()
        {
            None => {
                let refusing = || joined().filter(|peer| peer.refused_missing > 0);
                let until = refusing().filter_map(|peer| peer.refused.due()).min();
                let tries = refusing().map(|peer| peer.refused.rounds()).min();
                Some(StuckReason::Refused {
                    until: until.unwrap_or(Time::ZERO),
                    tries: tries.unwrap_or(0),
                })
            }
            Some(Time::ZERO) => None,
            Some(until) => Some(StuckReason::BackedOff { until }),
        }
    }

    /// Whether a peer that is not on probation sends missing units, or can be expected to. If so,
    /// no banned peer is readmitted.
    pub fn is_served(&self) -> bool {
        let sends = |peer: &Peer| peer.probation.is_none() && !peer.requests.is_empty();
        self.peers.values().any(sends) || self.others_can_serve()
    }

    /// Number of missing units that this peer has.
    pub(crate) fn useful_units(&self, peer: &Peer) -> u32 {
        if peer.is_complete() {
            self.rarity.len() as u32
        } else {
            peer.useful_units
        }
    }

    /// Number of missing units that this peer has and did not refuse.
    pub(crate) fn requestable_units(&self, peer: &Peer) -> u32 {
        self.useful_units(peer) - peer.refused_missing
    }

    fn peer_view(&self, key: PeerKey, peer: &Peer) -> PeerView {
        let refused = peer.refused.due().filter(|_| peer.refused_missing > 0);
        let refused = refused.map(|until| (peer.refused_missing, until));
        let is_refusing = self.requestable_units(peer) == 0;
        let state = match peer.eligibility {
            Eligibility::Banned { unit, until } => PeerPhase::Banned { unit, until },
            Eligibility::BackedOff { until } => PeerPhase::BackedOff { until },
            Eligibility::Open if !peer.is_availability_known => PeerPhase::Joining,
            Eligibility::Open if peer.is_stalled => PeerPhase::Stalled,
            Eligibility::Open if !peer.requests.is_empty() => PeerPhase::Active,
            Eligibility::Open => match refused {
                Some((_, until)) if is_refusing => PeerPhase::Refusing { until },
                _ => PeerPhase::Idle,
            },
        };
        let bytes = peer.pipeline_bytes(self.is_crowd(), self.longest_unit);
        let depth = bytes / self.longest_unit.max(1) + 1;
        PeerView {
            key,
            phase: state,
            is_complete: peer.is_complete(),
            units: peer.have.count(),
            useful_units: self.useful_units(peer),
            refused,
            on_probation: peer.probation.is_some(),
            requests: peer.requests.len() as u32,
            pipeline_depth: depth.min(u64::from(self.config.max_peer_requests)) as u32,
            rate: peer.estimate.rate(),
            latency: peer.estimate.latency().map(std::time::Duration::from_secs_f64),
            bytes: peer.bytes,
            verified_bytes: peer.verified_bytes,
            last_failure: peer.last_failure,
        }
    }
}
