//! Work on files: outside the async runtime, durable through a power failure, and within the
//! capabilities of the file system.

pub(crate) mod blocking;
pub(crate) mod durable;
pub(crate) mod modes;
pub(crate) mod page_cache;
pub(crate) mod parallel;
