//! Whether the peer moves data for somebody, so that background work can wait meanwhile.
//!
//! The data path only counts bytes, as it did before: whoever wants to know compares two looks at
//! the counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long nothing must have moved before the peer counts as idle: longer than the gaps of a
/// download that is under way.
const CALM: Duration = Duration::from_millis(500);

/// Counts of what the peer moved since it started. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    /// Bytes handed over to be sent to other peers.
    pub uploaded: Arc<AtomicU64>,
    /// Verified bytes that were fetched.
    pub downloaded: Arc<AtomicU64>,
}

impl Activity {
    fn moved(&self) -> u64 {
        let [up, down] = [&self.uploaded, &self.downloaded].map(|count| count.load(Ordering::Relaxed));
        up.wrapping_add(down)
    }
}

/// Looks at the counts from time to time.
#[derive(Debug)]
pub(crate) struct ActivityWatch<'a> {
    activity: &'a Activity,
    moved: u64,
    /// When the last look found that something had moved.
    changed: Option<Instant>,
}

impl<'a> ActivityWatch<'a> {
    /// Idle until something moves.
    pub(crate) fn new(activity: &'a Activity) -> Self {
        Self {
            moved: activity.moved(),
            activity,
            changed: None,
        }
    }

    /// Whether anything moved since the last look, or in the last [`CALM`].
    pub(crate) fn is_busy(&mut self, now: Instant) -> bool {
        let moved = self.activity.moved();
        if moved != self.moved {
            (self.moved, self.changed) = (moved, Some(now));
        }
        self.changed
            .is_some_and(|changed| now.saturating_duration_since(changed) < CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_busy_until_nothing_moved_for_a_while() {
        let activity = Activity::default();
        let mut watch = ActivityWatch::new(&activity);
        let start = Instant::now();
        assert!(!watch.is_busy(start));
        activity.uploaded.fetch_add(1, Ordering::Relaxed);
        assert!(watch.is_busy(start));
        assert!(watch.is_busy(start + CALM / 2));
        activity.downloaded.fetch_add(1, Ordering::Relaxed);
        assert!(watch.is_busy(start + CALM));
        assert!(watch.is_busy(start + 3 * CALM / 2));
        assert!(!watch.is_busy(start + 2 * CALM));
    }
}
