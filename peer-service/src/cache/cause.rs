//! What was removed, and why.

use super::entry::CacheEntry;

/// Why entries are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionCause {
    /// The cache is above its limit.
    Limit,
    /// They were not used for long.
    Idle,
    /// The disk is full.
    Disk,
    /// The owner asked for it.
    Request,
}

impl EvictionCause {
    /// All causes, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Limit, Self::Idle, Self::Disk, Self::Request];

    /// The cause as the value of a label.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Idle => "idle",
            Self::Disk => "disk",
            Self::Request => "request",
        }
    }
}

/// An entry that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// The entry as it was.
    pub entry: CacheEntry,
    /// Why it was removed.
    pub cause: EvictionCause,
}
