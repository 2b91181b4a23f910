//! Limits how often a call reports arriving bytes.

use std::time::Duration;

use tokio::time::Instant;

use crate::download::engine::request::event::RequestOutcome;

/// Minimum bytes of a progress report: arriving data exceeds this unless a peer sends tiny chunks.
const MIN_REPORT: u64 = 64 * 1024;

/// Minimum interval between progress reports of a unit: a few reports suffice to measure a fast
/// peer.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(5);

/// Bytes that arrived and were not reported.
#[derive(Debug)]
pub(super) struct UnreportedProgress {
    bytes: u64,
    reported_at: Instant,
    /// When the request last reported that data waits for a local limit.
    pub(super) throttled_at: Option<Instant>,
}

impl UnreportedProgress {
    /// No progress yet.
    pub(super) fn new() -> Self {
        Self {
            bytes: 0,
            reported_at: Instant::now(),
            throttled_at: None,
        }
    }

    /// Adds bytes that arrived.
    pub(super) const fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Whether no progress is pending.
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether enough bytes and time have passed for a report.
    pub(super) fn is_due(&self) -> bool {
        self.bytes >= MIN_REPORT && self.reported_at.elapsed() >= MIN_REPORT_INTERVAL
    }

    /// Takes the unreported bytes as an event.
    pub(super) fn take(&mut self) -> RequestOutcome {
        self.reported_at = Instant::now();
        RequestOutcome::Progress(std::mem::take(&mut self.bytes))
    }
}
