//! Reports of bad pieces: other peers downloaded them from here, and they failed verification
//! there. This peer hashes its own bytes to see whether it is at fault.
//!
//! Invariants:
//! - No report is trusted.
//! - A report makes this peer read at most [`LARGEST`] bytes. All reports take at most a tenth of
//!   the time of one thread of the lowest priority.
//! - The number of waiting reports is limited, in total and per address.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::grpc::limiter::ClientAddress;
use tokio::sync::Notify;

use crate::{
    content::BadPieces,
    library::{LibraryShared, check::LARGEST},
};

/// Maximum number of waiting reports.
const MAX_WAITING: usize = 64;

/// Maximum number of waiting reports from one address.
const MAX_OF_SOURCE: usize = 4;

/// Rest after each check, as a multiple of the time that it took, and the minimum rest. Limits the
/// work that a flood of reports can cause.
const REST: u32 = 9;
const MIN_REST: Duration = Duration::from_millis(20);

/// How soon a rest ends on shutdown.
const STEP: Duration = Duration::from_millis(50);

/// The waiting reports.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    waiting: Mutex<VecDeque<(ClientAddress, BadPieces)>>,
    came: Notify,
}

impl Reports {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<(ClientAddress, BadPieces)>> {
        self.waiting.lock()
    }

    /// Adds a report. False if too many wait, in total or from this address.
    pub(crate) fn push(&self, pieces: BadPieces, source: ClientAddress) -> bool {
        let mut waiting = self.waiting();
        if waiting.iter().any(|(_, known)| *known == pieces) {
            return true;
        }
        let own = waiting.iter().filter(|(other, _)| *other == source).count();
        if waiting.len() >= MAX_WAITING || own >= MAX_OF_SOURCE {
            return false;
        }
        waiting.push_back((source, pieces));
        drop(waiting);
        self.came.notify_one();
        true
    }

    fn pop(&self) -> Option<BadPieces> {
        self.waiting().pop_front().map(|(_, pieces)| pieces)
    }

    /// Waits until a report was added.
    pub(crate) async fn wait(&self) {
        self.came.notified().await;
    }
}

impl LibraryShared {
    /// Checks all reports, with a rest after each.
    pub(crate) fn look_at_reports(&self) {
        while let Some(pieces) = self.reports.pop() {
            let began = Instant::now();
            self.look_at_pieces(&pieces, LARGEST);
            let rest = (began.elapsed() * REST).max(MIN_REST);
            let until = Instant::now() + rest;
            while let left = until.saturating_duration_since(Instant::now())
                && !left.is_zero()
            {
                if self.shutdown.is_cancelled() {
                    return;
                }
                std::thread::sleep(left.min(STEP));
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
    fn few_reports_wait_and_fewer_of_one_address() {
        let reports = Reports::default();
        let piece = |first| BadPieces {
            id: FileId([7; 32]),
            first,
            count: 1,
        };
        let source = |n: u8| ClientAddress::from(IpAddr::from([10, 0, 0, n]));
        for first in 0..MAX_OF_SOURCE as u32 {
            assert!(reports.push(piece(first), source(1)));
        }
        assert!(!reports.push(piece(100), source(1)));
        assert!(reports.push(piece(0), source(1)), "known, and not kept twice");
        let taken = (2..=200u8).flat_map(|n| (0..100).map(move |first| (n, first)));
        let count = taken
            .filter(|&(n, first)| reports.push(piece(1000 * u32::from(n) + first), source(n)))
            .count();
        assert_eq!(count, MAX_WAITING - MAX_OF_SOURCE);
        assert_eq!(reports.pop(), Some(piece(0)));
        assert!(reports.push(piece(100), source(1)));
    }
}
