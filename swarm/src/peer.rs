//! One peer as the swarm knows it.

use std::time::Duration;

use crate::{
    Failure, PIPELINE_SLACK, REQUEST_TIMEOUT, RequestId, SwarmConfig, Time, estimate::Estimate,
    refusals::Refusals,
};
use potluck_core::bitfield::Bitfield;

/// Whether a peer may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eligibility {
    Open,
    BackedOff {
        until: Time,
    },
    /// `unit`: the one that did not verify, if that was it. Not asked before `until`, nor while
    /// others can serve.
    Banned {
        unit: Option<u32>,
        until: Time,
    },
}

/// Invariants: `useful_units` is the number of missing units in `have`, unless the peer is complete (then
/// it is not kept); refused units are in `have`, and `withheld` is the number of missing ones among
/// them; `requested_bytes`, `outstanding_bytes` and `unverified_bytes` are sums over `requests`.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) eligibility: Eligibility,
    /// Whether it joined and did not leave: a peer that was banned is remembered when it is gone.
    pub(crate) is_here: bool,
    /// How often it was banned.
    pub(crate) bans: u32,
    /// Verified units that it has to send before it is trusted like others, if it was banned and
    /// readmitted.
    pub(crate) probation: Option<u32>,
    /// When to look again whether others can serve in its place, if it was banned.
    pub(crate) ban_look: Option<Time>,
    /// Verified there, as it says.
    pub(crate) have: Bitfield,
    /// Being fetched there, as it says.
    pub(crate) fetching: Bitfield,
    /// Whether it ever said.
    pub(crate) is_availability_known: bool,
    pub(crate) useful_units: u32,
    /// What it has, as it says, and refused to send.
    pub(crate) refused: Refusals,
    pub(crate) withheld: u32,
    /// In the order in which they were made.
    pub(crate) requests: Vec<RequestId>,
    /// Bytes of all its requests.
    pub(crate) requested_bytes: u64,
    /// Bytes of its requests that did not arrive yet.
    pub(crate) outstanding_bytes: u64,
    /// Bytes of its requests that came whole and are not verified yet.
    pub(crate) unverified_bytes: u64,
    /// Whether it is being asked until it owes enough again.
    pub(crate) is_filling_pipeline: bool,
    pub(crate) is_stalled: bool,
    pub(crate) estimate: Estimate,
    /// Of a small message, nothing queued before it; `None` if nobody measured it.
    pub(crate) round_trip: Option<Duration>,
    /// Broken connections and time-outs in a row.
    pub(crate) failures: u32,
    /// BUSY in a row.
    pub(crate) refusals: u32,
    /// What its last request was for: its neighbour is the next where nothing speaks against it.
    pub(crate) cursor: Option<u32>,
    /// Waits to be looked at.
    pub(crate) is_ready: bool,
    /// Its place in the timers.
    pub(crate) timer: Option<Time>,
    pub(crate) bytes: u64,
    pub(crate) verified_bytes: u64,
    pub(crate) last_failure: Option<Failure>,
}

impl Peer {
    pub(crate) fn new(units: u32) -> Self {
        Self {
            eligibility: Eligibility::Open,
            is_here: false,
            bans: 0,
            probation: None,
            ban_look: None,
            have: Bitfield::new(units),
            fetching: Bitfield::new(units),
            is_availability_known: false,
            useful_units: 0,
            refused: Refusals::default(),
            withheld: 0,
            requests: Vec::new(),
            requested_bytes: 0,
            outstanding_bytes: 0,
            unverified_bytes: 0,
            is_filling_pipeline: false,
            is_stalled: false,
            estimate: Estimate::default(),
            round_trip: None,
            failures: 0,
            refusals: 0,
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

    /// Whether it may be asked for this unit: it has it, as it says, and did not refuse it.
    pub(crate) fn serves(&self, unit: u32) -> bool {
        self.have.get(unit) && !self.refused.contains(unit)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.eligibility == Eligibility::Open
    }

    pub(crate) fn is_banned(&self) -> bool {
        matches!(self.eligibility, Eligibility::Banned { .. })
    }

    /// Bytes to keep owed, so that the link never waits for a request. In a crowd only what is under way on the wire: whatever
    /// waits in a queue is kept from everyone else. With a complete source a little more, and two units at least. A wait in a
    /// queue, at the other end or before our own downlink, is no reason to make it longer: what counts is the link's own delay.
    pub(crate) fn pipeline_bytes(&self, crowd: bool, unit: u64) -> u64 {
        let (Some(rate), Some(latency)) = (self.estimate.rate(), self.estimate.latency()) else {
            return if crowd { 0 } else { unit };
        };
        let wire = self.round_trip.map(|trip| trip.as_secs_f64().min(latency));
        if crowd {
            (rate * wire.unwrap_or(0.0)) as u64
        } else {
            ((rate * (2.0 * wire.unwrap_or(latency) + PIPELINE_SLACK.as_secs_f64())) as u64).max(unit)
        }
    }

    /// Whether one more request for a unit of this length would be right for this link. A complete source is asked for several units
    /// once it owes few enough, as each call costs something at both ends; a peer in a crowd for each as it comes.
    pub(crate) fn has_room(&mut self, config: &SwarmConfig, crowd: bool, unit: u64) -> bool {
        let fits = self.requested_bytes == 0 || self.requested_bytes + unit <= config.max_peer_bytes;
        // One unit at a time, each verified before the next.
        let trusted = self.probation.is_none() || self.requests.is_empty();
        let depth = self.pipeline_bytes(crowd, unit);
        let slack = self.estimate.rate().unwrap_or(0.0) * PIPELINE_SLACK.as_secs_f64();
        let batch = if crowd { 0 } else { (slack / 2.0) as u64 };
        // Where verifying is what takes time, more would only wait here.
        let under_way = self.outstanding_bytes + self.unverified_bytes;
        self.is_filling_pipeline = self.outstanding_bytes == 0
            || under_way <= depth && (self.is_filling_pipeline || under_way + batch <= depth);
        let wants = self.is_filling_pipeline;
        self.is_open()
            && !self.is_stalled
            && fits
            && trusted
            && wants
            && self.requests.len() < config.max_peer_requests as usize
    }

    /// The silence from which on it counts as stalled: doubled with each failure. At least `queue`, in which it may only wait
    /// for its turn on our own downlink.
    pub(crate) fn stall_timeout(&self, queue: Duration) -> Duration {
        (self.estimate.stall_timeout() * (1 << self.failures.min(4)))
            .max(queue)
            .min(REQUEST_TIMEOUT)
    }

    /// When it has to be looked at again without anything happening.
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
            Eligibility::Banned { until, .. } => return Some(self.ban_look.unwrap_or(until)),
        };
        let earlier = |a: Option<Time>, b: Option<Time>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        earlier(
            earlier(silence, until),
            earlier(self.refused.due(), self.ban_look),
        )
    }
}
