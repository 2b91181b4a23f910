//! The state of one peer.

use std::time::Duration;

use super::{Estimate, Refusals};
use crate::{
    config::{PIPELINE_SLACK, REQUEST_TIMEOUT, SwarmConfig},
    types::{Failure, RequestId, Time},
};
use potluck_core::{bitfield::Bitfield, model::Distance};

/// Whether a peer may get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eligibility {
    Open,
    BackedOff {
        until: Time,
    },
    /// `unit` is the one that did not verify; `None` after a protocol violation. The peer gets no
    /// requests before `until`, nor while other peers can serve.
    Banned {
        unit: Option<u32>,
        until: Time,
    },
}

/// How requests to a provider are kept up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pipeline {
    /// Another request is made while at most this many bytes are requested and not verified.
    pub(crate) depth: u64,
    /// Requests are made once these many bytes less are under way.
    pub(crate) batch: u64,
}

/// The swarm's knowledge about one peer.
///
/// Invariants:
///
/// - `useful_units` is the number of missing units in `have`, unless the peer is complete: then the
///   swarm does not maintain it.
/// - Refused units are in `have`, and `refused_missing` is the number of missing units among them.
/// - `requested_bytes`, `outstanding_bytes` and `unverified_bytes` are sums over `requests`.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) eligibility: Eligibility,
    /// Whether it joined and did not leave. Peers that were banned are remembered after they leave.
    pub(crate) has_joined: bool,
    /// How near it is.
    pub(crate) distance: Distance,
    /// If it is distant and nearer peers provide its units: when to look again.
    pub(crate) distant_check: Option<Time>,
    /// Whether it is a reserve: complete, costly, and asked only for what others do not provide.
    pub(crate) is_reserve: bool,
    /// If it is a reserve that waits for others: when to look again.
    pub(crate) reserve_check: Option<Time>,
    /// If it is a reserve: when the next of the last units may be requested.
    pub(crate) reserve_hold: Option<Time>,
    /// Number of bans so far.
    pub(crate) bans: u32,
    /// If it was banned and readmitted: the units that it still has to deliver before it gets more
    /// than one request at a time.
    pub(crate) probation: Option<u32>,
    /// If it was banned: when to check again whether other peers can serve instead.
    pub(crate) readmission_check: Option<Time>,
    /// Units it claims to have.
    pub(crate) have: Bitfield,
    /// Units it claims to be fetching.
    pub(crate) fetching: Bitfield,
    /// Whether it has announced its availability.
    pub(crate) is_availability_known: bool,
    /// Number of missing units in `have`; not maintained for a complete peer.
    pub(crate) useful_units: u32,
    /// Units it claims to have and refused to send.
    pub(crate) refused: Refusals,
    /// Number of refused units that are missing here.
    pub(crate) refused_missing: u32,
    /// In the order in which they were made.
    pub(crate) requests: Vec<RequestId>,
    /// Total bytes of its requests.
    pub(crate) requested_bytes: u64,
    /// Bytes of its requests that did not arrive yet.
    pub(crate) outstanding_bytes: u64,
    /// Bytes of its requests that arrived completely and are not verified yet.
    pub(crate) unverified_bytes: u64,
    /// Whether its pipeline is being refilled: it gets requests until the pipeline is full.
    pub(crate) is_filling_pipeline: bool,
    pub(crate) is_stalled: bool,
    pub(crate) estimate: Estimate,
    /// Round trip of a small message without queues; `None` if it was not measured.
    pub(crate) round_trip: Option<Duration>,
    /// Broken connections and timeouts in a row.
    pub(crate) failures: u32,
    /// BUSY answers in a row.
    pub(crate) busy_answers: u32,
    /// The unit of its last request. The next unit is preferred if it is equally rare.
    pub(crate) cursor: Option<u32>,
    /// Whether it is in `Swarm::ready` or `Swarm::blocked`.
    pub(crate) is_ready: bool,
    /// Its entry in the swarm's timers.
    pub(crate) timer: Option<Time>,
    pub(crate) bytes: u64,
    pub(crate) verified_bytes: u64,
    pub(crate) last_failure: Option<Failure>,
}

impl Peer {
    pub(crate) fn new(units: u32) -> Self {
        Self {
            eligibility: Eligibility::Open,
            has_joined: false,
            distance: Distance::Rack,
            distant_check: None,
            is_reserve: false,
            reserve_check: None,
            reserve_hold: None,
            bans: 0,
            probation: None,
            readmission_check: None,
            have: Bitfield::new(units),
            fetching: Bitfield::new(units),
            is_availability_known: false,
            useful_units: 0,
            refused: Refusals::default(),
            refused_missing: 0,
            requests: Vec::new(),
            requested_bytes: 0,
            outstanding_bytes: 0,
            unverified_bytes: 0,
            is_filling_pipeline: false,
            is_stalled: false,
            estimate: Estimate::default(),
            round_trip: None,
            failures: 0,
            busy_answers: 0,
            cursor: None,
            is_ready: false,
            timer: None,
            bytes: 0,
            verified_bytes: 0,
            last_failure: None,
        }
    }

    /// Whether it has every unit.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_availability_known && self.have.is_full()
    }

    /// Whether this unit may be requested from it: it claims the unit and did not refuse it.
    pub(crate) fn serves(&self, unit: u32) -> bool {
        self.have.get(unit) && !self.refused.contains(unit)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.eligibility == Eligibility::Open
    }

    pub(crate) fn is_banned(&self) -> bool {
        matches!(self.eligibility, Eligibility::Banned { .. })
    }

    /// Bytes to keep outstanding so that the link never idles. In a crowd this is the
    /// bandwidth-delay product: requests that wait in a queue delay all the other peers. For a
    /// complete provider it is about twice that, and at least one unit. The link's own delay
    /// counts; time in a queue, at the peer or before our own downlink, must not deepen the
    /// pipeline.
    pub(crate) fn pipeline_bytes(&self, crowd: bool, unit: u64) -> u64 {
        let (Some(rate), Some(latency)) = (self.estimate.rate(), self.estimate.latency()) else {
            return if crowd { 0 } else { unit };
        };
        let wire = self.round_trip.map(|trip| trip.as_secs_f64().min(latency));
        if crowd {
            (rate * wire.unwrap_or(0.0)) as u64
        } else {
            let seconds = 2.0 * wire.unwrap_or(latency) + PIPELINE_SLACK.as_secs_f64();
            ((rate * seconds) as u64).max(unit)
        }
    }

    /// Whether to send another request for a unit of this length. A complete provider gets several
    /// requests in a batch once few bytes are outstanding, since each call costs something at both
    /// ends. A peer in a crowd gets each request separately.
    /// `least`: a pipeline that it gets even if its link needs less.
    pub(crate) fn has_room(
        &mut self,
        config: &SwarmConfig,
        crowd: bool,
        unit: u64,
        least: Pipeline,
    ) -> bool {
        let bytes = self.requested_bytes + unit;
        let fits = self.requested_bytes == 0 || bytes <= config.max_peer_bytes;
        // On probation: one unit at a time, each verified before the next.
        let trusted = self.probation.is_none() || self.requests.is_empty();
        let depth = self.pipeline_bytes(crowd, unit).max(least.depth);
        let slack = self.estimate.rate().unwrap_or(0.0) * PIPELINE_SLACK.as_secs_f64();
        let batch = if crowd { 0 } else { (slack / 2.0) as u64 }.max(least.batch);
        // If verification is the bottleneck, more requests would only queue here.
        let under_way = self.outstanding_bytes + self.unverified_bytes;
        self.is_filling_pipeline = self.outstanding_bytes == 0
            || under_way <= depth && (self.is_filling_pipeline || under_way + batch <= depth);
        self.is_open()
            && !self.is_stalled
            && fits
            && trusted
            && self.is_filling_pipeline
            && self.requests.len() < config.max_peer_requests as usize
    }

    /// The silence after which the peer counts as stalled; doubled with each failure. At least
    /// `queue`, the time for which its bytes may wait for our own downlink.
    pub(crate) fn stall_timeout(&self, queue: Duration) -> Duration {
        (self.estimate.stall_timeout() * (1 << self.failures.min(4)))
            .max(queue)
            .min(REQUEST_TIMEOUT)
    }

    /// When to examine the peer again if no event occurs.
    pub(crate) fn next_deadline(&self, queue: Duration) -> Option<Time> {
        let timeout = self.stall_timeout(queue);
        let allowed = if self.is_stalled {
            REQUEST_TIMEOUT.max(timeout * 2)
        } else {
            timeout
        };
        let silence = self.estimate.silent_since().map(|since| since + allowed);
        let until = match self.eligibility {
            Eligibility::BackedOff { until } => Some(until),
            Eligibility::Open => None,
            Eligibility::Banned { until, .. } => {
                return Some(self.readmission_check.unwrap_or(until));
            }
        };
        let earlier = |a: Option<Time>, b: Option<Time>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        earlier(
            earlier(
                earlier(silence, until),
                earlier(self.reserve_check, self.distant_check),
            ),
            earlier(self.refused.due(), self.readmission_check),
        )
    }
}
