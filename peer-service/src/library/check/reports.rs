//! Reports of bad pieces: other peers downloaded them from here, and they failed verification
//! there. This peer hashes its own bytes to see whether it is at fault.
//!
//! Invariants:
//! - No report is trusted.
//! - A report makes this peer read at most [`MAX_REPORT_BYTES`] bytes. All reports take at most a
//!   tenth of the time of one thread of the lowest priority.
//! - The number of waiting reports is limited, in total and per address.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::grpc::limiter::ClientAddress;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    content::BadPieces,
    fs::blocking::in_background,
    library::check::{Checker, MAX_REPORT_BYTES},
};

/// Maximum number of waiting reports.
const MAX_WAITING: usize = 64;

/// Maximum number of waiting reports from one address.
const MAX_PER_ADDRESS: usize = 4;

/// Rest after each check, as a multiple of the time that it took, and the minimum rest. Limits the
/// work that a flood of reports can cause.
const REST_FACTOR: u32 = 9;
const MIN_REST: Duration = Duration::from_millis(20);

/// Time within which a rest ends on shutdown.
const SHUTDOWN_POLL: Duration = Duration::from_millis(50);

/// The waiting reports.
#[derive(Debug, Default)]
pub(crate) struct ReportQueue {
    waiting: Mutex<VecDeque<(ClientAddress, BadPieces)>>,
    added: Notify,
}

impl ReportQueue {
    /// Adds a report. False if too many wait, in total or from this address.
    pub(crate) fn push(&self, pieces: BadPieces, source: ClientAddress) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.iter().any(|(_, known)| *known == pieces) {
            return true;
        }
        let own = waiting.iter().filter(|(other, _)| *other == source).count();
        if waiting.len() >= MAX_WAITING || own >= MAX_PER_ADDRESS {
            return false;
        }
        waiting.push_back((source, pieces));
        drop(waiting);
        self.added.notify_one();
        true
    }

    fn pop(&self) -> Option<BadPieces> {
        self.waiting.lock().pop_front().map(|(_, pieces)| pieces)
    }

    /// Checks reports until shutdown.
    pub(crate) async fn run(self: Arc<Self>, checker: Arc<Checker>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.added.notified() => {}
            }
            let (queue, checker, stop) = (self.clone(), checker.clone(), shutdown.clone());
            let check = move || queue.check_waiting(&checker, &stop);
            // A failure is logged in `in_background`.
            let _ = in_background("potluck-reports", check).await;
            if shutdown.is_cancelled() {
                return;
            }
        }
    }

    /// Checks all waiting reports, with a rest after each.
    fn check_waiting(&self, checker: &Checker, shutdown: &CancellationToken) {
        while let Some(pieces) = self.pop() {
            let started = Instant::now();
            checker.check_pieces(&pieces, MAX_REPORT_BYTES);
            let rest = (started.elapsed() * REST_FACTOR).max(MIN_REST);
            let until = Instant::now() + rest;
            while let left = until.saturating_duration_since(Instant::now())
                && !left.is_zero()
            {
                if shutdown.is_cancelled() {
                    return;
                }
                std::thread::sleep(left.min(SHUTDOWN_POLL));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use potluck_core::FileId;

    use super::*;

    #[test]
    fn waiting_reports_are_limited_in_total_and_per_address() {
        let reports = ReportQueue::default();
        let piece = |first| BadPieces {
            id: FileId([7; 32]),
            first,
            count: 1,
        };
        let source = |n: u8| ClientAddress::from(IpAddr::from([10, 0, 0, n]));
        for first in 0..MAX_PER_ADDRESS as u32 {
            assert!(reports.push(piece(first), source(1)));
        }
        assert!(!reports.push(piece(100), source(1)));
        assert!(
            reports.push(piece(0), source(1)),
            "a report that is queued already is not queued again"
        );
        let flood = (2..=200u8).flat_map(|n| (0..100).map(move |first| (n, first)));
        let count = flood
            .filter(|&(n, first)| reports.push(piece(1000 * u32::from(n) + first), source(n)))
            .count();
        assert_eq!(count, MAX_WAITING - MAX_PER_ADDRESS);
        assert_eq!(reports.pop(), Some(piece(0)));
        assert!(reports.push(piece(100), source(1)));
    }
}
