//! What the peer allows itself: bytes a second each way, and uploads at once. Changeable while running.
//!
//! [`fair`] is pure: who goes next; [`meter`] waits for it; [`Limits`] is what everyone shares.
//!
//! Invariants: over any time `t` a meter lets through at most `rate * t` bytes plus its burst and one request; what several
//! flows want of a meter they get in proportion to their priorities; a new rate or priority holds at once, also for those that
//! wait.

pub mod budget;
pub mod fair_queue;
pub mod rate_limiter;

use std::sync::Arc;

use potluck_core::grpc::limiter::{ClientAddress, LimitError, MaxShare, PerAddressLimiter, Permit};

pub use self::rate_limiter::{Flow, RateLimiter};

/// How much a transfer counts beside others, 1 to 100: one of 30 gets three times what one of 10 gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// The largest.
    pub const MAX: Self = Self(100);

    /// `None` unless it is 1 to 100.
    pub const fn new(priority: u32) -> Option<Self> {
        match priority {
            1..=100 => Some(Self(priority)),
            _ => None,
        }
    }

    /// As a number, 1 to 100.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for Priority {
    /// 10, as the contract has it: room for less, and for ten times as much.
    fn default() -> Self {
        Self(10)
    }
}

/// The limits in force. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Limits {
    shared: Arc<LimitsShared>,
}

#[derive(Debug)]
struct LimitsShared {
    /// All uploads are one flow: first come, first served.
    upload: Flow,
    download: RateLimiter,
    upload_slots: PerAddressLimiter,
    max_share: MaxShare,
}

/// An upload that is under way; dropping it frees the slot.
pub type UploadSlot = Permit;

impl Limits {
    /// Limits in bytes a second each way, and uploads at once; 0: none. One address takes its usual share.
    pub fn new(upload: u64, download: u64, upload_slots: u32) -> Self {
        Self::with_max_share(upload, download, upload_slots, MaxShare::default())
    }

    /// The same with what one address may take.
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

    /// Changes all of them at once.
    pub fn set(&self, upload: u64, download: u64, upload_slots: u32) {
        self.shared.upload.set_rate(upload);
        self.shared.download.set_rate(download);
        self.shared.upload_slots.set_capacity(slot_capacity(upload_slots));
    }

    /// What is sent to other peers waits here.
    pub fn upload(&self) -> &Flow {
        &self.shared.upload
    }

    /// What is fetched waits here, each transfer in a flow of its own.
    pub fn download(&self) -> &RateLimiter {
        &self.shared.download
    }

    /// Most uploads at once; 0: no limit.
    pub fn upload_slots(&self) -> u32 {
        u32::try_from(self.shared.upload_slots.capacity()).unwrap_or(0)
    }

    /// Uploads under way.
    pub fn active_uploads(&self) -> u32 {
        u32::try_from(self.shared.upload_slots.in_use()).unwrap_or(u32::MAX)
    }

    /// What one address may take of whatever there is so many of.
    pub fn max_share(&self) -> MaxShare {
        self.shared.max_share
    }

    /// A slot for one more upload.
    ///
    /// # Errors
    /// Why there is none for this caller.
    pub fn try_upload(&self, source: ClientAddress) -> Result<UploadSlot, LimitError> {
        self.shared.upload_slots.try_acquire(source)
    }
}

/// Slots as a setting has them: 0 is any number.
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
    fn slots_are_counted_and_can_be_changed() {
        let limits = Limits::new(0, 0, 1);
        let first = limits.try_upload(ClientAddress::LOCAL).unwrap();
        assert!(limits.try_upload(ClientAddress::LOCAL).is_err());
        limits.set(0, 0, 2);
        let _second = limits.try_upload(ClientAddress::LOCAL).unwrap();
        drop(first);
        assert_eq!(limits.active_uploads(), 1);
    }
}
