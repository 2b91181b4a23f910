//! Which units of a file a peer has and is fetching.

use crate::bitfield::Bitfield;

/// Which units of a file a peer has and is fetching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Verified here.
    pub have: Bitfield,
    /// Being fetched.
    pub fetching: Bitfield,
}
