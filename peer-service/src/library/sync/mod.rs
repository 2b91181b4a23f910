//! Bringing the library and the disk together: at start, and again whenever something changes.

pub(crate) mod load;
pub(crate) mod offline;
pub(crate) mod reconcile;
