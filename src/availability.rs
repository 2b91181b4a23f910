//! The units of a file that a peer has, those that it is downloading, and changes of both.

use crate::bitfield::Bitfield;

/// The units of a file that a peer has, and those that it is downloading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Verified units.
    pub have: Bitfield,
    /// Units being downloaded.
    pub fetching: Bitfield,
}

/// Units whose state changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AvailabilityChange {
    /// Units that became available.
    pub have: Vec<u32>,
    /// Units whose download started.
    pub fetching: Vec<u32>,
    /// Units whose download stopped before they became available.
    pub abandoned: Vec<u32>,
}

impl AvailabilityChange {
    /// Whether no unit changed.
    pub const fn is_empty(&self) -> bool {
        self.have.is_empty() && self.fetching.is_empty() && self.abandoned.is_empty()
    }

    /// Number of units that changed.
    pub const fn len(&self) -> usize {
        self.have.len() + self.fetching.len() + self.abandoned.len()
    }
}

/// A report of a peer's availability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AvailabilityUpdate {
    /// The complete availability; replaces earlier reports.
    Snapshot(Availability),
    /// The changes since the last report.
    Change(AvailabilityChange),
}
