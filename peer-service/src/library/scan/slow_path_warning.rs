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
    times_seen: u32,
}

/// A handle that checks one path at a time.
#[derive(Debug)]
pub(crate) struct PathProbe(Arc<Mutex<ProbedPath>>);

impl SlowPathWarning {
    /// Adds a handle.
    pub(crate) fn probe(&self) -> PathProbe {
        let probed = Arc::default();
        self.probes.lock().push(Arc::downgrade(&probed));
        PathProbe(probed)
    }

    /// Logs slow paths until the sender of `end` is dropped.
    pub(crate) fn watch(&self, end: &Receiver<()>) {
        while end.recv_timeout(SLOW_AFTER) == Err(RecvTimeoutError::Timeout) {
            for path in self.slow_paths() {
                tracing::warn!(
                    path = %path.display(),
                    "checking a shared path takes long, and the peer starts only after it: its disk \
                     or machine may not respond"
                );
            }
        }
    }

    /// Paths that were already being checked at the previous call. Each check is reported once.
    fn slow_paths(&self) -> Vec<Arc<Path>> {
        let mut slow = Vec::new();
        self.probes.lock().retain(|probe| {
            let Some(probe) = probe.upgrade() else {
                return false;
            };
            let mut probed = probe.lock();
            probed.times_seen += 1;
            slow.extend(probed.path.clone().filter(|_| probed.times_seen == 2));
            true
        });
        slow
    }
}

impl PathProbe {
    /// Runs a check of a path.
    pub(crate) fn check<T>(&self, path: &Arc<Path>, check: impl FnOnce(&Path) -> T) -> T {
        *self.0.lock() = ProbedPath {
            path: Some(path.clone()),
            times_seen: 0,
        };
        let result = check(path);
        self.0.lock().path = None;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_path_is_reported_once_per_check() {
        let warning = SlowPathWarning::default();
        let (probe, _other) = (warning.probe(), warning.probe());
        let path: Arc<Path> = Path::new("/mount/file").into();
        for _ in 0..2 {
            probe.check(&path, |_| {
                assert!(warning.slow_paths().is_empty(), "it just started");
                assert_eq!(warning.slow_paths(), std::slice::from_ref(&path));
                assert!(warning.slow_paths().is_empty(), "it was reported");
            });
            assert!(
                (0..3).all(|_| warning.slow_paths().is_empty()),
                "no path is being checked"
            );
        }
        drop(probe);
        warning.slow_paths();
        assert_eq!(warning.probes.lock().len(), 1);
    }
}
