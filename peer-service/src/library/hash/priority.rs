//! The priority of hashing: foreground hashing, which a caller waits for, goes before the
//! background pass. The pass also waits while the peer uploads or downloads.
//!
//! Invariant: the background pass waits at most [`MAX_YIELD`] plus [`MAX_PAUSE`] before each
//! turn, however many shares and downloads follow each other.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::{
    activity::{Activity, ActivityWatch},
    library::hash::backlog::HashBacklog,
};

/// Maximum time that the background pass yields before a turn. Also the delay until it notices a
/// shutdown.
const MAX_YIELD: Duration = Duration::from_millis(100);

/// Maximum time that the pass waits before a turn for the peer to be idle. With one turn after each
/// wait it takes about a hundredth of a core during downloads; in a day it still hashes a few
/// hundred GiB.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How often the pass checks whether the peer is idle. Also the delay until it notices a shutdown.
const IDLE_POLL: Duration = Duration::from_millis(50);

/// Bytes that the pass may read in a turn: about ten milliseconds of work, so that it takes about a
/// tenth of the time while foreground hashers work.
const TURN_BYTES: u64 = 8 * 1024 * 1024;

/// The cost of opening a file of any size, in bytes that could have been read instead.
const FILE_COST: u64 = 64 * 1024;

/// The number of foreground hashers: threads that hash while a caller waits.
#[derive(Debug, Default)]
pub(crate) struct ForegroundHashers {
    /// What waits to be hashed.
    pub(crate) backlog: HashBacklog,
    count: Mutex<usize>,
    idle: Condvar,
}

/// Counts as a foreground hasher until dropped.
#[derive(Debug)]
pub(crate) struct ForegroundHash<'a>(&'a ForegroundHashers);

impl ForegroundHashers {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock()
    }

    /// Counts the caller as a foreground hasher.
    pub(crate) fn begin(&self) -> ForegroundHash<'_> {
        *self.count() += 1;
        ForegroundHash(self)
    }

    /// Waits until no foreground hasher is left, at most [`MAX_YIELD`].
    fn yield_to_foreground(&self) {
        let mut count = self.count();
        self.idle
            .wait_while_for(&mut count, |count| *count > 0, MAX_YIELD);
    }
}

impl Drop for ForegroundHash<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count();
        *count -= 1;
        if *count == 0 {
            self.0.idle.notify_all();
        }
    }
}

/// The turns of the background pass.
#[derive(Debug)]
pub(crate) struct BackgroundTurns<'a> {
    hashers: &'a ForegroundHashers,
    activity: ActivityWatch<'a>,
    stop: &'a CancellationToken,
    remaining: u64,
}

impl<'a> BackgroundTurns<'a> {
    /// Starts before the first turn. `stop` ends every wait.
    pub(crate) fn new(
        hashers: &'a ForegroundHashers,
        activity: &'a Activity,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            hashers,
            activity: ActivityWatch::new(activity),
            stop,
            remaining: 0,
        }
    }

    /// Call before each file. Blocks while others have priority.
    pub(crate) fn before_file(&mut self) {
        self.before_read(FILE_COST);
    }

    /// Call before each read of this many bytes. Blocks while others have priority.
    pub(crate) fn before_read(&mut self, bytes: u64) {
        if self.remaining == 0 {
            self.hashers.yield_to_foreground();
            self.wait_until_idle();
            self.remaining = TURN_BYTES;
        }
        self.remaining = self.remaining.saturating_sub(bytes);
    }

    /// Waits while the peer uploads or downloads, at most [`MAX_PAUSE`].
    fn wait_until_idle(&mut self) {
        let started = Instant::now();
        while self.activity.is_busy(Instant::now())
            && started.elapsed() < MAX_PAUSE
            && !self.stop.is_cancelled()
        {
            std::thread::sleep(IDLE_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn the_background_yields_to_foreground_hashing_and_continues() {
        let hashers = ForegroundHashers::default();
        let start = Instant::now();
        let (activity, stop) = (Activity::default(), CancellationToken::new());
        let mut background_turns = BackgroundTurns::new(&hashers, &activity, &stop);
        for _ in 0..100 {
            background_turns.before_read(TURN_BYTES);
        }
        assert!(
            start.elapsed() < MAX_YIELD,
            "there is no foreground hasher to yield to"
        );
        let hashing = hashers.begin();
        background_turns.before_read(TURN_BYTES);
        assert!(start.elapsed() >= MAX_YIELD);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(hashing));
            for _ in 0..100 {
                background_turns.before_read(TURN_BYTES);
            }
        });
        assert!(
            start.elapsed() < 50 * MAX_YIELD,
            "it continues at once when no foreground hasher works"
        );
    }

    #[test]
    fn the_background_waits_for_transfers_but_not_for_ever() {
        let (hashers, activity, stop) = (
            ForegroundHashers::default(),
            Activity::default(),
            CancellationToken::new(),
        );
        let mut background_turns = BackgroundTurns::new(&hashers, &activity, &stop);
        // Uploads run all the time.
        let (ended, start) = (CancellationToken::new(), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.is_cancelled() {
                    activity.uploaded.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
            while activity.uploaded.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            background_turns.before_read(TURN_BYTES);
            ended.cancel();
        });
        assert!(start.elapsed() >= MAX_PAUSE, "it waited, and then hashed");
        activity.uploaded.fetch_add(1, Ordering::Relaxed);
        stop.cancel();
        background_turns.before_read(TURN_BYTES);
    }
}
