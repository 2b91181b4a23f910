//! The conditions that hold when a simulated world ends.

use crate::world::{World, seconds};

impl World {
    /// Asserts that every downloader verified every unit and stayed within its budget.
    pub(crate) fn assert_sound(&self, seed: u64) {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(swarm) = node.swarm.as_ref().filter(|_| node.spec.dies.is_none()) else {
                continue;
            };
            assert!(
                node.finished.is_some() && node.have.is_full() && swarm.is_finished(),
                "seed {seed}: node {index} did not finish within {} s: {:?}, missing {:?}, {:?}, \
                 world {:?}",
                seconds(self.now),
                swarm.stuck_reason(),
                swarm.missing(),
                swarm.peers().collect::<Vec<_>>(),
                self.setup,
            );
            assert_eq!(
                *swarm.have(),
                node.have,
                "seed {seed}: node {index} has exactly the units that verified"
            );
            let budget = self
                .setup
                .config
                .max_in_flight_bytes
                .max(self.setup.longest_unit());
            assert!(
                swarm.counters().peak_in_flight_bytes <= budget,
                "seed {seed}: node {index} exceeded its budget"
            );
        }
    }

    /// Duplicate bytes that a downloader received.
    pub(crate) fn duplicates(&self, node: usize) -> f64 {
        self.nodes[node]
            .swarm
            .as_ref()
            .map_or(0.0, |swarm| swarm.counters().duplicate_bytes as f64)
    }
}
