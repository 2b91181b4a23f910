//! Who takes part in a simulated swarm.

use potluck_core::bitfield::Bitfield;
use potluck_swarm::Swarm;

/// What a node is told to be. Rates in bytes a second, times in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Uplink and downlink.
    pub(crate) up: f64,
    pub(crate) down: f64,
    /// What it has at the start: all, nothing, or this share of the units at random.
    pub(crate) start: Start,
    /// Whether it downloads.
    pub(crate) downloads: bool,
    /// Most uploads at once; more are told BUSY.
    pub(crate) slots: usize,
    /// Most uploads that wait for their turn; more are told BUSY.
    pub(crate) most_waiting: usize,
    /// Share of the units it sends with a wrong byte.
    pub(crate) corrupt: f64,
    /// Until when it corrupts, in seconds: the link does, and the node is honest.
    pub(crate) corrupts_until: f64,
    /// When it refuses whatever it is asked for, and for how long. Nothing that it announced
    /// changes.
    pub(crate) refuses: Option<(f64, f64)>,
    /// Share of the units it says it has and does not.
    pub(crate) lies: f64,
    /// When it stops sending without a word, and for how long.
    pub(crate) stall: Option<(f64, f64)>,
    /// When it dies for good, its connections broken.
    pub(crate) dies: Option<f64>,
    /// Is away and back in turns of this length.
    pub(crate) flaps: Option<f64>,
    /// When it joins.
    pub(crate) joins: f64,
    /// Tells watchers, as being fetched, what it is sending to others.
    pub(crate) tells_uploads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    All,
    Nothing,
    Share(f64),
}

impl Spec {
    pub(crate) const fn seed(rate: f64) -> Self {
        Self {
            up: rate,
            down: rate,
            start: Start::All,
            downloads: false,
            slots: usize::MAX,
            most_waiting: usize::MAX,
            corrupt: 0.0,
            corrupts_until: f64::INFINITY,
            refuses: None,
            lies: 0.0,
            stall: None,
            dies: None,
            flaps: None,
            joins: 0.0,
            tells_uploads: false,
        }
    }

    pub(crate) const fn peer(rate: f64) -> Self {
        Self {
            start: Start::Nothing,
            downloads: true,
            ..Self::seed(rate)
        }
    }
}

/// A node under way.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) spec: Spec,
    pub(crate) neighbours: Vec<usize>,
    pub(crate) swarm: Option<Swarm>,
    /// What it can serve.
    pub(crate) have: Bitfield,
    /// What it last told about itself.
    pub(crate) told: (Bitfield, Bitfield),
    pub(crate) telling: bool,
    /// What it is sending, where it tells that.
    pub(crate) uploading: Bitfield,
    pub(crate) online: bool,
    pub(crate) stalled: bool,
    pub(crate) refuses: bool,
    /// Counts its visits: what was sent to an earlier one is lost.
    pub(crate) visit: u32,

    /// What it is asked for, in the order in which it was.
    pub(crate) uploads: Vec<usize>,
    pub(crate) sending: bool,
    pub(crate) down_free: u64,
    pub(crate) sent_bytes: u64,
    /// How often each unit was begun to be sent.
    pub(crate) sent_units: Vec<u32>,

    pub(crate) wake: Option<u64>,
    pub(crate) finished: Option<u64>,
    pub(crate) banned: Vec<usize>,
    /// How often it asked others.
    pub(crate) asked: u64,
}
