//! Which pieces of peers are compared with the origin. Pure.
//!
//! The first piece of each peer is compared, then a random part of the others. What that costs the
//! origin is bounded over all receivers together: each spends a part of the file that shrinks with
//! the number of peers it knows (docs/decisions/0055-origins.md).
//!
//! Invariant: the bytes compared never exceed the budget.

use std::{collections::HashSet, ops::Range};

use potluck_core::identity::merkle::LEAF_SIZE;
use potluck_swarm::PeerKey;

/// The part of the file that all receivers together may compare, in percent.
const BUDGET_PERCENT: u64 = 3;

/// One in this many further pieces is compared.
const ONE_IN: u32 = 100;

/// Decides what is compared.
#[derive(Debug)]
pub(crate) struct CheckPlan {
    size: u64,
    spent: u64,
    seen: HashSet<PeerKey>,
}

impl CheckPlan {
    /// Nothing is compared yet of a file of this many bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            spent: 0,
            seen: HashSet::new(),
        }
    }

    /// The range inside a unit of `len` bytes from this peer to compare, if any. `receivers` is the
    /// number of known peers and this one; `random` is uniform.
    pub(crate) fn choose(
        &mut self,
        peer: PeerKey,
        len: u64,
        receivers: u64,
        random: u64,
    ) -> Option<Range<u64>> {
        let is_first = !self.seen.contains(&peer);
        // Fits: below `ONE_IN`.
        if !is_first && !((random >> 32) as u32).is_multiple_of(ONE_IN) {
            return None;
        }
        let leaf = LEAF_SIZE as u64;
        let leaves = len.div_ceil(leaf).max(1);
        let start = (random & u64::from(u32::MAX)) % leaves * leaf;
        let range = start..len.min(start + leaf);
        let bytes = range.end - range.start;
        let budget = self.size / 100 * BUDGET_PERCENT / receivers.max(1);
        if self.spent + bytes > budget {
            return None;
        }
        self.spent += bytes;
        self.seen.insert(peer);
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    #[test]
    fn the_first_piece_of_each_peer_is_compared() {
        let mut plan = CheckPlan::new(64 << 20);
        for peer in 0..4 {
            // Not one of the random ones.
            let range = plan.choose(PeerKey(peer), PIECE, 5, 1 << 32 | 3).unwrap();
            assert_eq!(range, 3 * 16384..4 * 16384);
            assert_eq!(plan.choose(PeerKey(peer), PIECE, 5, 1 << 32), None);
        }
        assert_eq!(plan.choose(PeerKey(0), 100, 5, 0), Some(0..100));
    }

    #[test]
    fn all_receivers_together_stay_within_the_budget() {
        for receivers in [1, 8, 100, 1000] {
            let mut plan = CheckPlan::new(256 << 20);
            for piece in 0..2048_u64 {
                plan.choose(PeerKey(piece % receivers), PIECE, receivers, piece);
            }
            assert!(plan.spent * receivers <= (256 << 20) / 33, "{receivers}");
        }
    }
}
