//! Counters that all downloads share, for monitoring.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counters that all downloads share. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct DownloadCounters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    verified_units: AtomicU64,
    bans: [AtomicU64; BanReason::ALL.len()],
}

/// Why a download bans a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BanReason {
    /// It sent bytes that did not verify.
    WrongBytes,
    /// It sent a manifest or hashes that did not verify.
    WrongMetadata,
    /// It broke the protocol in another way.
    Violation,
}

impl BanReason {
    const ALL: [Self; 3] = [Self::WrongBytes, Self::WrongMetadata, Self::Violation];

    /// The reason as the value of a label.
    const fn word(self) -> &'static str {
        match self {
            Self::WrongBytes => "wrong_bytes",
            Self::WrongMetadata => "wrong_metadata",
            Self::Violation => "violation",
        }
    }
}

impl DownloadCounters {
    /// Counts a unit that was verified and written.
    pub(crate) fn add_verified_unit(&self) {
        self.0.verified_units.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a ban of a peer.
    pub(crate) fn add_ban(&self, reason: BanReason) {
        self.0.bans[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Units verified so far.
    pub(crate) fn verified_units(&self) -> u64 {
        self.0.verified_units.load(Ordering::Relaxed)
    }

    /// Bans so far, by reason.
    pub(crate) fn bans(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |reason: BanReason| self.0.bans[reason as usize].load(Ordering::Relaxed);
        BanReason::ALL
            .map(|reason| (reason.word(), count(reason)))
            .into_iter()
    }
}
