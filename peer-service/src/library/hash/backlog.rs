//! How much waits to be hashed, for monitoring.
//!
//! Invariant: what a job added and did not finish no longer counts after it ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Why files are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HashWork {
    /// They are new or changed, and are shared afterwards.
    Share,
    /// They are compared with their known hashes.
    Check,
}

/// Bytes that are found and not hashed yet. Cheap to clone; all clones share the counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct HashBacklog(Arc<[AtomicU64; 2]>);

/// The part of the backlog that one job adds, and finishes.
#[derive(Debug)]
pub(crate) struct BacklogJob {
    backlog: HashBacklog,
    work: HashWork,
    left: AtomicU64,
}

impl HashBacklog {
    /// Begins a job without bytes.
    pub(crate) fn begin(&self, work: HashWork) -> BacklogJob {
        BacklogJob {
            backlog: self.clone(),
            work,
            left: AtomicU64::new(0),
        }
    }

    /// The bytes, by the words of a metric.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let works = [("share", HashWork::Share), ("check", HashWork::Check)];
        works
            .into_iter()
            .map(|(word, work)| (word, self.counter(work).load(Ordering::Relaxed) as f64))
    }

    fn counter(&self, work: HashWork) -> &AtomicU64 {
        &self.0[work as usize]
    }
}

impl BacklogJob {
    /// Bytes were found.
    pub(crate) fn add(&self, bytes: u64) {
        // First the total, so that it never falls below zero.
        self.backlog
            .counter(self.work)
            .fetch_add(bytes, Ordering::Relaxed);
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were hashed, or will not be. A file that grew has more than were found.
    pub(crate) fn finish(&self, bytes: u64) {
        let take = |left: u64| Some(left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let bytes = bytes.min(before.unwrap_or_default());
        self.backlog
            .counter(self.work)
            .fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for BacklogJob {
    fn drop(&mut self) {
        self.finish(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_ends_early_leaves_nothing_behind() {
        let backlog = HashBacklog::default();
        let bytes = || Vec::from_iter(backlog.bytes().map(|(_, bytes)| bytes));
        let (share, check) = (backlog.begin(HashWork::Share), backlog.begin(HashWork::Check));
        share.add(100);
        check.add(7);
        share.finish(30);
        assert_eq!(bytes(), [70.0, 7.0]);
        check.finish(9);
        assert_eq!(bytes(), [70.0, 0.0], "a file that grew");
        drop(share);
        assert_eq!(bytes(), [0.0, 0.0]);
    }
}
