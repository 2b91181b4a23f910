//! How fast a transfer may fetch: its own limit, then its share of the peer's.
//!
//! Invariant: what was asked for first may come first. A limit is not divided over the units under way: a unit is of use only when it is
//! whole, and those behind it take what its peer leaves of the limit.

use crate::{
    download::status::TransferLimits,
    limits::{Flow, Limits, RateLimiter},
};
use potluck_swarm::RequestId;

/// Most bytes that are waited for at once where there is a limit: the shares of transfers are exact to a few of these.
const STEP: u64 = 64 * 1024;

/// At least so often a second something is let through: a rate over a few seconds is then seen as it is.
const STEPS_PER_SECOND: u64 = 4;

/// Least bytes that are waited for at once, all the same: less costs more than it says.
const MIN_STEP: u64 = 1024;

/// Where there is a limit, calls are for this part of what it lets through in a second: what was asked for is read whether or not it
/// may count yet, so that a limit makes no peer wait with what it was about to send.
const REQUESTS_PER_SECOND: u64 = 4;

/// Least bytes of such a call: less is mostly head.
const MIN_REQUEST: u64 = 16 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct TransferRateLimiter {
    /// The only flow of a meter of its own.
    own: Flow,
    /// One flow of those of all transfers.
    shared: Flow,
}

impl TransferRateLimiter {
    /// By these terms, beside the others of this peer.
    pub(crate) fn new(transfer_limits: TransferLimits, limits: &Limits) -> Self {
        Self {
            own: RateLimiter::new(transfer_limits.max_bytes_per_second).flow(transfer_limits.priority),
            shared: limits.download().flow(transfer_limits.priority),
        }
    }

    /// Changes the terms, for those who wait as well.
    pub(crate) fn set_limits(&self, limits: TransferLimits) {
        self.own.set_rate(limits.max_bytes_per_second);
        self.shared.set_priority(limits.priority);
    }

    /// How much of so many bytes to wait for next: all of them where nothing limits them.
    pub(crate) fn next_step(&self, bytes: u64) -> u64 {
        match self.rate() {
            None => bytes,
            Some(rate) => bytes.min((rate / STEPS_PER_SECOND).clamp(MIN_STEP, STEP)),
        }
    }

    /// Most bytes to ask for in one call.
    pub(crate) fn max_request_bytes(&self) -> u64 {
        self.rate()
            .map_or(u64::MAX, |rate| (rate / REQUESTS_PER_SECOND).max(MIN_REQUEST))
    }

    /// Bytes a second that it cannot exceed, where anything limits it.
    fn rate(&self) -> Option<u64> {
        let rates = [self.own.rate(), self.shared.rate()];
        rates.into_iter().filter(|&rate| rate > 0).min()
    }

    /// Waits until so many bytes of this request may come. Cancel-safe: what was not waited for to the end is given back.
    pub(crate) async fn acquire(&self, bytes: u64, request: RequestId) {
        let rank = request.order();
        // The own limit first: who waits for that does not stand in others' way.
        self.own.acquire_ranked(bytes, rank).await;
        self.shared.acquire_ranked(bytes, rank).await;
    }
}
