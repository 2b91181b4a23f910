//! What is remembered of transfers, in the store and in the list, and what is removed with one.

use std::sync::PoisonError;

use super::{
    super::{part, saved::Saved, target::Target, view::State},
    Entry, Table, Transfers,
};
use crate::blocking::blocking;

/// Ended transfers that are kept to be listed.
const KEPT: usize = 100;

impl Transfers {
    /// Has the store remember a transfer as it stands; `running`: as one that is at work.
    pub(super) async fn remember(&self, number: u64, running: bool) {
        self.mark(number, Some(running));
        self.store(number).await;
    }

    pub(super) async fn forget(&self, number: u64) {
        self.mark(number, None);
        self.store(number).await;
    }

    fn mark(&self, number: u64, stored: Option<bool>) {
        if let Some(entry) = self.table().transfers.get_mut(&number) {
            entry.stored = stored;
        }
    }

    /// Brings the store up to date with a transfer: one that is to be remembered as it is now, any other not at all.
    pub(super) async fn store(&self, number: u64) {
        let transfers = self.clone();
        let stored = blocking(move || {
            // One at a time, and each with what holds when its turn comes: the last that is written is the latest.
            let _storing = transfers
                .inner
                .storing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let store = &transfers.inner.context.store;
            match transfers.to_save(number) {
                Some(saved) => store.put_transfer(number, &saved.encode()),
                None => store.remove_transfer(number),
            }
        });
        if let Ok(Err(error)) = stored.await {
            tracing::warn!(transfer = number, %error, "could not be stored: after a restart it is as it was before");
        }
    }

    fn to_save(&self, number: u64) -> Option<Saved> {
        let table = self.table();
        let entry = table.transfers.get(&number)?;
        let view = entry.view.borrow();
        Some(Saved {
            spec: entry.spec.clone(),
            running: entry.stored?,
            name: view.name.clone(),
            path: Some(view.path.clone()).filter(|path| !path.as_os_str().is_empty()),
        })
    }

    /// Removes what a cancelled transfer had fetched.
    pub(super) async fn discard(&self, number: u64) {
        let target = self.table().transfers.get(&number).map(|entry| {
            let path = entry.view.borrow().path.clone();
            (entry.spec.id, Target { path })
        });
        if let Some((id, target)) = target.filter(|(_, target)| target.path.is_absolute()) {
            let path = target.part();
            if let Ok(Err(error)) = blocking(move || part::remove(id, &target)).await {
                tracing::warn!(part = %path.display(), %error, "could not be removed");
            }
        }
        self.forget(number).await;
    }
}

impl Table {
    /// Takes out the oldest ended transfers beyond those that are kept.
    pub(super) fn prune(&mut self) -> Vec<u64> {
        let ended = |entry: &Entry| {
            let state = entry.view.borrow().state;
            entry.watchers == 0 && matches!(state, State::Done | State::Cancelled | State::Failed)
        };
        let ended: Vec<u64> = self
            .transfers
            .iter()
            .filter(|(_, entry)| ended(entry))
            .map(|(&number, _)| number)
            .collect();
        let surplus = ended.len().saturating_sub(KEPT);
        let pruned = ended[..surplus].to_vec();
        for number in &pruned {
            self.transfers.remove(number);
        }
        pruned
    }
}
