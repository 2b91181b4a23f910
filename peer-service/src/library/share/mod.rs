//! Putting items into the library, taking them out, and publishing each change.

pub(crate) mod batch;
pub(crate) mod build;
pub(crate) mod publish;
pub(crate) mod unshare;
