//! The wait of a download while its disk is full: it requests nothing and tries again later.

use std::time::Duration;

use potluck_core::Problem;
use tokio::time::Instant;

use crate::download::storage::target::DISK_RETRY;

/// Maximum pause if the disk reports free space but writes fail, for example because of a quota or
/// exhausted inodes. Each attempt loses the data that it received.
const MAX_DISK_RETRY: Duration = Duration::from_secs(120);

/// Whether the download waits for the disk.
#[derive(Debug)]
pub(super) struct DiskWait {
    full: Option<FullDisk>,
    /// Pause after the next failed write; doubles until a write succeeds.
    pause: Duration,
}

/// A disk without free space.
#[derive(Debug)]
struct FullDisk {
    problem: Problem,
    /// When to check again.
    check_at: Instant,
    /// If the first check comes early, because room may be made: when it would have come otherwise.
    not_early: Option<Instant>,
}

impl DiskWait {
    /// A disk that is not known to be full.
    pub(super) const fn new() -> Self {
        Self {
            full: None,
            pause: DISK_RETRY,
        }
    }

    /// Whether the download waits; it then sends no requests.
    pub(super) const fn is_waiting(&self) -> bool {
        self.full.is_some()
    }

    /// The problem to show while the download waits.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.full.as_ref().map(|full| full.problem.clone())
    }

    /// When to check whether the disk has room; `None` if the download does not wait.
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.full.as_ref().map(|full| full.check_at)
    }

    /// Starts to wait after a failed write; false if the download waits already.
    pub(super) fn start(&mut self, problem: Problem, now: Instant) -> bool {
        if self.full.is_some() {
            return false;
        }
        let check_at = now + self.pause;
        self.full = Some(FullDisk {
            problem,
            check_at,
            not_early: None,
        });
        self.pause = (2 * self.pause).min(MAX_DISK_RETRY);
        true
    }

    /// Checks at once, because room may be made.
    pub(super) fn check_early(&mut self, now: Instant) {
        if let Some(full) = &mut self.full {
            full.not_early = Some(std::mem::replace(&mut full.check_at, now));
        }
    }

    /// Whether the check that is due is an early one.
    pub(super) fn is_early(&self) -> bool {
        self.full.as_ref().is_some_and(|full| full.not_early.is_some())
    }

    /// Records that no room could be made: the usual check follows. Free space that the disk reports
    /// does not count, because a write has just failed.
    pub(super) fn record_no_room_made(&mut self) {
        if let Some(full) = &mut self.full
            && let Some(at) = full.not_early.take()
        {
            full.check_at = at;
        }
    }

    /// Records whether the disk has room now.
    pub(super) fn record_check(&mut self, has_room: bool, now: Instant) {
        match &mut self.full {
            _ if has_room => self.full = None,
            Some(full) => full.check_at = now + DISK_RETRY,
            None => {}
        }
    }

    /// Records that a write succeeded.
    pub(super) const fn record_write(&mut self) {
        self.pause = DISK_RETRY;
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::Reason;

    use super::*;

    #[test]
    fn the_pause_doubles_until_a_write_succeeds() {
        let now = Instant::now();
        let full = || Problem::new(Reason::DiskFull, "full");
        let mut wait = DiskWait::new();
        let pause = |wait: &mut DiskWait| {
            assert!(wait.start(full(), now) && !wait.start(full(), now));
            let pause = wait.check_at().unwrap() - now;
            wait.record_check(true, now);
            assert!(!wait.is_waiting());
            pause
        };
        assert_eq!(pause(&mut wait), DISK_RETRY);
        assert_eq!(pause(&mut wait), 2 * DISK_RETRY);
        (0..10).for_each(|_| _ = pause(&mut wait));
        assert_eq!(pause(&mut wait), MAX_DISK_RETRY);
        wait.record_write();
        assert_eq!(pause(&mut wait), DISK_RETRY);
    }

    #[test]
    fn an_early_check_without_effect_does_not_shorten_the_pause() {
        let now = Instant::now();
        let mut wait = DiskWait::new();
        for pause in [DISK_RETRY, 2 * DISK_RETRY] {
            wait.start(Problem::new(Reason::DiskFull, "full"), now);
            wait.check_early(now);
            assert!(wait.is_early());
            assert_eq!(wait.check_at(), Some(now));
            wait.record_no_room_made();
            assert!(!wait.is_early() && wait.is_waiting());
            assert_eq!(wait.check_at(), Some(now + pause));
            wait.record_check(true, now);
        }
    }

    #[test]
    fn a_disk_that_is_still_full_is_checked_again() {
        let now = Instant::now();
        let mut wait = DiskWait::new();
        assert!(wait.start(Problem::new(Reason::DiskFull, "full"), now));
        let later = now + 2 * DISK_RETRY;
        wait.record_check(false, later);
        assert_eq!(wait.check_at(), Some(later + DISK_RETRY));
        assert_eq!(
            wait.problem().map(|problem| problem.reason),
            Some(Reason::DiskFull)
        );
    }
}
