//! The limits of the peer: bytes per second in each direction, and concurrent uploads. They can be
//! changed at run time.
//!
//! [`fair_queue`] decides which request is next (pure), [`rate_limiter`] waits for it, and
//! [`Limits`] is the shared handle.
//!
//! Invariants:
//!
//! - Over any time `t`, a rate limiter lets through at most `rate * t` bytes, plus its burst and
//!   one request.
//! - Flows that compete for a rate limiter share it in proportion to their priorities.
//! - A new rate or priority applies immediately, also to waiting requests.

pub mod budget;
pub mod fair_queue;
pub mod rate_limiter;

use std::sync::Arc;

use potluck_core::grpc::limiter::{ClientAddress, LimitError, MaxShare, PerAddressLimiter, Permit};

pub use self::rate_limiter::{Flow, RateLimiter};

/// Relative weight among this peer's downloads, 1 to 100: a download with priority 30 gets three
/// times as much as one with priority 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// The highest priority.
    pub const MAX: Self = Self(100);

    /// `None` unless `priority` is 1 to 100.
    pub const fn new(priority: u32) -> Option<Self> {
        match priority {
            1..=100 => Some(Self(priority)),
            _ => None,
        }
    }

    /// The priority as a number, 1 to 100.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for Priority {
    /// 10, as the contract specifies: leaves room for lower priorities, and for ones ten times as
    /// high.
    fn default() -> Self {
        Self(10)
    }
}

/// The current limits. Cheap to clone; all clones share the same limits.
#[derive(Debug, Clone)]
pub struct Limits {
    shared: Arc<LimitsShared>,
}

#[derive(Debug)]
struct LimitsShared {
    /// All uploads share one flow: first come, first served.
    upload: Flow,
    download: RateLimiter,
    upload_slots: PerAddressLimiter,
    max_share: MaxShare,
}

/// A running upload; dropping it frees the slot.
pub type UploadSlot = Permit;

impl Limits {
    /// Limits in bytes per second for each direction, and concurrent uploads; 0 for no limit. One
    /// address may hold the default fraction of the free slots.
    pub fn new(upload: u64, download: u64, upload_slots: u32) -> Self {
        Self::with_max_share(upload, download, upload_slots, MaxShare::default())
    }

    /// Limits like [`Limits::new`], with the largest fraction of the free slots that one address
    /// may hold.
    pub fn with_max_share(upload: u64, download: u64, upload_slots: u32, share: MaxShare) -> Self {
        Self {
            shared: Arc::new(LimitsShared {
                upload: RateLimiter::new(upload).flow(Priority::default()),
                download: RateLimiter::new(download),
                upload_slots: PerAddressLimiter::new(slot_capacity(upload_slots), share),
                max_share: share,
            }),
        }
    }

    /// Changes all limits.
    pub fn set(&self, upload: u64, download: u64, upload_slots: u32) {
        self.set_upload_rate(upload);
        self.set_download_rate(download);
        self.set_upload_slots(upload_slots);
    }

    /// Changes the maximum bytes per second sent to other peers; 0 for no limit.
    pub fn set_upload_rate(&self, rate: u64) {
        self.shared.upload.set_rate(rate);
    }

    /// Changes the maximum bytes per second downloaded; 0 for no limit.
    pub fn set_download_rate(&self, rate: u64) {
        self.shared.download.set_rate(rate);
    }

    /// Changes the maximum number of concurrent uploads; 0 for no limit.
    pub fn set_upload_slots(&self, slots: u32) {
        self.shared.upload_slots.set_capacity(slot_capacity(slots));
    }

    /// The rate limit for bytes sent to other peers.
    pub fn upload(&self) -> &Flow {
        &self.shared.upload
    }

    /// The rate limit for downloaded bytes; each download has a flow of its own.
    pub fn download(&self) -> &RateLimiter {
        &self.shared.download
    }

    /// Maximum concurrent uploads; 0 for no limit.
    pub fn upload_slots(&self) -> u32 {
        u32::try_from(self.shared.upload_slots.capacity()).unwrap_or(0)
    }

    /// Number of running uploads.
    pub fn active_uploads(&self) -> u32 {
        u32::try_from(self.shared.upload_slots.in_use()).unwrap_or(u32::MAX)
    }

    /// The largest fraction of the free permits that one address may hold.
    pub fn max_share(&self) -> MaxShare {
        self.shared.max_share
    }

    /// Acquires an upload slot.
    ///
    /// # Errors
    /// All slots are in use, or this address has reached its maximum.
    pub fn try_upload(&self, address: ClientAddress) -> Result<UploadSlot, LimitError> {
        self.shared.upload_slots.try_acquire(address)
    }
}

/// Converts the setting to a capacity: 0 means no limit.
fn slot_capacity(slots: u32) -> usize {
    match slots {
        0 => usize::MAX,
        slots => usize::try_from(slots).unwrap_or(usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_1_to_100() {
        assert_eq!((Priority::new(0), Priority::new(101)), (None, None));
        assert_eq!(Priority::new(100), Some(Priority::MAX));
        assert_eq!(Priority::default().get(), 10);
    }

    #[test]
    fn upload_slots_are_counted_and_their_number_can_change() {
        let limits = Limits::new(0, 0, 1);
        let first = limits.try_upload(ClientAddress::LOCAL).unwrap();
        assert!(limits.try_upload(ClientAddress::LOCAL).is_err());
        limits.set(0, 0, 2);
        let _second = limits.try_upload(ClientAddress::LOCAL).unwrap();
        drop(first);
        assert_eq!(limits.active_uploads(), 1);
    }

    #[test]
    fn each_limit_is_changed_alone() {
        let limits = Limits::new(1, 2, 3);
        let all = || {
            (
                limits.upload().rate(),
                limits.download().rate(),
                limits.upload_slots(),
            )
        };
        limits.set_upload_rate(0);
        assert_eq!(all(), (0, 2, 3));
        limits.set_download_rate(7);
        assert_eq!(all(), (0, 7, 3));
        limits.set_upload_slots(0);
        assert_eq!(all(), (0, 7, 0));
    }
}
