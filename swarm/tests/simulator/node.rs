//! The nodes of a simulated swarm.

use potluck_core::{bitfield::Bitfield, model::Labels};
use potluck_swarm::Swarm;

/// The configuration of a node. Rates in bytes per second, times in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Rate of the uplink and of the downlink.
    pub(crate) up: f64,
    pub(crate) down: f64,
    /// The units that it has at the start.
    pub(crate) start: Start,
    /// Whether it downloads.
    pub(crate) downloads: bool,
    /// Maximum number of uploads, waiting ones included; further requests get BUSY.
    pub(crate) slots: usize,
    /// Maximum number of waiting uploads; further requests get BUSY.
    pub(crate) max_waiting: usize,
    /// Fraction of the units that it sends with a wrong byte.
    pub(crate) corrupt: f64,
    /// Time after which it sends no more wrong bytes: the link damaged them, and the node is
    /// honest.
    pub(crate) corrupts_until: f64,
    /// When it starts to refuse every request, and for how long. Its announcements do not change.
    pub(crate) refuses: Option<(f64, f64)>,
    /// Fraction of the units that it claims to have and does not have.
    pub(crate) false_claims: f64,
    /// When it stops sending silently, and for how long.
    pub(crate) stall: Option<(f64, f64)>,
    /// When it leaves forever and its connections break.
    pub(crate) dies: Option<f64>,
    /// Leaves and rejoins alternately, after this time each.
    pub(crate) flaps: Option<f64>,
    /// When it joins.
    pub(crate) joins: f64,
    /// Reads in order while it downloads: the number of units that it may be ahead, and how long
    /// it takes to read one.
    pub(crate) reads: Option<(u32, f64)>,
    /// Announces the units that it is sending to others as being fetched.
    pub(crate) announces_uploads: bool,
    /// Rate at which it sends each request; an origin may limit each connection.
    pub(crate) request_rate: f64,
    /// Fraction of the requests that break off half-way.
    pub(crate) cuts: f64,
    /// An origin: complete, and asked last.
    pub(crate) is_origin: bool,
    /// Its zone and its rack; everybody knows them.
    pub(crate) labels: Labels,
    /// Serves only what it got from an origin, since nothing else is verified yet.
    pub(crate) is_provisional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    All,
    Nothing,
    Share(f64),
}

impl Spec {
    pub(crate) fn seed(rate: f64) -> Self {
        Self {
            up: rate,
            down: rate,
            start: Start::All,
            downloads: false,
            slots: usize::MAX,
            max_waiting: usize::MAX,
            corrupt: 0.0,
            corrupts_until: f64::INFINITY,
            refuses: None,
            false_claims: 0.0,
            stall: None,
            dies: None,
            flaps: None,
            joins: 0.0,
            reads: None,
            announces_uploads: false,
            request_rate: f64::INFINITY,
            cuts: 0.0,
            is_origin: false,
            labels: Labels::default(),
            is_provisional: false,
        }
    }

    pub(crate) fn origin(rate: f64) -> Self {
        Self {
            is_origin: true,
            ..Self::seed(rate)
        }
    }

    pub(crate) fn peer(rate: f64) -> Self {
        Self {
            start: Start::Nothing,
            downloads: true,
            ..Self::seed(rate)
        }
    }
}

/// The state of a node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) spec: Spec,
    pub(crate) neighbours: Vec<usize>,
    pub(crate) swarm: Option<Swarm>,
    /// The units that it can serve.
    pub(crate) have: Bitfield,
    /// The units that it got from an origin.
    pub(crate) from_origin: Bitfield,
    /// Its last announcement: the units that it has, and those that it fetches.
    pub(crate) announced: (Bitfield, Bitfield),
    pub(crate) announce_pending: bool,
    /// The units that it is sending, if it announces them.
    pub(crate) uploading: Bitfield,
    pub(crate) online: bool,
    pub(crate) stalled: bool,
    pub(crate) refuses: bool,
    /// Number of joins and leaves: messages sent during an earlier visit are lost.
    pub(crate) visit: u32,

    /// Requests to it, in order of arrival.
    pub(crate) uploads: Vec<usize>,
    pub(crate) sending: bool,
    /// When the next request may go on, if all wait for their rate.
    pub(crate) paced_until: Option<u64>,
    pub(crate) down_free: u64,
    pub(crate) sent_bytes: u64,
    /// The part of it that went to nodes of other zones, and to those of other racks.
    pub(crate) sent_to_zones: u64,
    pub(crate) sent_to_racks: u64,
    /// How many times it began to send each unit.
    pub(crate) sent_units: Vec<u32>,

    pub(crate) wake: Option<u64>,
    pub(crate) finished: Option<u64>,
    pub(crate) banned: Vec<usize>,
    /// Number of units that it has read, and whether it is reading one.
    pub(crate) read_units: u32,
    pub(crate) is_reading: bool,
    /// Number of requests that it made.
    pub(crate) requests_made: u64,
}

impl Node {
    /// The units that it serves to others.
    pub(crate) const fn servable(&self) -> &Bitfield {
        match self.spec.is_provisional {
            true => &self.from_origin,
            false => &self.have,
        }
    }
}
