//! What the store remembers of transfers, and what is removed with one.

use super::{
    super::{context::blocking, part, saved::Saved, target::Target},
    Transfers,
};

impl Transfers {
    /// Has the store remember a transfer as it stands.
    pub(super) async fn remember(&self, number: u64, running: bool) {
        let saved = {
            let table = self.table();
            let Some(entry) = table.transfers.get(&number) else {
                return;
            };
            let view = entry.view.borrow();
            Saved {
                spec: entry.spec.clone(),
                running,
                name: view.name.clone(),
                path: Some(view.path.clone()).filter(|path| !path.as_os_str().is_empty()),
            }
        };
        let store = self.inner.context.store.clone();
        let stored = blocking(move || store.put_transfer(number, &saved.encode())).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(transfer = number, %error, "not remembered: it will not go on after a restart");
        }
    }

    pub(super) async fn forget(&self, number: u64) {
        let store = self.inner.context.store.clone();
        if let Ok(Err(error)) = blocking(move || store.remove_transfer(number)).await {
            tracing::warn!(transfer = number, %error, "could not be forgotten");
        }
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
