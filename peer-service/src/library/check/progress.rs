//! The rate limit and the progress events of a check.

use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::library::{check::events::CheckEvent, hash::backlog::BacklogJob};

/// Minimum time between two progress events: a person cannot follow more.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Time within which a check that waits for its rate limit notices its cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Limits the rate of a check and reports its progress.
pub(crate) struct CheckProgress<'a> {
    /// Maximum bytes per second; 0 means no limit.
    rate: u64,
    total: u64,
    events: &'a mpsc::Sender<CheckEvent>,
    shutdown: &'a CancellationToken,
    backlog: BacklogJob,
    started: Instant,
    state: Mutex<ProgressState>,
}

#[derive(Default)]
struct ProgressState {
    /// Bytes hashed so far, and those of the current file.
    done: u64,
    in_file: u64,
    /// The time of the last event.
    reported: Option<Instant>,
}

impl<'a> CheckProgress<'a> {
    /// Starts a check of `total` bytes.
    pub(crate) fn new(
        rate: u64,
        total: u64,
        events: &'a mpsc::Sender<CheckEvent>,
        shutdown: &'a CancellationToken,
        backlog: BacklogJob,
    ) -> Self {
        Self {
            rate,
            total,
            events,
            shutdown,
            backlog,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Number of bytes hashed.
    pub(crate) fn done(&self) -> u64 {
        self.state.lock().done
    }

    /// The current file of this size is done: what was not read of it never will be.
    pub(crate) fn end_file(&self, size: u64) {
        let read = std::mem::take(&mut self.state.lock().in_file);
        self.backlog.finish(size.saturating_sub(read));
    }

    /// Counts `bytes` more as hashed and waits as the rate limit requires. Breaks when the check is
    /// cancelled.
    pub(crate) fn on_bytes(&self, path: &Path, bytes: u64) -> ControlFlow<()> {
        let done = {
            let mut state = self.state.lock();
            state.done += bytes;
            state.in_file += bytes;
            self.backlog.finish(bytes);
            let is_recent = |reported: Instant| reported.elapsed() < PROGRESS_INTERVAL;
            if !state.reported.is_some_and(is_recent) {
                state.reported = Some(Instant::now());
                // A slow receiver does not delay the check.
                let _ = self.events.try_send(CheckEvent::Progress {
                    path: path.to_owned(),
                    done: state.done,
                    total: self.total,
                });
            }
            state.done
        };
        let due = match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(done as f64 / rate as f64),
        };
        loop {
            if self.events.is_closed() || self.shutdown.is_cancelled() {
                return ControlFlow::Break(());
            }
            match due.checked_sub(self.started.elapsed()) {
                None | Some(Duration::ZERO) => return ControlFlow::Continue(()),
                Some(left) => std::thread::sleep(left.min(CANCEL_POLL)),
            }
        }
    }
}
