//! Adds items to the library, removes them, and publishes each change.

pub(crate) mod batch;
pub(crate) mod build;
pub(crate) mod publish;
pub(crate) mod unshare;
