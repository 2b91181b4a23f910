//! Limits of the calls to an index.

/// Maximum registrations in one `Register` call, as the contract defines it.
pub const MAX_BATCH: usize = 10_000;

/// Length in bytes of the random id that identifies one run of a peer, as the contract defines it.
pub const INSTANCE: usize = 16;
