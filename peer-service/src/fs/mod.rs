//! File system access that must not block the async runtime.

pub(crate) mod blocking;
pub(crate) mod page_cache;
pub(crate) mod parallel;
