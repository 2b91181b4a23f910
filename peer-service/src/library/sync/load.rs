//! Loads the library at start: reads it from the database and checks each file by `stat` alone, so
//! that a hundred thousand items load in about a second.
//!
//! Changed and offline items keep their number and are checked again in the background. Items that
//! are gone from the files folder are removed.

use std::{
    collections::{BTreeMap, HashMap},
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, SyncSender},
    },
    thread,
};

use potluck_core::{
    FileId, Root, Sha256,
    collection::{
        limits::MAX_MANIFEST_SIZE,
        manifest::{EntryContent, Manifest},
    },
    files,
    identity::{hash::hash_bytes, merkle::FileTree},
    model::{FileKind, FileRecord},
};

use crate::{
    fs::parallel::map_ranges,
    library::{
        LibraryShared,
        catalog::{Catalog, Delta, EntryIndex, ItemBody, Location, NewItem, SharedCollection, WHOLE_ITEM},
        hash::hasher::record_of,
        scan::{
            slow_path_warning::{PathProbe, SlowPathWarning},
            walk::{is_gone, stamp_of},
        },
        sync::offline::warn_offline,
    },
    store::{EntrySha256s, ItemRow, Members, RowBody, StoreError, StoredItem},
};

/// Rows read in one batch: enough to keep all threads busy with `stat`, few enough to need little
/// memory.
const LOADED_AT_ONCE: usize = 2048;

/// Rows, each with the state of its file; `None` for a collection.
type LoadedRows = Vec<(StoredItem, Option<ItemState>)>;

/// What `stat` says of a stored item.
enum ItemState {
    Gone,
    /// Unchanged, except for these entries.
    Same(Vec<EntryIndex>),
}

impl LibraryShared {
    /// Loads the catalog and announces its files. Replaces a damaged database with a new one.
    ///
    /// # Errors
    /// The database can be neither read nor replaced.
    pub(crate) fn load_or_begin_anew(&self) -> Result<(), StoreError> {
        match self.load() {
            Err(error) if error.is_damaged() => {
                // Nothing of what was read so far was announced.
                *self.catalog() = Catalog::default();
                self.store.replace_damaged(&error)?;
                self.load()
            }
            loaded => loaded,
        }
    }

    /// Loads the catalog and announces its files.
    fn load(&self) -> Result<(), StoreError> {
        let _writing = self.writing();
        let mut catalog = self.catalog();
        let mut delta = Delta::default();
        for path in self.store.tombstones()? {
            catalog.add_tombstone(path, None);
        }
        // One thread calls `stat` for the next rows while this one restores the previous ones.
        let (give, snapshot) = mpsc::sync_channel(0);
        let (slow_path_warning, (end, ended)) = (SlowPathWarning::default(), mpsc::channel());
        thread::scope(|scope| {
            let (slow_path_warning, _end) = (&slow_path_warning, end);
            scope.spawn(move || slow_path_warning.watch(&ended));
            let finding = scope.spawn(move || self.stat_all(slow_path_warning, give));
            let look = slow_path_warning.probe();
            for ((number, row, sha256s), standing) in snapshot.into_iter().flatten() {
                self.restore(&mut catalog, number, (row, standing), sha256s, &look, &mut delta);
            }
            finding.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        for (item, part) in self.store.damaged()? {
            catalog.restore_damaged(Location { item, entry: part }, &mut delta);
        }
        let settled = catalog.settle(delta);
        let stale = !catalog.stale_numbers().is_empty();
        warn_offline(&catalog);
        drop(catalog);
        self.store.apply(&settled.changes)?;
        self.notify(&settled);
        if stale {
            self.stale.notify_one();
        }
        self.sha256_needed.notify_one();
        Ok(())
    }

    /// Reads all stored items in batches and sends each with the state of its file.
    fn stat_all(
        &self,
        slow_path_warning: &SlowPathWarning,
        give: SyncSender<LoadedRows>,
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let items = self.store.items(after, LOADED_AT_ONCE)?;
            let Some((last, ..)) = items.last() else {
                return Ok(());
            };
            after = Some(*last);
            let standings = map_ranges(items.len(), self.hash_threads, |part| {
                let (rows, look) = (items[part].iter(), slow_path_warning.probe());
                rows.map(|(_, row, _)| state_of_file(row, &look)).collect()
            });
            if give.send(items.into_iter().zip(standings).collect()).is_err() {
                return Ok(());
            }
        }
    }

    /// Restores one item. `standing` is the state of a file; a collection is checked here, after
    /// its manifest is read.
    fn restore(
        &self,
        catalog: &mut Catalog,
        number: u64,
        (row, standing): (ItemRow, Option<ItemState>),
        sha256s: EntrySha256s,
        look: &PathProbe,
        delta: &mut Delta,
    ) {
        let path = row.path.clone();
        let mut sha256s: BTreeMap<EntryIndex, Sha256> = sha256s.into_iter().collect();
        let remembered = match &row.body {
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
            RowBody::Collection(members) => self.read_folder(&row.id, members),
        };
        // The id is verified although the row comes from this peer's own database.
        let Some((record, body)) = remembered.filter(|(record, _)| record.id == row.id) else {
            let record = FileRecord {
                id: row.id,
                size: 0,
                root: Root([0; 32]),
                sha256: None,
                kind: FileKind::File,
            };
            let body = match row.body {
                RowBody::File(stamp) => ItemBody::File(stamp),
                RowBody::Collection(_) => ItemBody::Collection(Arc::default()),
            };
            return catalog.put_stale(number, (path, row.downloaded, row.label), record, body);
        };
        let standing = standing.unwrap_or_else(|| self.state_of_folder(&path, &body, look));
        let item = NewItem {
            path: path.clone(),
            downloaded: row.downloaded,
            label: row.label,
            record,
            body,
            sha256s,
            layers: HashMap::new(),
        };
        catalog.insert(number, item, delta);
        match standing {
            ItemState::Gone if self.survives_offline(&path, row.downloaded) => {
                _ = catalog.set_offline(number, delta)
            }
            ItemState::Gone => {
                tracing::info!(path = %path.display(), "no longer there: no longer shared");
                catalog.remove(number, delta);
            }
            ItemState::Same(changed) => {
                for part in changed {
                    catalog.invalidate(
                        Location {
                            item: number,
                            entry: part,
                        },
                        delta,
                    );
                }
            }
        }
    }

    fn state_of_folder(&self, path: &Arc<Path>, body: &ItemBody, look: &PathProbe) -> ItemState {
        match (look.at(path, Path::metadata), body) {
            (Err(error), _) if is_gone(&error) => ItemState::Gone,
            (_, ItemBody::Collection(folder)) => {
                ItemState::Same(changed_entries(path, folder, self.hash_threads))
            }
            (_, ItemBody::File(_)) => ItemState::Same(vec![WHOLE_ITEM]),
        }
    }

    /// Reads a collection's manifest. `None` if it is damaged or does not fit the stored members.
    fn read_folder(&self, id: &FileId, members: &Arc<Members>) -> Option<(FileRecord, ItemBody)> {
        let path = self.manifest_path(id);
        let bytes = files::read_own(&path, MAX_MANIFEST_SIZE).ok()?;
        let record = record_of(&hash_bytes(&bytes), FileKind::Collection);
        if record.id != *id {
            tracing::warn!(%id, "a collection's manifest is damaged: its folder is hashed again");
            return None;
        }
        let manifest = Arc::new(Manifest::decode(bytes).ok()?);
        let folder = SharedCollection::new(manifest, members.clone());
        folder
            .ids_match_roots()
            .then(|| (record, ItemBody::Collection(Arc::new(folder))))
    }
}

/// What `stat` says of a file; `None` for a collection.
fn state_of_file(row: &ItemRow, look: &PathProbe) -> Option<ItemState> {
    let RowBody::File(known) = &row.body else {
        return None;
    };
    Some(match look.at(&row.path, Path::metadata) {
        Err(error) if is_gone(&error) => ItemState::Gone,
        Ok(metadata) if metadata.is_file() && stamp_of(&metadata) == *known => ItemState::Same(Vec::new()),
        _ => ItemState::Same(vec![WHOLE_ITEM]),
    })
}

/// The entries of a collection whose files changed. Calls `stat` on this number of threads, because
/// it takes most of the time at start.
pub(crate) fn changed_entries(root: &Path, folder: &SharedCollection, threads: usize) -> Vec<EntryIndex> {
    let stamps = &folder.members.stamps;
    let is_changed = |entry: u32| {
        let known = stamps.get(entry as usize);
        let there = folder.manifest.get(entry);
        let (Some(known), Some(there)) = (known, there) else {
            return false;
        };
        let stamp = || root.join(there.path.as_str()).symlink_metadata().ok();
        matches!(there.content, EntryContent::File { .. })
            && stamp().map(|metadata| stamp_of(&metadata)) != Some(*known)
    };
    map_ranges(stamps.len(), threads, |part| {
        let entries = part.filter_map(|entry| u32::try_from(entry).ok());
        entries.filter(|&entry| is_changed(entry)).collect()
    })
}
