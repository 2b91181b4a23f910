//! The catalog in memory together with its rows on disk. All changes of the library go through this
//! module, which publishes them to the database, the announce set, the watchers of files, the open
//! handles and the stored manifests.
//!
//! # The order of a change
//!
//! 1. New manifests are written and synced.
//! 2. The catalog changes in memory. Its rows become [unsaved changes](UnsavedChanges).
//! 3. Removed files leave the announce set.
//! 4. The database commits and syncs. New files enter the announce set meanwhile.
//! 5. Watchers of removed files are notified, their handles closed, their manifests deleted.
//! 6. The call returns.
//!
//! # Invariants
//!
//! - **An answered change is on disk and announced.** The only exception is a database that cannot
//!   be written: the change then stays in effect until the peer stops, and the call returns the
//!   error.
//! - A new file may be announced before its commit ends, because a download must not wait for a
//!   disk. That is safe: all data that a downloader can request is served from memory until it is
//!   on disk ([`CatalogStore::layer`]). After a power failure the registrations of the index expire
//!   with the lease, or are replaced when the peer registers again.
//! - A collection's manifest is on disk before its item is in the catalog or the database.
//! - Changes reach the database in the order in which they were made, each at most once. A change
//!   that could not be stored is stored before the next one.
//! - Only a [`CatalogWriter`] changes the catalog, and there is one at a time. So all observers see
//!   the changes in one order.
//!
//! # Lock order
//!
//! `change_order`, `watchers`, `catalog`, `unsaved`. The locks of [`ManifestFolder`] and
//! [`FileHandles`] come last, and no other lock is taken while one of them is held. Only
//! `change_order` and the lock of [`ManifestFolder`] are held during disk access.
//!
//! # Non-goals
//!
//! Whether files are unchanged, and when to check them: see `reconcile`.

use std::{
    collections::HashMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    FileId, Problem, Reason, identity::merkle::Hash, model::Registration, problem::RAISE_OPEN_FILES,
};
use tokio::sync::{Notify, watch};

pub(crate) mod handles;
pub(crate) mod manifests;

use crate::{
    announce::set::{AnnounceSet, RegistrationSource},
    catalog::{
        Catalog,
        change::{CatalogChange, Delta, DeltaEffects},
        item::{Item, ItemBody, NewItem},
    },
    library::{
        catalog_store::{handles::FileHandles, manifests::ManifestFolder},
        files_folder::FilesFolder,
        scan::resolve::resolve,
    },
    store::{Store, StoreError},
};

/// Above this number of files, updating the announce set takes long enough to do it in parallel
/// with the commit.
const PARALLEL_ANNOUNCE_FILES: usize = 4096;

/// The target of an unshare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnshareTarget {
    /// Every item with this id.
    Id(FileId),
    /// The item at this path.
    Path(PathBuf),
}

/// The reason why an item is put. Hashing takes a while, and its owner may unshare the path
/// meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PutCause {
    /// Its owner requested it.
    Requested,
    /// The item with this number changed. It is replaced only if it is still at the path.
    Changed(u64),
    /// The path is in the files folder. The item is put unless its owner unshared the path.
    InFilesFolder,
}

impl PutCause {
    fn holds(self, catalog: &Catalog, path: &Path) -> bool {
        match self {
            Self::Requested => true,
            Self::Changed(number) => catalog.item_at(path) == Some(number),
            Self::InFilesFolder => !catalog.is_tombstoned(path),
        }
    }
}

/// The catalog and its rows on disk; the module's documentation has the order of a change.
#[derive(Debug)]
pub(crate) struct CatalogStore {
    catalog: Mutex<Catalog>,
    /// Held by the [`CatalogWriter`].
    change_order: Mutex<()>,
    store: Store,
    unsaved: Mutex<UnsavedChanges>,
    announce_set: AnnounceSet,
    /// One sender for each watched file. Dropping the sender notifies the watchers that the file is
    /// withdrawn.
    watchers: Mutex<HashMap<FileId, watch::Sender<u64>>>,
    manifests: ManifestFolder,
    handles: FileHandles,
    /// Notified after each change.
    changed: Notify,
}

/// Changes that are not on disk yet. Grows only while `change_order` is held.
#[derive(Debug, Default)]
struct UnsavedChanges {
    /// In order. Shared with a running commit.
    changes: Arc<Vec<CatalogChange>>,
    /// The items that their owner unshared with these changes.
    unshared: Vec<Item>,
}

/// Read access to the catalog, which stays locked meanwhile.
pub(crate) struct CatalogReader<'a>(MutexGuard<'a, Catalog>);

impl Deref for CatalogReader<'_> {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.0
    }
}

/// The right to change the catalog. One exists at a time.
pub(crate) struct CatalogWriter<'a> {
    shared: &'a CatalogStore,
    _change_order: MutexGuard<'a, ()>,
}

impl CatalogWriter<'_> {
    /// Changes the catalog, stores the change, and publishes it. `change` runs while the catalog is
    /// locked and must not access the disk.
    ///
    /// A change that cannot be stored stays in effect until the peer stops. It is stored together
    /// with a later change, if that succeeds. The failure is logged here.
    pub(crate) fn apply<T>(
        &self,
        change: impl FnOnce(&mut Catalog, &mut Delta) -> T,
    ) -> (T, Result<(), StoreError>) {
        let mut delta = Delta::default();
        let mut catalog = self.shared.catalog.lock();
        let result = change(&mut catalog, &mut delta);
        if delta.is_empty() && !self.shared.has_unsaved() {
            return (result, Ok(()));
        }
        let mut effects = catalog.effects_of(delta);
        // Before the catalog is unlocked: a reader that finds a file there must also find its
        // layer.
        self.shared.add_unsaved(std::mem::take(&mut effects.changes));
        drop(catalog);
        (result, self.shared.publish(&effects))
    }
}

impl CatalogStore {
    /// An empty catalog over a database. [`CatalogStore::restore`] fills it.
    pub(crate) fn new(store: Store, announce_set: AnnounceSet) -> Arc<Self> {
        let shared = Arc::new(Self {
            catalog: Mutex::default(),
            change_order: Mutex::default(),
            unsaved: Mutex::default(),
            watchers: Mutex::default(),
            manifests: ManifestFolder::in_state(store.folder()),
            handles: FileHandles::new(),
            changed: Notify::new(),
            store,
            announce_set,
        });
        let source: Weak<Self> = Arc::downgrade(&shared);
        shared.announce_set.set_source(source);
        shared
    }

    /// Locks the catalog for reading. Never hold this during disk access.
    pub(crate) fn read(&self) -> CatalogReader<'_> {
        CatalogReader(self.catalog.lock())
    }

    /// Like `read`, but `None` if the catalog is locked.
    pub(crate) fn try_read(&self) -> Option<CatalogReader<'_>> {
        self.catalog.try_lock().map(CatalogReader)
    }

    /// Waits until nothing else changes the catalog.
    pub(crate) fn writer(&self) -> CatalogWriter<'_> {
        CatalogWriter {
            shared: self,
            _change_order: self.change_order.lock(),
        }
    }

    /// The database. Only for reading: every change goes through a [`CatalogWriter`].
    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) const fn manifests(&self) -> &ManifestFolder {
        &self.manifests
    }

    pub(crate) const fn handles(&self) -> &FileHandles {
        &self.handles
    }

    /// Waits until the catalog changed since the last call. Only one task may wait.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Fills the catalog at start. Stores and announces the result only if all of it succeeds;
    /// otherwise the catalog stays empty.
    ///
    /// # Errors
    /// The error of `fill`, or of the database.
    pub(crate) fn restore(
        &self,
        fill: impl FnOnce(&mut Catalog, &mut Delta) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let _change_order = self.change_order.lock();
        let mut catalog = self.catalog.lock();
        let mut delta = Delta::default();
        let filled = fill(&mut catalog, &mut delta);
        let effects = catalog.effects_of(delta);
        if let Err(error) = filled.and_then(|()| self.store.apply(&effects.changes)) {
            *catalog = Catalog::default();
            return Err(error);
        }
        drop(catalog);
        self.announce_set.remove(&effects.removed);
        self.announce_set.announce_complete(&effects.present);
        self.release_removed(&effects);
        self.changed.notify_one();
        Ok(())
    }

    /// Puts items in one batch; one result for each.
    ///
    /// # Errors
    /// - `BUSY`: files that the item relied on were unshared, or its share options changed; build it
    ///   again.
    /// - `CANCELLED`: the cause no longer holds.
    /// - Otherwise the reason why the item cannot be stored.
    pub(crate) fn put_items(
        &self,
        items: Vec<NewItem>,
        cause: PutCause,
    ) -> Vec<Result<Item, Problem>> {
        let writer = self.writer();
        let items: Vec<_> = items
            .into_iter()
            .map(|item| self.ensure_manifest(&item).map(|()| item))
            .collect();
        let (results, stored) = writer.apply(|catalog, delta| {
            let put = |item: Result<NewItem, Problem>| put_item(catalog, item?, cause, delta);
            items.into_iter().map(put).collect::<Vec<_>>()
        });
        let stored = stored.map_err(|error| put_not_stored(&error));
        let results = results.into_iter();
        results
            .map(|result| result.and_then(|item| stored.clone().map(|()| item)))
            .collect()
    }

    /// Writes the manifest of a collection if it is missing.
    fn ensure_manifest(&self, item: &NewItem) -> Result<(), Problem> {
        match &item.body {
            ItemBody::File(_) => Ok(()),
            ItemBody::Collection(folder) => {
                self.manifests.ensure(&item.record.id, &folder.manifest)
            }
        }
    }

    /// Removes items and deletes no shared file. Paths in the files folder get a tombstone.
    ///
    /// # Errors
    /// - `NOT_FOUND`: the target is not shared.
    /// - `DISK_FULL`, `STORE_UNAVAILABLE`: it is no longer shared, but the change could not be
    ///   stored. A repeated call stores it.
    pub(crate) fn unshare(
        &self,
        target: &UnshareTarget,
        files_folder: &FilesFolder,
    ) -> Result<Vec<Item>, Problem> {
        let resolved = target.resolved();
        let writer = self.writer();
        // If this repeats a call whose change could not be stored, it stores that change.
        let unsaved = self.unsaved.lock().unshared.clone();
        let (mut removed, stored) = writer.apply(|catalog, delta| {
            let mut removed = Vec::new();
            for number in resolved.numbers(catalog) {
                let Some(item) = catalog.remove(number, delta) else {
                    continue;
                };
                if files_folder.has_item_at(&item.path) {
                    catalog.add_tombstone(item.path.clone(), Some(delta));
                }
                removed.push(item);
            }
            removed
        });
        if removed.is_empty() {
            removed.extend(unsaved.into_iter().filter(|item| resolved.matches(item)));
        }
        if removed.is_empty() {
            return Err(target.not_shared(&self.read()));
        }
        stored.map(|()| removed.clone()).map_err(|error| {
            let unshared = &mut self.unsaved.lock().unshared;
            unshared.retain(|known| removed.iter().all(|item| item.path != known.path));
            unshared.extend(removed);
            unshare_not_stored(&error)
        })
    }

    /// Removes the item at this path, unless its owner asked to share it. A path in the files folder
    /// gets a tombstone.
    ///
    /// # Errors
    /// `DISK_FULL`, `STORE_UNAVAILABLE`: the change could not be stored.
    pub(crate) fn unshare_download(
        &self,
        path: PathBuf,
        files_folder: &FilesFolder,
    ) -> Result<(), Problem> {
        let ((), stored) = self.writer().apply(|catalog, delta| {
            let number = catalog.item_at(&path);
            let is_unrequested = |number: &u64| {
                let item = catalog.item(*number);
                item.is_some_and(|item| item.is_unrequested)
            };
            let Some(number) = number.filter(is_unrequested) else {
                return;
            };
            catalog.remove(number, delta);
            if files_folder.has_item_at(&path) {
                catalog.add_tombstone(path, Some(delta));
            }
        });
        stored.map_err(|error| unshare_not_stored(&error))
    }

    /// Removes the item at this path of the cache; false if its owner asked to share it. A change that
    /// cannot be stored is logged, and stays in effect.
    pub(crate) fn release_cached(&self, path: &Path, is_folder: bool) -> bool {
        let (is_released, _) = self.writer().apply(|catalog, delta| {
            if catalog.is_requested_at(path, is_folder) {
                return false;
            }
            if let Some(number) = catalog.item_at(path) {
                catalog.remove(number, delta);
            }
            true
        });
        is_released
    }

    /// Adds a tombstone for a path in the files folder that is not shared.
    ///
    /// # Errors
    /// `DISK_FULL`, `STORE_UNAVAILABLE`: the tombstone could not be stored.
    pub(crate) fn keep_unshared(
        &self,
        path: PathBuf,
        files_folder: &FilesFolder,
    ) -> Result<(), Problem> {
        let ((), stored) = self.writer().apply(|catalog, delta| {
            if files_folder.has_item_at(&path) && catalog.item_at(&path).is_none() {
                catalog.add_tombstone(path, Some(delta));
            }
        });
        stored.map_err(|error| unshare_not_stored(&error))
    }

    /// Stores a file's piece layer again.
    pub(crate) fn put_layer(&self, id: FileId, layer: Arc<[Hash]>) {
        let _writer = self.writer();
        self.add_unsaved(vec![CatalogChange::PutLayer(id, layer)]);
        if let Err(error) = self.save() {
            tracing::warn!(%error, "piece hashes could not be stored");
        }
    }

    /// The piece layer of a file, also while it is being written to disk.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) fn layer(&self, id: &FileId) -> Result<Option<Arc<[Hash]>>, StoreError> {
        let unsaved = self.unsaved.lock();
        let layer = unsaved.changes.iter().rev().find_map(|change| match change {
            CatalogChange::PutLayer(of, layer) if of == id => Some(layer.clone()),
            _ => None,
        });
        drop(unsaved);
        match layer {
            Some(layer) => Ok(Some(layer)),
            None => self.store.layer(id),
        }
    }

    /// A receiver that closes when the file is withdrawn.
    pub(crate) fn watch(&self, id: &FileId) -> watch::Receiver<u64> {
        let mut watchers = self.watchers.lock();
        // The file may have been withdrawn since it was looked up. A sender created now would never
        // be dropped.
        if self.read().record(id).is_none() {
            return watch::channel(0).1;
        }
        watchers
            .entry(*id)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    /// Whether changes could not be stored yet.
    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.lock().changes.is_empty()
    }

    /// Tries again to store changes that could not be stored.
    pub(crate) fn save_unsaved(&self) {
        let _writer = self.writer();
        match self.save() {
            Ok(()) => {
                tracing::info!("stored changes of the library that could not be stored before")
            }
            Err(error) => tracing::debug!(%error, "changes of the library still cannot be stored"),
        }
    }

    fn add_unsaved(&self, mut changes: Vec<CatalogChange>) {
        let mut unsaved = self.unsaved.lock();
        Arc::make_mut(&mut unsaved.changes).append(&mut changes);
    }

    /// Stores and announces a change of the catalog. The caller holds `change_order`.
    fn publish(&self, effects: &DeltaEffects) -> Result<(), StoreError> {
        self.announce_set.remove(&effects.removed);
        let stored = std::thread::scope(|scope| {
            let announce = || self.announce_set.announce_complete(&effects.present);
            match effects.present.len() > PARALLEL_ANNOUNCE_FILES {
                true => drop(scope.spawn(announce)),
                false => announce(),
            }
            self.save()
        });
        if let Err(error) = &stored {
            tracing::error!(%error, "a change of the library could not be stored");
        }
        self.release_removed(effects);
        self.changed.notify_one();
        stored
    }

    /// Stores the unsaved changes. The caller holds `change_order`.
    fn save(&self) -> Result<(), StoreError> {
        let changes = self.unsaved.lock().changes.clone();
        self.store.apply(&changes)?;
        *self.unsaved.lock() = UnsavedChanges::default();
        Ok(())
    }

    /// Notifies watchers of removed files, closes their handles, and deletes their manifests.
    fn release_removed(&self, effects: &DeltaEffects) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|_, sender| sender.receiver_count() > 0);
        for id in &effects.removed {
            watchers.remove(id);
        }
        drop(watchers);
        self.handles.close(&effects.removed);
        self.manifests.remove(&effects.manifests);
    }
}

impl RegistrationSource for CatalogStore {
    fn registration(&self, id: &FileId) -> Option<Registration> {
        self.read().registration(id)
    }
}

fn put_item(
    catalog: &mut Catalog,
    mut item: NewItem,
    cause: PutCause,
    delta: &mut Delta,
) -> Result<Item, Problem> {
    // Only a request turns a download into a shared item.
    item.is_unrequested |= !matches!(cause, PutCause::Requested);
    if !cause.holds(catalog, &item.path) {
        let path = item.path.display();
        return Err(Problem::new(
            Reason::Cancelled,
            format!("{path} was unshared while it was hashed"),
        ));
    }
    let known = catalog
        .item_at(&item.path)
        .and_then(|number| catalog.item(number));
    if item.is_unrequested && known.is_some_and(|known| known.options != item.options) {
        return Err(Problem::new(
            Reason::Busy,
            "it was shared with other options while it was hashed",
        ));
    }
    if catalog.lacks_layer(&item) {
        return Err(Problem::new(
            Reason::Busy,
            "an item that has the same files was unshared meanwhile",
        ));
    }
    let number = catalog.put(item, delta);
    Ok(catalog.item(number).expect("the item was just put").to_item())
}

impl UnshareTarget {
    /// The target, with its path resolved in the same way as the paths of items.
    fn resolved(&self) -> Self {
        match self {
            Self::Id(id) => Self::Id(*id),
            // If the parent folder is gone, the path can only be compared as given.
            Self::Path(path) => Self::Path(resolve(path).unwrap_or_else(|_| path.clone())),
        }
    }

    fn matches(&self, item: &Item) -> bool {
        match self {
            Self::Id(id) => item.record.id == *id,
            Self::Path(path) => item.path == *path,
        }
    }

    /// The numbers of the items that match.
    fn numbers(&self, catalog: &Catalog) -> Vec<u64> {
        match self {
            Self::Id(id) => {
                let items = catalog.items_after(None);
                let matching = items.filter(|(_, item)| item.record.id == *id);
                matching.map(|(number, _)| number).collect()
            }
            Self::Path(path) => catalog.item_at(path).into_iter().collect(),
        }
    }

    fn not_shared(&self, catalog: &Catalog) -> Problem {
        let message = match self {
            Self::Id(id) if catalog.record(id).is_some() => {
                format!("{id} is shared only as part of a collection: unshare the collection")
            }
            Self::Id(id) => format!("this peer does not share {id}"),
            Self::Path(path) => format!("{} is not a shared item", path.display()),
        };
        Problem::new(Reason::NotFound, message)
    }
}

/// The problem with an item that is shared but could not be stored.
fn put_not_stored(error: &StoreError) -> Problem {
    let until = "it is shared only until the peer stops";
    match error.exhaustion() {
        Some(Reason::DiskFull) => Problem::new(
            Reason::DiskFull,
            format!("{until}: the disk of its home is full; make room and share it again"),
        ),
        Some(reason) => {
            Problem::new(reason, format!("{until}: {RAISE_OPEN_FILES}, and share it again"))
        }
        None => Problem::new(
            Reason::StoreUnavailable,
            format!("{until}: it could not be stored; see the peer's log"),
        ),
    }
}

/// The problem with an item that is no longer shared while its removal could not be stored.
fn unshare_not_stored(error: &StoreError) -> Problem {
    let until = "it is no longer shared until the peer restarts";
    match error.is_full() {
        true => Problem::new(
            Reason::DiskFull,
            format!("{until}: the disk of its home is full; make room and unshare it again"),
        ),
        false => Problem::new(
            Reason::StoreUnavailable,
            format!("{until}: it could not be stored; see the peer's log and unshare it again"),
        ),
    }
}
