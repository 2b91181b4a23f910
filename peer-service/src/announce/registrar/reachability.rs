//! Asks the index from time to time whether it can connect to this peer.
//!
//! A peer behind a firewall or a NAT router registers its files, but nobody can download them. Only
//! a check from outside shows that.
//!
//! Non-goal: it changes nothing. The peer stays registered, because others on its own network may
//! still reach it.

use std::time::Duration;

use potluck_core::{
    Reason,
    model::{Address, Reachability},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::announce::registrar::{
    connection::IndexConnection, refusal::jittered, state::RegistrarStatus,
};

/// Time between two checks of a peer that can be reached, or of one that the index does not check:
/// networks rarely change while a peer runs.
const RARE_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Time between two checks of a peer that cannot be reached: its owner may open a port now.
const UNREACHABLE_INTERVAL: Duration = Duration::from_secs(300);

/// Delay after a check that failed, such as one that the index postponed.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// Checks while the peer is registered.
pub(super) struct ReachabilityTask {
    pub(super) index: IndexConnection,
    pub(super) status: watch::Receiver<RegistrarStatus>,
    /// The last result for the address that is registered now.
    pub(super) result: watch::Sender<Option<Reachability>>,
}

impl ReachabilityTask {
    /// Runs until `shutdown` is cancelled.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        // Cancel-safe: a check changes nothing at the index.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.check_repeatedly() => {}
        }
    }

    /// Returns when the registrar has ended.
    async fn check_repeatedly(&mut self) {
        while let Some(address) = self.registered_address().await {
            let wait = self.check(&address).await;
            let moved = self
                .status
                .wait_for(|status| status.advertised.as_ref() != Some(&address));
            tokio::select! {
                // Cancel-safe: both arms only wait.
                () = tokio::time::sleep(wait) => {}
                _ = moved => {
                    self.result.send_replace(None);
                }
            }
        }
    }

    /// Waits until the peer is registered; `None` when the registrar has ended.
    async fn registered_address(&mut self) -> Option<Address> {
        let is_registered =
            |status: &RegistrarStatus| status.registered && status.advertised.is_some();
        let status = self.status.wait_for(is_registered).await.ok()?;
        status.advertised.clone()
    }

    /// Checks once; returns the time to the next check.
    async fn check(&self, address: &Address) -> Duration {
        let found = match self.index.check_reachability().await {
            Ok(found) => found,
            // An index that does not know the call.
            Err(problem) if problem.reason == Reason::NotPotluck => Reachability::NotChecked,
            Err(problem) => {
                tracing::debug!(%problem, "the index did not check whether it can reach this peer");
                return jittered(RETRY_DELAY).max(problem.retry_after.unwrap_or_default());
            }
        };
        if self.result.send_replace(Some(found)) != Some(found) {
            report(found, address);
        }
        jittered(match found.is_reachable() {
            Some(false) => UNREACHABLE_INTERVAL,
            Some(true) | None => RARE_INTERVAL,
        })
    }
}

fn report(found: Reachability, address: &Address) {
    match found.is_reachable() {
        Some(true) => tracing::info!(%address, "reachable from the index"),
        Some(false) => tracing::warn!(
            %address, found = found.finding(),
            "not reachable from the index, so others may not be able to download from this peer: \
             open TCP port {} in the firewall, or start with --download-only",
            address.port
        ),
        None => tracing::debug!("the index does not check whether it can reach this peer"),
    }
}
