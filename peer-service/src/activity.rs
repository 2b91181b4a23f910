//! Detects whether the peer is transferring data, so that background work can yield.
//!
//! The data path only adds to byte counters. `ActivityWatch` compares two readings of them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use potluck_core::FileId;

/// Time without transferred bytes after which the peer counts as idle: longer than the gaps within
/// a running download.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// Byte counters since the peer started. Cheap to clone; all clones share the same counters.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    /// Bytes queued for sending to other peers.
    pub uploaded: Arc<AtomicU64>,
    /// Verified bytes downloaded.
    pub downloaded: Arc<AtomicU64>,
    /// Bytes sent of some files.
    pub tallies: UploadTallies,
}

/// Counts the bytes that are sent of some files. Cheap to clone; all clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct UploadTallies(Arc<RwLock<HashMap<FileId, Arc<AtomicU64>>>>);

impl UploadTallies {
    /// Adds the bytes sent of these files to `counter` from now on.
    pub(crate) fn watch(&self, files: Vec<FileId>, counter: &Arc<AtomicU64>) {
        let mut counters = self.0.write();
        counters.extend(files.into_iter().map(|id| (id, Arc::clone(counter))));
    }

    /// No longer counts for `counter`.
    pub(crate) fn forget(&self, counter: &Arc<AtomicU64>) {
        self.0.write().retain(|_, other| !Arc::ptr_eq(other, counter));
    }

    /// The counter of a file, if its bytes are counted.
    pub(crate) fn find(&self, id: &FileId) -> Option<Arc<AtomicU64>> {
        self.0.read().get(id).cloned()
    }
}

impl Activity {
    fn moved(&self) -> u64 {
        let [up, down] =
            [&self.uploaded, &self.downloaded].map(|count| count.load(Ordering::Relaxed));
        up.wrapping_add(down)
    }
}

/// Compares successive readings of the counters.
#[derive(Debug)]
pub(crate) struct ActivityWatch<'a> {
    activity: &'a Activity,
    moved: u64,
    /// The time of the last reading that differed from the previous one; `None` if there was none.
    changed: Option<Instant>,
}

impl<'a> ActivityWatch<'a> {
    /// Starts idle, until bytes move.
    pub(crate) fn new(activity: &'a Activity) -> Self {
        Self {
            moved: activity.moved(),
            activity,
            changed: None,
        }
    }

    /// Whether bytes moved since the last call, or within the last [`IDLE_AFTER`].
    pub(crate) fn is_busy(&mut self, now: Instant) -> bool {
        let moved = self.activity.moved();
        if moved != self.moved {
            (self.moved, self.changed) = (moved, Some(now));
        }
        self.changed
            .is_some_and(|changed| now.saturating_duration_since(changed) < IDLE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_busy_until_no_bytes_moved_for_a_while() {
        let activity = Activity::default();
        let mut watch = ActivityWatch::new(&activity);
        let start = Instant::now();
        assert!(!watch.is_busy(start));
        activity.uploaded.fetch_add(1, Ordering::Relaxed);
        assert!(watch.is_busy(start));
        assert!(watch.is_busy(start + IDLE_AFTER / 2));
        activity.downloaded.fetch_add(1, Ordering::Relaxed);
        assert!(watch.is_busy(start + IDLE_AFTER));
        assert!(watch.is_busy(start + 3 * IDLE_AFTER / 2));
        assert!(!watch.is_busy(start + 2 * IDLE_AFTER));
    }
}
