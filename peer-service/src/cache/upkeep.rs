//! Removes what is old, and stores when entries were used.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Cache;
use crate::fs::blocking::blocking;

/// Interval of the check. A lower limit takes effect after at most this time.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Checks after which the times of uses are stored: every ten minutes. A crash loses what is newer;
/// the order of the entries is then a little wrong.
const CHECKS_PER_STORE: u32 = 20;

/// Rows that are stored in one step.
const ROWS: usize = 1000;

impl Cache {
    /// Maintains the cache until shutdown; then stores the times of uses.
    pub(crate) async fn maintain(self, shutdown: CancellationToken) {
        let mut checks = 0_u32;
        loop {
            let is_stopping = tokio::select! {
                () = shutdown.cancelled() => true,
                () = tokio::time::sleep(CHECK_INTERVAL) => false,
            };
            checks += 1;
            let must_store = is_stopping || checks.is_multiple_of(CHECKS_PER_STORE);
            let cache = self.clone();
            let work = move || {
                if !is_stopping {
                    cache.evict_due();
                }
                if must_store {
                    cache.store_uses();
                }
            };
            if blocking(work).await.is_err() || is_stopping {
                return;
            }
        }
    }

    /// Stores when entries were used. Blocks.
    pub(super) fn store_uses(&self) {
        let stale: Vec<String> = {
            let state = self.shared.state.lock();
            let stale = state.slots.iter().filter(|(_, slot)| slot.is_stale);
            stale.map(|(name, _)| name.clone()).collect()
        };
        for names in stale.chunks(ROWS) {
            if let Err(problem) = self.store(names) {
                tracing::debug!(%problem, "could not store when entries of the cache were used");
            }
        }
    }
}
