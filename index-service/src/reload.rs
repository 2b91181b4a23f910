//! The settings that a running index can change.

use std::sync::Arc;

use parking_lot::Mutex;
use potluck_core::grpc::limiter::PerAddressLimiter;

use crate::{commit::Committer, limits::Limits, rate_limiter::RateLimiter, registry::Registry};

/// The keys that [`LimitChanger::change`] applies.
pub(crate) const LIMIT_KEYS: [&str; 6] = [
    "max-files-per-peer",
    "max-peers-per-address",
    "max-calls-per-second",
    "max-watchers",
    "max-connections",
    "max-memory-mib",
];

/// Changes the limits of a running index.
#[derive(Debug, Clone)]
pub(crate) struct LimitChanger {
    pub(crate) registry: Arc<Registry>,
    pub(crate) committer: Committer,
    pub(crate) rate_limiter: Arc<Mutex<RateLimiter>>,
    pub(crate) connections: PerAddressLimiter,
}

impl LimitChanger {
    /// Applies these limits from now on. What was admitted stays.
    pub(crate) fn change(&self, limits: &Limits) {
        self.rate_limiter.lock().set_rate(limits.max_calls_per_second);
        self.registry.watch_hub().set_max(limits.max_watchers);
        self.connections.set_capacity(limits.max_connections);
        self.committer.set_limits(limits.clone());
    }
}
