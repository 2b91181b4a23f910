//! Loads the library at start: reads it from the database and checks each file by `stat` alone, so
//! that a hundred thousand items load in about a second.
//!
//! Changed and offline items keep their number and are checked again in the background. Items that
//! are gone from the files folder are removed.
//!
//! Invariant: a row is trusted only if its id follows from its other data.

use std::{
    collections::BTreeMap,
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, SyncSender},
    },
    thread,
};

use potluck_core::{
    FileId, Sha256,
    identity::merkle::FileTree,
    model::{FileKind, FileRecord},
};

use crate::{
    catalog::{
        Catalog,
        change::{Delta, EntrySha256s},
        item::{ItemBody, Location, NewItem, SharedCollection},
        record::record_of,
        row::{EntryIndex, ItemRow, Members, RowBody, WHOLE_ITEM},
        share_options::ShareOptions,
        stamp::stamp_of,
    },
    fs::parallel::map_ranges,
    library::{
        catalog_store::CatalogStore,
        files_folder::FilesFolder,
        problems::{is_gone, warn_offline},
        scan::{
            changed_entries::changed_entries,
            slow_path_warning::{PathProbe, SlowPathWarning},
        },
    },
    store::{StoreError, StoredItem},
};

/// Rows read in one batch: enough to keep all threads busy with `stat`, few enough to need little
/// memory.
const MAX_BATCH: usize = 2048;

/// Maximum number of offline paths named in the log.
const MAX_LOGGED: usize = 5;

/// Rows, each with the state of its file; `None` for a collection.
type LoadedRows = Vec<(StoredItem, Option<PathState>)>;

/// The state of a stored item according to `stat`.
enum PathState {
    Gone,
    /// Unchanged, except for these entries.
    Present(Vec<EntryIndex>),
}

/// Loads the catalog and announces its files. Replaces a damaged database with a new one.
///
/// # Errors
/// The database can be neither read nor replaced.
pub(crate) fn load(
    catalog: &CatalogStore,
    files_folder: &FilesFolder,
    threads: usize,
) -> Result<(), StoreError> {
    let loader = Loader {
        catalog,
        files_folder,
        threads,
    };
    let load = || catalog.restore(|catalog, delta| loader.fill(catalog, delta));
    match load() {
        Err(error) if error.is_damaged() => {
            catalog.store().replace_damaged(&error)?;
            load()
        }
        loaded => loaded,
    }
}

/// Fills the catalog from the database.
struct Loader<'a> {
    catalog: &'a CatalogStore,
    files_folder: &'a FilesFolder,
    /// Number of threads for `stat`.
    threads: usize,
}

impl Loader<'_> {
    fn fill(&self, catalog: &mut Catalog, delta: &mut Delta) -> Result<(), StoreError> {
        let store = self.catalog.store();
        for path in store.tombstones()? {
            catalog.add_tombstone(path, None);
        }
        // One thread calls `stat` for the next rows while this one restores the previous ones.
        let (sender, loaded) = mpsc::sync_channel(0);
        let (warning, (end, ended)) = (SlowPathWarning::default(), mpsc::channel());
        thread::scope(|scope| {
            let (warning, _end) = (&warning, end);
            scope.spawn(move || warning.watch(&ended));
            let reading = scope.spawn(move || self.read_rows(warning, sender));
            let probe = warning.probe();
            for ((number, row, sha256s), state) in loaded.into_iter().flatten() {
                self.restore(catalog, number, (row, state), sha256s, &probe, delta);
            }
            reading.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        for (item, entry) in store.damaged()? {
            catalog.restore_damaged(Location { item, entry }, delta);
        }
        warn_all_offline(catalog);
        Ok(())
    }

    /// Reads all stored items in batches and sends each with the state of its file.
    fn read_rows(
        &self,
        warning: &SlowPathWarning,
        sender: SyncSender<LoadedRows>,
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let items = self.catalog.store().items(after, MAX_BATCH)?;
            let Some((last, ..)) = items.last() else {
                return Ok(());
            };
            after = Some(*last);
            let states = map_ranges(items.len(), self.threads, |range| {
                let (rows, probe) = (items[range].iter(), warning.probe());
                rows.map(|(_, row, _)| state_of_file(row, &probe)).collect()
            });
            if sender.send(items.into_iter().zip(states).collect()).is_err() {
                return Ok(());
            }
        }
    }

    /// Restores one item. `state` is the state of a file; a collection is checked here, after its
    /// manifest is read.
    fn restore(
        &self,
        catalog: &mut Catalog,
        number: u64,
        (row, state): (ItemRow, Option<PathState>),
        sha256s: EntrySha256s,
        probe: &PathProbe,
        delta: &mut Delta,
    ) {
        let path = row.path.clone();
        let mut sha256s: BTreeMap<EntryIndex, Sha256> = sha256s.into_iter().collect();
        let known = match &row.body {
            RowBody::File(stamp) => {
                let tree = FileTree {
                    size: stamp.size,
                    root: row.root,
                    piece_hashes: Vec::new(),
                };
                let mut record = record_of(&tree, FileKind::File);
                record.sha256 = record.sha256.or_else(|| sha256s.remove(&WHOLE_ITEM));
                Some((record, ItemBody::File(*stamp)))
            }
            RowBody::Collection(members) => self.read_collection(&row.id, members),
        };
        // The id is verified although the row comes from this peer's own database.
        let Some((record, body)) = known.filter(|(record, _)| record.id == row.id) else {
            return catalog.put_stale(number, row);
        };
        let options = row.options.as_deref().cloned().unwrap_or_default();
        let state = state.unwrap_or_else(|| self.state_of_folder(&path, &body, &options, probe));
        let item = NewItem {
            is_unrequested: row.is_unrequested,
            label: row.label,
            options: row.options,
            sha256s,
            ..NewItem::new(path.clone(), record, body)
        };
        catalog.insert(number, item, delta);
        match state {
            PathState::Gone if self.files_folder.survives_offline(&path, row.is_unrequested) => {
                catalog.set_offline(number, delta);
            }
            PathState::Gone => {
                tracing::info!(path = %path.display(), "a shared path is gone: it is no longer shared");
                catalog.remove(number, delta);
            }
            PathState::Present(changed) => {
                for entry in changed {
                    catalog.invalidate(Location { item: number, entry }, delta);
                }
            }
        }
    }

    fn state_of_folder(
        &self,
        path: &Arc<Path>,
        body: &ItemBody,
        options: &ShareOptions,
        probe: &PathProbe,
    ) -> PathState {
        match (probe.check(path, Path::metadata), body) {
            (Err(error), _) if is_gone(&error) => PathState::Gone,
            (_, ItemBody::Collection(folder)) => {
                PathState::Present(changed_entries(path, folder, options, self.threads))
            }
            (_, ItemBody::File(_)) => PathState::Present(vec![WHOLE_ITEM]),
        }
    }

    /// Reads a collection's manifest. `None` if it is missing, damaged, or does not fit the stored
    /// members.
    fn read_collection(
        &self,
        id: &FileId,
        members: &Arc<Members>,
    ) -> Option<(FileRecord, ItemBody)> {
        let Some((record, manifest)) = self.catalog.manifests().read(id) else {
            tracing::warn!(
                %id,
                "the stored manifest of a collection is missing or damaged: its folder is hashed again"
            );
            return None;
        };
        let folder = SharedCollection::new(Arc::new(manifest), members.clone());
        folder
            .ids_match_roots()
            .then(|| (record, ItemBody::Collection(Arc::new(folder))))
    }
}

/// The state of a file according to `stat`; `None` for a collection.
fn state_of_file(row: &ItemRow, probe: &PathProbe) -> Option<PathState> {
    let RowBody::File(known) = &row.body else {
        return None;
    };
    Some(match probe.check(&row.path, Path::metadata) {
        Err(error) if is_gone(&error) => PathState::Gone,
        Ok(metadata) if metadata.is_file() && stamp_of(&metadata) == *known => {
            PathState::Present(Vec::new())
        }
        _ => PathState::Present(vec![WHOLE_ITEM]),
    })
}

/// Logs the offline paths, up to a limit: a disk may hold a hundred thousand of them.
fn warn_all_offline(catalog: &Catalog) {
    let mut offline = catalog.offline_items();
    offline
        .by_ref()
        .take(MAX_LOGGED)
        .for_each(|item| warn_offline(&item.path));
    match offline.count() {
        0 => {}
        more => tracing::warn!(more, "more shared paths are offline"),
    }
}
