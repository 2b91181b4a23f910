//! Which units of a file a peer has and is downloading.

use crate::bitfield::Bitfield;

/// Which units of a file a peer has and is downloading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Verified units.
    pub have: Bitfield,
    /// Units being downloaded.
    pub fetching: Bitfield,
}
