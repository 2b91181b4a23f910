//! Reconciles the library with the disk: at start, and again when something changes.

pub(crate) mod load;
pub(crate) mod offline;
pub(crate) mod reconcile;
