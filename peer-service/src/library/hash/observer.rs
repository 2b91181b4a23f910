//! The callbacks of hashing. All of them are called from any thread.

use std::path::PathBuf;

/// Receives the number of bytes hashed since the last call, and a function that gives the file's
/// path.
pub(crate) type OnProgress<'a> = dyn Fn(&dyn Fn() -> PathBuf, u64) + Sync + 'a;

/// Polled often; true stops the hashing.
pub(crate) type IsCancelled<'a> = dyn Fn() -> bool + Sync + 'a;

/// The callbacks of one hashing job.
#[derive(Clone, Copy)]
pub(crate) struct HashObserver<'a> {
    /// Receives sizes of files, in bytes, before they are hashed or found to be known.
    pub(crate) on_size: &'a (dyn Fn(u64) + Sync),
    /// Receives the bytes done of a file.
    pub(crate) on_progress: &'a OnProgress<'a>,
    /// Whether to stop.
    pub(crate) is_cancelled: &'a IsCancelled<'a>,
}

impl<'a> HashObserver<'a> {
    /// An observer of background work: it only cancels.
    pub(crate) const fn silent(is_cancelled: &'a IsCancelled<'a>) -> Self {
        Self {
            on_size: &|_| {},
            on_progress: &|_, _| {},
            is_cancelled,
        }
    }
}
