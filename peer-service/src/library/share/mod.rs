//! Builds items from paths, and runs share calls.

pub(crate) mod batch;
pub(crate) mod builder;
