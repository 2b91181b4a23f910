//! The missing units, rarest first, in random order among equals.
//!
//! One array holds them sorted by count, with a marker at the first unit of each count. A count
//! that changes by one moves its unit across one marker, O(1), and then to a random position among
//! its new equals, so that two peers with the same view pick different units. Adding or removing a
//! unit moves one unit per marker: O(largest count). The idea is from libtorrent's `piece_picker`.
//!
//! Invariants: `order` is sorted by count; `start[c]` is the first position of count `c` or more;
//! `position` is the inverse of `order`.

use rand::{RngExt, rngs::Xoshiro256PlusPlus};

const ABSENT: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct RarityOrder {
    counts: Vec<u32>,
    order: Vec<u32>,
    position: Vec<u32>,
    start: Vec<u32>,
}

impl RarityOrder {
    /// No unit is missing, and all counts are 0.
    pub(crate) fn new(units: usize) -> Self {
        Self {
            counts: vec![0; units],
            order: Vec::new(),
            position: vec![ABSENT; units],
            start: vec![0],
        }
    }

    /// Number of missing units.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(crate) fn contains(&self, unit: u32) -> bool {
        self.position[unit as usize] != ABSENT
    }

    /// How many times this unit is counted: partial peers that have it and peers that fetch it.
    pub(crate) fn count(&self, unit: u32) -> u32 {
        self.counts[unit as usize]
    }

    /// Number of missing units that no partial peer has and nobody fetches.
    pub(crate) fn uncounted(&self) -> usize {
        self.start.get(1).map_or(self.order.len(), |&end| end as usize)
    }

    /// The missing units, rarest first.
    pub(crate) fn rarest(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().copied()
    }

    /// The missing units that are counted at least once, rarest first.
    pub(crate) fn counted(&self) -> impl Iterator<Item = u32> + '_ {
        self.order[self.uncounted()..].iter().copied()
    }

    /// The unit becomes missing.
    pub(crate) fn insert(&mut self, unit: u32, rng: &mut Xoshiro256PlusPlus) {
        debug_assert!(!self.contains(unit), "unit {unit} is missing already");
        let count = self.counts[unit as usize] as usize;
        self.extend_markers(count);
        // The hole moves from the end to the unit's count, one marker at a time.
        let mut hole = self.order.len() as u32;
        self.order.push(unit);
        for marker in (count + 1..self.start.len()).rev() {
            let first = self.start[marker];
            self.start[marker] += 1;
            self.fill(hole, first);
            hole = first;
        }
        self.put(hole, unit);
        self.shuffle(unit, rng);
    }

    /// The unit is no longer missing.
    pub(crate) fn remove(&mut self, unit: u32) {
        debug_assert!(self.contains(unit), "unit {unit} is not missing");
        let mut hole = self.position[unit as usize];
        for marker in self.counts[unit as usize] as usize + 1..self.start.len() {
            self.start[marker] -= 1;
            let last = self.start[marker];
            self.fill(hole, last);
            hole = last;
        }
        if let Some(last) = self.order.pop()
            && (hole as usize) < self.order.len()
        {
            self.put(hole, last);
        }
        self.position[unit as usize] = ABSENT;
    }

    /// One more peer has or fetches the unit.
    pub(crate) fn increment(&mut self, unit: u32, rng: &mut Xoshiro256PlusPlus) {
        let count = self.counts[unit as usize] as usize;
        self.counts[unit as usize] += 1;
        self.extend_markers(count + 1);
        if self.contains(unit) {
            self.start[count + 1] -= 1;
            self.swap(self.position[unit as usize], self.start[count + 1]);
            self.shuffle(unit, rng);
        }
    }

    /// One peer fewer has or fetches the unit.
    pub(crate) fn decrement(&mut self, unit: u32, rng: &mut Xoshiro256PlusPlus) {
        let count = self.counts[unit as usize] as usize;
        debug_assert!(count > 0, "unit {unit} has no count");
        self.counts[unit as usize] -= 1;
        if self.contains(unit) {
            self.swap(self.position[unit as usize], self.start[count]);
            self.start[count] += 1;
            self.shuffle(unit, rng);
        }
    }

    /// Extends the markers up to `count`.
    fn extend_markers(&mut self, count: usize) {
        while self.start.len() <= count {
            self.start.push(self.order.len() as u32);
        }
    }

    /// Moves a unit to a random position among its equals.
    fn shuffle(&mut self, unit: u32, rng: &mut Xoshiro256PlusPlus) {
        let count = self.counts[unit as usize] as usize;
        let end = self
            .start
            .get(count + 1)
            .copied()
            .unwrap_or(self.order.len() as u32);
        self.swap(
            self.position[unit as usize],
            rng.random_range(self.start[count]..end),
        );
    }

    fn swap(&mut self, a: u32, b: u32) {
        let (at_a, at_b) = (self.order[a as usize], self.order[b as usize]);
        self.put(a, at_b);
        self.put(b, at_a);
    }

    /// Moves the unit at `from` into the hole. If both are the same position, the count has no
    /// units and nothing moves.
    fn fill(&mut self, hole: u32, from: u32) {
        if hole != from {
            self.put(hole, self.order[from as usize]);
        }
    }

    fn put(&mut self, position: u32, unit: u32) {
        self.order[position as usize] = unit;
        self.position[unit as usize] = position;
    }

    /// Panics if an invariant does not hold.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        assert!(
            self.order.is_sorted_by_key(|&unit| self.counts[unit as usize]),
            "missing units are sorted"
        );
        for (position, &unit) in self.order.iter().enumerate() {
            assert_eq!(
                self.position[unit as usize] as usize, position,
                "position is the inverse of order"
            );
        }
        for (count, &start) in self.start.iter().enumerate() {
            let below = self
                .order
                .partition_point(|&unit| (self.counts[unit as usize] as usize) < count);
            assert_eq!(
                start as usize, below,
                "the marker of {count} is at its first unit"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};
    use rand::SeedableRng;

    use super::*;

    proptest! {
        #[test]
        fn missing_units_stay_sorted(changes in vec((0u32..20, 0u8..4), 0..300), seed: u64) {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut rarity = RarityOrder::new(20);
            let mut missing = BTreeSet::new();
            for (unit, change) in changes {
                match change {
                    0 if missing.insert(unit) => rarity.insert(unit, &mut rng),
                    1 if missing.remove(&unit) => rarity.remove(unit),
                    2 => rarity.increment(unit, &mut rng),
                    3 if rarity.count(unit) > 0 => rarity.decrement(unit, &mut rng),
                    _ => {}
                }
                rarity.check();
                let sorted: BTreeSet<_> = rarity.rarest().collect();
                prop_assert_eq!(&sorted, &missing);
            }
        }
    }

    #[test]
    fn equally_rare_units_come_in_random_order() {
        let first = |seed| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut rarity = RarityOrder::new(100);
            (0..100).for_each(|unit| rarity.insert(unit, &mut rng));
            rarity.rarest().next()
        };
        let firsts: BTreeSet<_> = (0..50).map(first).collect();
        assert!(
            firsts.len() > 25,
            "50 peers start with only {} different units",
            firsts.len()
        );
    }
}
