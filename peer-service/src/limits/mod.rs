//! What the peer allows itself: bytes a second each way, and uploads at once. Changeable while running.
//!
//! [`Bucket`] is pure; [`Meter`] waits on it; [`Limits`] is what everyone shares.
//!
//! Invariants: over any time `t` a meter lets through at most `rate * t` bytes plus its burst; callers are served in the order
//! in which they asked; a new rate holds at once, also for those that wait.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// What a quiet meter saves up, as time at its rate: small, so that a limit holds over any span that a person notices.
const BURST: Duration = Duration::from_millis(100);

const NANOS: u128 = 1_000_000_000;

/// A token bucket that counts positions: each caller is given the position at which its bytes end, and may go when the
/// allowance has reached it. Allowance is kept in billionths of a byte.
#[derive(Debug)]
pub struct Bucket {
    /// Bytes a second; 0: no limit.
    rate: u64,
    /// Position of the last byte handed out.
    granted: u128,
    /// Position up to which bytes may go, times [`NANOS`], as of `at`.
    allowance: u128,
    at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: u64, now: Duration) -> Self {
        let mut bucket = Self {
            rate,
            granted: 0,
            allowance: 0,
            at: now,
        };
        bucket.allowance = bucket.burst();
        bucket
    }

    fn burst(&self) -> u128 {
        u128::from(self.rate) * BURST.as_nanos()
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        let most = match self.rate {
            // Whoever asked goes; what was let through without a limit leaves no debt.
            0 => self.granted * NANOS,
            _ => self.granted * NANOS + self.burst(),
        };
        let grown = if self.rate == 0 {
            most
        } else {
            self.allowance + u128::from(self.rate) * passed
        };
        self.allowance = grown.min(most);
    }

    /// Bytes a second; 0: no limit.
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// Changes the rate from `now` on.
    pub fn set_rate(&mut self, rate: u64, now: Duration) {
        self.advance(now);
        self.rate = rate;
    }

    /// Asks for `bytes`; the position to give to [`Bucket::wait`].
    pub fn reserve(&mut self, bytes: u64, now: Duration) -> u128 {
        self.advance(now);
        self.granted += u128::from(bytes);
        self.granted
    }

    /// How long the caller at this position has to wait still; `None`: it may go.
    pub fn wait(&mut self, position: u128, now: Duration) -> Option<Duration> {
        self.advance(now);
        let missing = (position * NANOS).saturating_sub(self.allowance);
        if self.rate == 0 || missing == 0 {
            return None;
        }
        let nanos = missing.div_ceil(u128::from(self.rate));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Gives back what a caller asked for that did not wait to the end.
    pub fn give_back(&mut self, bytes: u64) {
        self.allowance += u128::from(bytes) * NANOS;
    }
}

/// A limit on bytes a second that callers wait on.
#[derive(Debug)]
pub struct Meter {
    bucket: Mutex<Bucket>,
    changed: Notify,
    start: Instant,
}

/// Gives a reservation back unless it was used.
struct Reservation<'a> {
    meter: &'a Meter,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.meter.bucket().give_back(self.bytes);
        }
    }
}

impl Meter {
    fn new(rate: u64) -> Self {
        Self {
            bucket: Mutex::new(Bucket::new(rate, Duration::ZERO)),
            changed: Notify::new(),
            start: Instant::now(),
        }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes a second; 0: no limit.
    pub fn rate(&self) -> u64 {
        self.bucket().rate()
    }

    fn set_rate(&self, rate: u64) {
        self.bucket().set_rate(rate, self.start.elapsed());
        self.changed.notify_waiters();
    }

    /// Waits until `bytes` may go. More than a second's worth is fine. Dropping the future gives them back.
    pub async fn acquire(&self, bytes: u64) {
        let mut reservation = Reservation { meter: self, bytes };
        let position = self.bucket().reserve(bytes, self.start.elapsed());
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the rate is read, so that no change is missed.
            changed.as_mut().enable();
            let wait = self.bucket().wait(position, self.start.elapsed());
            let Some(wait) = wait else { break };
            // Both arms are cancel-safe: nothing is taken by either.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = &mut changed => {}
            }
        }
        reservation.bytes = 0;
    }
}

/// The limits in force. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    upload: Meter,
    download: Meter,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    most: u32,
    taken: u32,
}

/// An upload that is under way; dropping it frees the slot.
#[derive(Debug)]
pub struct UploadSlot {
    limits: Limits,
}

impl Drop for UploadSlot {
    fn drop(&mut self) {
        self.limits.slots().taken -= 1;
    }
}

impl Limits {
    /// Limits in bytes a second each way, and uploads at once; 0: none.
    pub fn new(upload: u64, download: u64, upload_slots: u32) -> Self {
        Self {
            inner: Arc::new(Inner {
                upload: Meter::new(upload),
                download: Meter::new(download),
                slots: Mutex::new(Slots {
                    most: upload_slots,
                    taken: 0,
                }),
            }),
        }
    }

    /// Changes all of them at once.
    pub fn set(&self, upload: u64, download: u64, upload_slots: u32) {
        self.inner.upload.set_rate(upload);
        self.inner.download.set_rate(download);
        self.slots().most = upload_slots;
    }

    /// What is sent to other peers waits here.
    pub fn upload(&self) -> &Meter {
        &self.inner.upload
    }

    /// What is fetched waits here.
    pub fn download(&self) -> &Meter {
        &self.inner.download
    }

    /// Most uploads at once; 0: no limit.
    pub fn upload_slots(&self) -> u32 {
        self.slots().most
    }

    /// Uploads under way.
    pub fn uploads(&self) -> u32 {
        self.slots().taken
    }

    /// A slot for one more upload, if there is one.
    pub fn try_upload(&self) -> Option<UploadSlot> {
        let mut slots = self.slots();
        if slots.most != 0 && slots.taken >= slots.most {
            return None;
        }
        slots.taken += 1;
        Some(UploadSlot { limits: self.clone() })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over any time, no more passes than the rate allows; and those who wait as told may go.
        #[test]
        fn the_rate_holds(
            rate in 1u64..10_000_000,
            asks in proptest::collection::vec((0u64..1 << 22, 0u64..500), 1..60),
        ) {
            let mut now = Duration::ZERO;
            let mut bucket = Bucket::new(rate, now);
            let mut sent = 0u128;
            for (bytes, pause) in asks {
                now += Duration::from_millis(pause);
                let position = bucket.reserve(bytes, now);
                if let Some(wait) = bucket.wait(position, now) {
                    now += wait;
                }
                prop_assert_eq!(bucket.wait(position, now), None);
                sent += u128::from(bytes);
                let allowed = u128::from(rate) * (now + BURST).as_nanos();
                prop_assert!(sent * NANOS <= allowed, "{} bytes by {:?}", sent, now);
            }
        }
    }

    #[test]
    fn a_quiet_meter_saves_up_a_burst_and_no_more() {
        let mut bucket = Bucket::new(1000, Duration::ZERO);
        let hour = Duration::from_secs(3600);
        let position = bucket.reserve(100, hour);
        assert_eq!(bucket.wait(position, hour), None);
        let position = bucket.reserve(1000, hour);
        assert_eq!(bucket.wait(position, hour), Some(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_holds_for_those_who_wait() {
        let limits = Limits::new(1, 0, 0);
        let waiting = tokio::spawn({
            let limits = limits.clone();
            async move { limits.upload().acquire(1 << 30).await }
        });
        tokio::task::yield_now().await;
        limits.set(0, 0, 0);
        tokio::time::timeout(Duration::from_secs(1), waiting)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_gives_back() {
        let limits = Limits::new(1000, 0, 0);
        let gave_up = tokio::time::timeout(Duration::from_secs(1), limits.upload().acquire(1_000_000)).await;
        assert!(gave_up.is_err());
        let start = Instant::now();
        limits.upload().acquire(1000).await;
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[test]
    fn slots_are_counted_and_can_be_changed() {
        let limits = Limits::new(0, 0, 1);
        let first = limits.try_upload().unwrap();
        assert!(limits.try_upload().is_none());
        limits.set(0, 0, 2);
        let _second = limits.try_upload().unwrap();
        drop(first);
        assert_eq!(limits.uploads(), 1);
    }
}
