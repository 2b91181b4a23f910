//! The configuration of a simulated world.

use std::time::Duration;

use potluck_swarm::SwarmConfig;
use rand::{rngs::Xoshiro256PlusPlus, seq::SliceRandom};

use crate::node::{Spec, Start};

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) nodes: Vec<Spec>,
    /// Length of each unit in bytes.
    pub(crate) units: Vec<u64>,
    /// One-way delay in seconds.
    pub(crate) delay: f64,
    /// How long a node collects changes before it announces them, in seconds.
    pub(crate) announce_interval: f64,
    /// Time in seconds for which a seed collects changes of its uploads before it announces them.
    pub(crate) seed_announce_interval: f64,
    /// Number of other nodes that each downloader knows, complete ones first; `None` means all.
    pub(crate) neighbours: Option<usize>,
    pub(crate) config: SwarmConfig,
    /// If set, each downloader's budget changes constantly between these two numbers of units,
    /// within the budget of `config`.
    pub(crate) budgets: Option<(u64, u64)>,
    /// Maximum number of parallel uploads of one node; the others wait, first come, first served.
    pub(crate) streams: usize,
    /// Maximum number of parallel large uploads.
    pub(crate) max_large: usize,
    /// The delay that a node asks for when it answers BUSY.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the swarms know the labels of the nodes.
    pub(crate) uses_labels: bool,
    /// The simulation gives up after this many seconds.
    pub(crate) limit: f64,
}

impl Setup {
    /// Equal units, by default of 256 KiB.
    pub(crate) fn new(nodes: Vec<Spec>, units: usize) -> Self {
        Self {
            nodes,
            units: vec![256 * 1024; units],
            delay: 0.0005,
            announce_interval: 0.005,
            seed_announce_interval: 0.0,
            neighbours: None,
            config: SwarmConfig::default(),
            budgets: None,
            streams: usize::MAX,
            max_large: usize::MAX,
            retry_after: None,
            uses_labels: true,
            limit: 3600.0,
        }
    }

    pub(crate) fn unit_count(&self) -> u32 {
        self.units.len() as u32
    }

    pub(crate) fn longest_unit(&self) -> u64 {
        self.units.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u64 {
        self.units.iter().sum()
    }
}

/// The nodes that a node knows from the start.
pub(crate) fn neighbours(
    index: usize,
    setup: &Setup,
    count: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<usize> {
    let mut others: Vec<usize> = (0..count).filter(|&other| other != index).collect();
    let Some(max) = setup.neighbours else {
        return others;
    };
    others.shuffle(rng);
    // Each node chooses half of its neighbours; about as many choose it.
    others.sort_by_key(|&other| setup.nodes[other].start != Start::All);
    let seeds = others
        .iter()
        .take_while(|&&other| setup.nodes[other].start == Start::All)
        .count();
    others.truncate(seeds + max / 2);
    others
}
