//! What peers provide, by how near they are.
//!
//! Invariants, while it is enabled: the counts are sums over all peers whose availability is known,
//! where a complete peer counts as a peer and for the units that it fetches. A missing unit is free
//! at a level if its count there is zero.

use potluck_core::model::Distance;
use rand::rngs::Xoshiro256PlusPlus;

use super::RarityOrder;

/// The peers in the same rack, and those in the same rack or zone. Empty as long as every peer is
/// equally near.
#[derive(Debug, Default)]
pub(crate) struct Nearby {
    levels: Option<Box<[Level; 2]>>,
}

/// The peers up to a distance.
#[derive(Debug)]
pub(crate) struct Level {
    /// For each unit, how many of these peers have or fetch it.
    pub(crate) units: Vec<u32>,
    pub(crate) complete: u32,
    pub(crate) partial: u32,
    /// The missing units that none of them has or fetches, by how many other peers do.
    pub(crate) free: RarityOrder,
}

impl Nearby {
    pub(crate) const fn is_enabled(&self) -> bool {
        self.levels.is_some()
    }

    /// Starts to count, without peers and without missing units.
    pub(crate) fn enable(&mut self, units: usize) {
        let level = || Level {
            units: vec![0; units],
            complete: 0,
            partial: 0,
            free: RarityOrder::new(units),
        };
        self.levels = Some(Box::new([level(), level()]));
    }

    /// The levels that include a peer at this distance.
    fn including(&mut self, distance: Distance) -> &mut [Level] {
        match (&mut self.levels, distance) {
            (None, _) | (_, Distance::Elsewhere) => &mut [],
            (Some(levels), Distance::Rack) => &mut levels[..],
            (Some(levels), Distance::Zone) => &mut levels[1..],
        }
    }

    /// One more or one fewer peer at this distance has or fetches the unit.
    pub(crate) fn count_unit(
        &mut self,
        (distance, unit): (Distance, u32),
        more: bool,
        is_missing: bool,
        rng: &mut Xoshiro256PlusPlus,
    ) {
        for level in self.including(distance) {
            let count = &mut level.units[unit as usize];
            change(count, more);
            match (*count, more) {
                (1, true) if is_missing => level.free.remove(unit),
                (0, false) if is_missing => level.free.insert(unit, rng),
                _ => {}
            }
        }
        for level in self.levels.iter_mut().flat_map(|levels| levels.iter_mut()) {
            match more {
                true => level.free.increment(unit, rng),
                false => level.free.decrement(unit, rng),
            }
        }
    }

    pub(crate) fn count_peer(&mut self, distance: Distance, complete: bool, more: bool) {
        for level in self.including(distance) {
            let count = match complete {
                true => &mut level.complete,
                false => &mut level.partial,
            };
            change(count, more);
        }
    }

    /// The unit becomes missing, or is no longer missing.
    pub(crate) fn set_missing(&mut self, unit: u32, missing: bool, rng: &mut Xoshiro256PlusPlus) {
        for level in self.levels.iter_mut().flat_map(|levels| levels.iter_mut()) {
            match missing {
                _ if level.units[unit as usize] > 0 => {}
                true => level.free.insert(unit, rng),
                false => level.free.remove(unit),
            }
        }
    }

    /// The peers that are nearer than this, if there are any.
    pub(crate) fn nearer(&self, distance: Distance) -> Option<&Level> {
        let levels = self.levels.as_deref()?;
        let level = match distance {
            Distance::Rack => return None,
            Distance::Zone => &levels[0],
            Distance::Elsewhere => &levels[1],
        };
        (level.complete + level.partial > 0).then_some(level)
    }

    /// The levels, for the check of the invariants.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn levels(&self) -> Option<&[Level; 2]> {
        self.levels.as_deref()
    }
}

impl Level {
    /// Whether complete peers make a more distant peer superfluous. In a crowd they are shared, so
    /// each unit that a partial peer sends instead is a gain for all; another complete peer would be
    /// no gain.
    pub(crate) const fn seeds_suffice(&self, is_complete: bool) -> bool {
        self.complete > 0 && (is_complete || self.complete > self.partial)
    }
}

fn change(count: &mut u32, more: bool) {
    debug_assert!(more || *count > 0, "a count falls below zero");
    if more { *count += 1 } else { *count -= 1 }
}
