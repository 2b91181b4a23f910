//! What is done while the index takes no more files of this peer, or cannot store anything: the lease is held all the same.

use potluck_core::Problem;
use tokio::time::Instant;

use crate::announce::registrar::{IndexConnection, MAX_BATCH, MAX_BATCH_BYTES, RegistrarTask};

impl RegistrarTask {
    /// Whether the index holds a lease of this peer: the last answer said so, or it says so now. An index that is full may never have
    /// given one.
    pub(crate) async fn has_lease(&mut self) -> bool {
        self.renew_at.is_some() || self.renew().await.is_ok()
    }

    /// Holds the lease, which there is, until it is time to try again with what was too much. A removal makes room: then it is time at once.
    pub(crate) async fn wait_within_quota(&mut self, until: Instant) {
        loop {
            let version = self.listener.version();
            match self.unregister_removed().await {
                Ok(false) => {}
                Ok(true) | Err(_) => return,
            }
            let renew = self.renew_at.unwrap_or(until);
            // All arms are cancel-safe: changes are numbered.
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = self.listener.changed(version) => {}
                () = tokio::time::sleep_until(renew) => {
                    if self.renew().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Holds the lease, which there is, until it is time to try again.
    pub(crate) async fn wait_with_lease(&mut self, until: Instant) {
        while let Some(renew) = self.renew_at.filter(|at| *at < until) {
            tokio::time::sleep_until(renew).await;
            if self.renew().await.is_err() {
                return;
            }
        }
        tokio::time::sleep_until(until).await;
    }

    /// Takes back what was removed after what the index was told of; whether there was anything that it had.
    async fn unregister_removed(&mut self) -> Result<bool, Problem> {
        let mut since = self.synced_version;
        let mut any = false;
        loop {
            let changes = self.listener.changes(since, MAX_BATCH, MAX_BATCH_BYTES);
            if !changes.removed.is_empty() {
                let IndexConnection { client, token, .. } = &self.index;
                any |= client.unregister(token, Some(&changes.removed)).await? > 0;
            }
            since = changes.up_to;
            if !changes.more {
                return Ok(any);
            }
        }
    }
}
