//! Work on files: blocking work, durable writes, reads from the page cache, and the capabilities of
//! file systems.

pub(crate) mod blocking;
pub(crate) mod modes;
pub(crate) mod page_cache;
pub(crate) mod parallel;

pub(crate) use potluck_core::durable;
