//! The limits of a running download: its rate, and its part of the in-flight budget.
//!
//! Invariant: new settings apply immediately, also to requests in flight.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    download::{
        context::SharedResources, engine::rate_limit::DownloadRateLimiter, status::DownloadLimits,
    },
    limits::budget::BudgetShare,
};

/// The limits of a running download.
#[derive(Debug)]
pub(crate) struct ActiveLimits {
    settings: watch::Receiver<DownloadLimits>,
    rate: Arc<DownloadRateLimiter>,
    budget: BudgetShare,
}

impl ActiveLimits {
    /// Applies these settings within the limits of the peer.
    pub(crate) fn new(
        mut settings: watch::Receiver<DownloadLimits>,
        resources: &SharedResources,
    ) -> Self {
        let now = *settings.borrow_and_update();
        Self {
            settings,
            rate: Arc::new(DownloadRateLimiter::new(now, &resources.limits)),
            budget: resources.budget.join(now.priority),
        }
    }

    /// Limits the rate of the download.
    pub(super) const fn rate(&self) -> &Arc<DownloadRateLimiter> {
        &self.rate
    }

    /// Bytes that the download may have in flight now.
    pub(super) fn in_flight_budget(&self) -> u64 {
        self.budget.bytes()
    }

    /// Reports the bytes in flight; see [`BudgetShare::report_in_flight`].
    pub(super) fn report_in_flight(&mut self, bytes: u64) {
        self.budget.report_in_flight(bytes);
    }

    /// Waits until the settings or the budget change, and applies new settings. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.budget.changed() => {}
            Ok(()) = self.settings.changed() => {
                let now = *self.settings.borrow_and_update();
                self.rate.set_limits(now);
                self.budget.set_priority(now.priority);
            }
            // Nothing can change any more.
            else => std::future::pending().await,
        }
    }
}
