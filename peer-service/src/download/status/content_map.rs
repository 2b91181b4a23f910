//! A picture of the content of a download: which parts are verified, and which peer sent them.
//!
//! The units are divided into at most [`MAX_CELLS`] cells: unit `u` of `n` belongs to the cell
//! `floor(u * cells / n)`. So the memory for a picture does not depend on the size of the content.

use potluck_core::model::Address;
use potluck_swarm::{MissingRun, PeerKey};

/// Maximum cells of a picture: more are hard to tell apart on a screen.
const MAX_CELLS: u32 = 1024;

/// Maximum peers with a number of their own: a number fits in one byte.
const MAX_SENDERS: usize = 254;

/// Stands for a peer beyond [`MAX_SENDERS`].
const OTHER_SENDER: u8 = 255;

/// The picture of a download. Each list has one entry for each cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentMap {
    /// The verified part of the cell's units: 0 to 255, which is all of them.
    pub verified: Vec<u8>,
    /// Whether a unit of the cell is in flight.
    pub in_flight: Vec<bool>,
    /// The fewest peers that can serve a missing unit of the cell; 255 for more, or if nothing is
    /// missing.
    pub providers: Vec<u8>,
    /// The peer that sent the cell's latest unit, as a position in `senders` that counts from 1. 0
    /// for none in this run of the download, 255 for a peer that is not in `senders`.
    pub sender: Vec<u8>,
    /// The peers that sent units in this run, in the order of their first unit; at most 254.
    pub senders: Vec<Address>,
}

/// Records which peer sent the units of each cell.
#[derive(Debug, Clone)]
pub(crate) struct UnitSenders {
    units: u32,
    senders: Vec<(PeerKey, Address)>,
    of_cell: Vec<u8>,
}

impl UnitSenders {
    /// The senders of so many units; none yet.
    pub(crate) fn new(units: u32) -> Self {
        Self {
            units,
            senders: Vec::new(),
            of_cell: vec![0; units.min(MAX_CELLS) as usize],
        }
    }

    /// Records that a peer sent a unit.
    pub(crate) fn record(&mut self, unit: u32, key: PeerKey, address: &Address) {
        let known = self.senders.iter().position(|(sender, _)| *sender == key);
        let position = match known {
            Some(position) => Some(position),
            None if self.senders.len() == MAX_SENDERS => None,
            None => {
                self.senders.push((key, address.clone()));
                Some(self.senders.len() - 1)
            }
        };
        let number = position.map_or(OTHER_SENDER, |position| position as u8 + 1); // below 255
        let cell = self.cell_of(unit);
        if let Some(of_cell) = self.of_cell.get_mut(cell) {
            *of_cell = number;
        }
    }

    /// The picture, with these missing units.
    pub(crate) fn map(&self, missing: &[MissingRun]) -> ContentMap {
        let cells = self.of_cell.len();
        let mut map = ContentMap {
            verified: Vec::with_capacity(cells),
            in_flight: vec![false; cells],
            providers: vec![u8::MAX; cells],
            sender: self.of_cell.clone(),
            senders: self.senders.iter().map(|(_, address)| address.clone()).collect(),
        };
        let mut missing_units = vec![0_u32; cells];
        for run in missing {
            let providers = u8::try_from(run.providers).unwrap_or(u8::MAX);
            for unit in run.units.clone() {
                let cell = self.cell_of(unit);
                missing_units[cell] += 1;
                map.in_flight[cell] |= run.in_flight;
                map.providers[cell] = map.providers[cell].min(providers);
            }
        }
        map.verified.extend((0..cells).map(|cell| {
            let units = self.first_unit(cell + 1) - self.first_unit(cell);
            let verified = units - missing_units[cell].min(units);
            // At most 255, and 255 only for all.
            (u64::from(verified) * 255 / u64::from(units.max(1))) as u8
        }));
        map
    }

    /// The cell of a unit.
    fn cell_of(&self, unit: u32) -> usize {
        let cells = self.of_cell.len() as u64;
        (u64::from(unit) * cells / u64::from(self.units.max(1))) as usize // below `cells`
    }

    /// The first unit of a cell, or the number of units after the last cell.
    fn first_unit(&self, cell: usize) -> u32 {
        let cells = self.of_cell.len().max(1) as u64;
        (cell as u64 * u64::from(self.units)).div_ceil(cells) as u32 // at most `units`
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn address(port: u16) -> Address {
        Address {
            host: "192.0.2.1".into(),
            port,
        }
    }

    fn run(units: Range<u32>, providers: u32, in_flight: bool) -> MissingRun {
        MissingRun {
            units,
            providers,
            in_flight,
        }
    }

    #[test]
    fn a_cell_stands_for_each_unit_of_a_small_file() {
        let mut senders = UnitSenders::new(4);
        senders.record(1, PeerKey(7), &address(7));
        senders.record(3, PeerKey(8), &address(8));
        senders.record(0, PeerKey(7), &address(7));
        let map = senders.map(&[run(2..3, 300, true)]);
        let expected = ContentMap {
            verified: vec![255, 255, 0, 255],
            in_flight: vec![false, false, true, false],
            providers: vec![255; 4],
            sender: vec![1, 1, 0, 2],
            senders: vec![address(7), address(8)],
        };
        assert_eq!(map, expected);
    }

    #[test]
    fn every_unit_of_a_large_file_has_a_cell() {
        for units in [1025, 1500, 2048, 99_999] {
            let senders = UnitSenders::new(units);
            for cell in 0..MAX_CELLS as usize {
                let (first, end) = (senders.first_unit(cell), senders.first_unit(cell + 1));
                assert!(first < end, "{units}: cell {cell} is empty");
                assert_eq!(senders.cell_of(first), cell);
                assert_eq!(senders.cell_of(end - 1), cell);
            }
            let map = senders.map(&[run(0..units - 1, 2, false)]);
            assert_eq!(map.verified[0], 0);
            assert!(*map.verified.last().unwrap() > 0);
            assert_eq!(map.providers[0], 2);
        }
    }

    #[test]
    fn a_picture_names_a_bounded_number_of_peers() {
        let mut senders = UnitSenders::new(300);
        for unit in 0..300_u16 {
            senders.record(unit.into(), PeerKey(unit.into()), &address(unit));
        }
        let map = senders.map(&[]);
        assert_eq!(map.senders.len(), MAX_SENDERS);
        assert_eq!((map.sender[253], map.sender[254]), (254, OTHER_SENDER));
    }

    #[test]
    fn an_empty_file_has_no_cells() {
        assert_eq!(UnitSenders::new(0).map(&[]), ContentMap::default());
    }
}
