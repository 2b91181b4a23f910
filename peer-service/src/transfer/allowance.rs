//! How fast a transfer may fetch: its own limit, then its share of the peer's.

use super::view::Terms;
use crate::limits::{Flow, Limits, Meter};

/// Most bytes that are waited for at once where there is a limit: under a low one a peer then looks slow, which it is, and not
/// silent; and the shares of transfers are exact to a few of these.
const STEP: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// The only flow of a meter of its own.
    own: Flow,
    /// One flow of those of all transfers.
    shared: Flow,
}

impl Allowance {
    /// By these terms, beside the others of this peer.
    pub(crate) fn new(terms: Terms, limits: &Limits) -> Self {
        Self {
            own: Meter::new(terms.max_bytes_per_second).flow(terms.priority),
            shared: limits.download().flow(terms.priority),
        }
    }

    /// Changes the terms, for those who wait as well.
    pub(crate) fn set(&self, terms: Terms) {
        self.own.set_rate(terms.max_bytes_per_second);
        self.shared.set_priority(terms.priority);
    }

    /// How much of so many bytes to wait for next: all of them where nothing limits them.
    pub(crate) fn step(&self, bytes: u64) -> u64 {
        match (self.own.rate(), self.shared.rate()) {
            (0, 0) => bytes,
            _ => bytes.min(STEP),
        }
    }

    /// Waits until so many bytes may come. Cancel-safe: what was not waited for to the end is given back.
    pub(crate) async fn acquire(&self, bytes: u64) {
        // The own limit first: who waits for that does not stand in others' way.
        self.own.acquire(bytes).await;
        self.shared.acquire(bytes).await;
    }
}
