//! Publishes each change of the catalog: to the database, the announce set, the watchers of files,
//! and the open files.
//!
//! Invariant: changes reach the database in the order in which they were made, each at most once. A
//! change that could not be stored is stored before the next one.

use std::{path::PathBuf, sync::Arc};

use potluck_core::{FileId, identity::merkle::Hash, model::Registration};

use crate::{
    announce::set::RegistrationSource,
    library::{
        Item, LibraryShared,
        catalog::{Delta, DeltaEffects, ItemBody, Location},
        sync::load,
    },
    store::{StoreChange, StoreError},
};

/// Above this number of files, updating the announce set takes long enough to do it in parallel
/// with the database write.
const MANY_FILES: usize = 4096;

/// Changes that could not be stored yet.
#[derive(Debug, Default)]
pub(crate) struct UnsavedChanges {
    changes: Vec<StoreChange>,
    /// The items that their owner unshared with these changes.
    pub(crate) unshared: Vec<Item>,
}

impl RegistrationSource for LibraryShared {
    fn registration(&self, id: &FileId) -> Option<Registration> {
        self.catalog().registration(id)
    }
}

impl LibraryShared {
    /// Stores and announces a change of the catalog. The caller holds `writing`.
    ///
    /// A change that cannot be stored stays in effect until the peer stops. It is stored together
    /// with a later change, if that succeeds.
    pub(crate) fn publish(&self, delta: Delta) -> Result<(), StoreError> {
        let mut settled = self.catalog().settle(delta);
        // Includes earlier changes that could not be stored.
        let mut unsaved = std::mem::take(&mut *self.unsaved_changes.lock());
        unsaved.changes.append(&mut settled.changes);
        self.holdings.remove(&settled.removed);
        let stored = std::thread::scope(|scope| {
            let hold = || self.holdings.announce_complete(&settled.present);
            match settled.present.len() > MANY_FILES {
                true => drop(scope.spawn(hold)),
                false => hold(),
            }
            self.store.apply(&unsaved.changes)
        });
        if let Err(error) = &stored {
            *self.unsaved_changes.lock() = unsaved;
            tracing::error!(%error, "a change of the library could not be stored");
        }
        self.notify_removed(&settled);
        self.sha256_needed.notify_one();
        stored
    }

    /// Whether changes wait to be stored.
    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved_changes.lock().changes.is_empty()
    }

    /// Tries again to store the waiting changes.
    pub(crate) fn save_again(&self) {
        let _writing = self.writing();
        let unsaved = std::mem::take(&mut *self.unsaved_changes.lock());
        match self.store.apply(&unsaved.changes) {
            Ok(()) => tracing::info!("what could not be stored before is stored now"),
            Err(error) => {
                tracing::debug!(%error, "what could not be stored before cannot be stored yet");
                *self.unsaved_changes.lock() = unsaved;
            }
        }
    }

    /// Publishes a change to everything except the database.
    pub(crate) fn notify(&self, settled: &DeltaEffects) {
        self.holdings.remove(&settled.removed);
        self.holdings.announce_complete(&settled.present);
        self.notify_removed(settled);
    }

    /// Notifies watchers of removed files, closes their handles, and deletes their manifests.
    fn notify_removed(&self, settled: &DeltaEffects) {
        let mut watchers = self.watchers();
        watchers.retain(|_, sender| sender.receiver_count() > 0);
        for id in &settled.removed {
            watchers.remove(id);
        }
        drop(watchers);
        let mut handles = self.open_files();
        for id in &settled.removed {
            handles.remove(id);
        }
        drop(handles);
        for id in &settled.manifests {
            // A manifest that cannot be deleted only wastes a little space: it is verified against
            // its id at each read.
            let _ = std::fs::remove_file(self.manifest_path(id));
        }
    }

    /// Withdraws a changed copy; its item is checked again in the background. `seen` is the item as
    /// it was checked: an item that replaced it since is left alone.
    pub(crate) fn withdraw(&self, location: Location, seen: &ItemBody) {
        let path = {
            let catalog = self.catalog();
            let item = catalog.item(location.item).filter(|shared| shared.body.is(seen));
            item.filter(|_| !catalog.is_offline(location.item))
                .map(|shared| (shared.path.clone(), shared.downloaded))
        };
        let Some((path, downloaded)) = path else { return };
        if self.is_offline(&path, downloaded) && self.mark_offline(location.item) {
            return;
        }
        let _writing = self.writing();
        let mut delta = Delta::default();
        let mut catalog = self.catalog();
        let item = catalog.item(location.item);
        let Some(shared) = item.filter(|shared| shared.body.is(seen)) else {
            return;
        };
        tracing::info!(path = %shared.path.display(), id = %shared.record.id, "a shared file changed: it is withdrawn and hashed again");
        catalog.invalidate(location, &mut delta);
        drop(catalog);
        // `publish` logs a failure. At the next start `stat` shows the same.
        let _ = self.publish(delta);
        self.stale.notify_one();
        self.rescan.notify_one();
    }

    /// The path of a collection if all its files are unchanged. Withdraws the changed ones.
    pub(crate) fn unchanged_folder(&self, number: u64) -> Option<PathBuf> {
        let (root, body) = {
            let catalog = self.catalog();
            let shared = catalog.item(number)?;
            (shared.path.clone(), shared.body.clone())
        };
        let ItemBody::Collection(folder) = &body else {
            return None;
        };
        let changed = load::changed_entries(&root, folder, self.hash_threads);
        for &part in &changed {
            self.withdraw(
                Location {
                    item: number,
                    entry: part,
                },
                &body,
            );
        }
        changed.is_empty().then(|| root.to_path_buf())
    }

    /// The piece layer of a file.
    pub(crate) fn layer(&self, id: &FileId) -> Result<Option<Arc<[Hash]>>, StoreError> {
        let unsaved = self.unsaved_changes.lock();
        let layer = unsaved.changes.iter().rev().find_map(|change| match change {
            StoreChange::PutLayer(of, layer) if of == id => Some(layer.clone()),
            _ => None,
        });
        drop(unsaved);
        match layer {
            Some(layer) => Ok(Some(layer)),
            None => self.store.layer(id),
        }
    }
}
