//! Limits the rate of a download: first its own limit, then its weighted part of the peer's limit.
//!
//! Invariant: earlier requests get bytes first. The limit is not split evenly over the units in
//! flight, because only complete units are useful; later units take what the earlier ones leave.

use crate::{
    download::status::DownloadLimits,
    limits::{Flow, Limits, RateLimiter},
};
use potluck_swarm::RequestId;

/// Maximum bytes per acquisition under a limit: keeps the division among downloads exact to a few
/// of these.
const MAX_ACQUISITION: u64 = 64 * 1024;

/// Minimum acquisitions per second under a limit, so that a rate over a few seconds looks steady.
const ACQUISITIONS_PER_SECOND: u64 = 4;

/// Minimum bytes per acquisition: smaller ones cost more than they gain.
const MIN_ACQUISITION: u64 = 1024;

/// Under a limit, each call requests at most one second's bytes divided by this. Requested data is
/// read before it may count, so a limit never blocks a peer that is sending.
const CALLS_PER_SECOND: u64 = 4;

/// Minimum bytes of such a call: smaller calls are mostly overhead.
const MIN_CALL_BYTES: u64 = 16 * 1024;

/// The rate limits of one download.
#[derive(Debug)]
pub(crate) struct DownloadRateLimiter {
    /// The download's own limit, with a single flow.
    own: Flow,
    /// This download's flow in the peer's limit.
    shared: Flow,
}

impl DownloadRateLimiter {
    /// Applies the download's own limits within the limits of the peer.
    pub(crate) fn new(own: DownloadLimits, peer: &Limits) -> Self {
        Self {
            own: RateLimiter::new(own.max_bytes_per_second).flow(own.priority),
            shared: peer.download().flow(own.priority),
        }
    }

    /// Changes the limits, also for waiting acquisitions.
    pub(crate) fn set_limits(&self, limits: DownloadLimits) {
        self.own.set_rate(limits.max_bytes_per_second);
        self.shared.set_priority(limits.priority);
    }

    /// Bytes to acquire next: all of them if nothing limits the rate.
    pub(crate) fn next_acquisition(&self, bytes: u64) -> u64 {
        match self.rate() {
            None => bytes,
            Some(rate) => {
                let max = rate / ACQUISITIONS_PER_SECOND;
                bytes.min(max.clamp(MIN_ACQUISITION, MAX_ACQUISITION))
            }
        }
    }

    /// Maximum bytes per call.
    pub(crate) fn max_call_bytes(&self) -> u64 {
        self.rate()
            .map_or(u64::MAX, |rate| (rate / CALLS_PER_SECOND).max(MIN_CALL_BYTES))
    }

    /// The lower of the limits in bytes per second, if there is one.
    fn rate(&self) -> Option<u64> {
        let rates = [self.own.rate(), self.shared.rate()];
        rates.into_iter().filter(|&rate| rate > 0).min()
    }

    /// Waits until this many bytes of the request are allowed. Cancel-safe: a dropped acquisition
    /// gives its bytes back.
    pub(crate) async fn acquire(&self, bytes: u64, request: RequestId) {
        let rank = request.order();
        // The own limit comes first, so that waiting for it does not block other downloads.
        self.own.acquire_ranked(bytes, rank).await;
        self.shared.acquire_ranked(bytes, rank).await;
    }
}
