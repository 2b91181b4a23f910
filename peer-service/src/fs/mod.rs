//! Work on files: what must not block the async runtime, what must survive a power failure, and
//! what a file system can store.

pub(crate) mod blocking;
pub(crate) mod durable;
pub(crate) mod modes;
pub(crate) mod page_cache;
pub(crate) mod parallel;
