//! Warns which path delays the start. A path on a disk or machine that does not respond blocks the
//! start for as long as the operating system waits.

use std::{
    path::Path,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use parking_lot::Mutex;

/// Minimum time before a path is reported; it may be reported up to twice as late. Disks that spin
/// up mostly take less.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// The paths that are being checked.
#[derive(Debug, Default)]
pub(crate) struct SlowPathWarning {
    probes: Mutex<Vec<Weak<Mutex<ProbedPath>>>>,
}

#[derive(Debug, Default)]
struct ProbedPath {
    path: Option<Arc<Path>>,
    /// How many times the watch saw this path.
    seen: u32,
}

/// A handle that checks one path at a time.
#[derive(Debug)]
pub(crate) struct PathProbe(Arc<Mutex<ProbedPath>>);

impl SlowPathWarning {
    /// Adds a handle.
    pub(crate) fn probe(&self) -> PathProbe {
        let at = Arc::default();
        self.probes.lock().push(Arc::downgrade(&at));
        PathProbe(at)
    }

    /// Logs slow paths until the sender of `end` is dropped.
    pub(crate) fn watch(&self, end: &Receiver<()>) {
        while end.recv_timeout(SLOW_AFTER) == Err(RecvTimeoutError::Timeout) {
            for path in self.slow_paths() {
                tracing::warn!(
                    path = %path.display(),
                    "a shared path is looked at for long: the disk or machine that it is on may not answer; the peer starts when it does"
                );
            }
        }
    }

    /// Paths that were already being checked at the previous call. Each check is reported once.
    fn slow_paths(&self) -> Vec<Arc<Path>> {
        let mut slow = Vec::new();
        self.probes.lock().retain(|look| {
            let Some(look) = look.upgrade() else { return false };
            let mut at = look.lock();
            at.seen += 1;
            slow.extend(at.path.clone().filter(|_| at.seen == 2));
            true
        });
        slow
    }
}

impl PathProbe {
    /// Checks a path with `look`.
    pub(crate) fn at<T>(&self, path: &Arc<Path>, look: impl FnOnce(&Path) -> T) -> T {
        *self.0.lock() = ProbedPath {
            path: Some(path.clone()),
            seen: 0,
        };
        let snapshot = look(path);
        self.0.lock().path = None;
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_for_long_is_said_once() {
        let slow_path_warning = SlowPathWarning::default();
        let (look, _other) = (slow_path_warning.probe(), slow_path_warning.probe());
        let path: Arc<Path> = Path::new("/mount/file").into();
        for _ in 0..2 {
            look.at(&path, |_| {
                assert!(slow_path_warning.slow_paths().is_empty(), "it was begun just now");
                assert_eq!(slow_path_warning.slow_paths(), std::slice::from_ref(&path));
                assert!(slow_path_warning.slow_paths().is_empty(), "it was said");
            });
            assert!(
                (0..3).all(|_| slow_path_warning.slow_paths().is_empty()),
                "nothing is looked at"
            );
        }
        drop(look);
        slow_path_warning.slow_paths();
        assert_eq!(slow_path_warning.probes.lock().len(), 1);
    }
}
