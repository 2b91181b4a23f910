//! The library as it was before the last stop: read from the database, checked by `stat` alone, so that a hundred thousand
//! shares are there in about a second.
//!
//! What is gone is dropped; what changed keeps its place and is looked at again in the background.

use std::{collections::HashMap, io, path::Path, sync::Arc};

use potluck_core::{
    FileId, Root,
    hash::hash_bytes,
    index_client::{FileRecord, Kind},
    manifest::{MAX_MANIFEST_SIZE, Manifest},
    plan::Plan,
};

use super::{
    Inner,
    catalog::{Body, Catalog, Delta, Folder, NewItem},
    walk::stamp_of,
};
use crate::store::{Change, ItemRow, Stamp, Stamps, StoreError};

/// Where a remembered item stands.
enum Standing {
    Gone,
    Changed,
    /// But for these entries of a collection.
    Same(Vec<u32>),
}

impl Inner {
    /// Fills the catalog and the holdings.
    pub(super) fn load(&self) -> Result<(), StoreError> {
        let loaded = self.store.load()?;
        let _writing = self.writing();
        let mut catalog = self.catalog();
        let mut delta = Delta::default();
        for path in loaded.hidden {
            catalog.hide(path, None);
        }
        for record in loaded.records {
            catalog.remember(record, &mut delta);
        }
        let mut changes = Vec::new();
        for (number, row) in loaded.items {
            match self.restore(&mut catalog, number, row, &mut delta) {
                Standing::Gone => changes.push(Change::RemoveItem(number)),
                Standing::Changed | Standing::Same(_) => {}
            }
        }
        let settled = catalog.settle(delta);
        let stale = !catalog.stale().is_empty();
        drop(catalog);
        // Items are there as they are remembered; only what nothing holds any more has to go.
        let dropped = settled
            .changes
            .into_iter()
            .filter(|change| matches!(change, Change::RemoveFile(_)));
        changes.extend(dropped);
        self.store.apply(&changes)?;
        self.holdings.put(settled.put);
        if stale {
            self.stale.notify_one();
        }
        self.unsummed.notify_one();
        Ok(())
    }

    fn restore(&self, catalog: &mut Catalog, number: u64, row: ItemRow, delta: &mut Delta) -> Standing {
        let path: Arc<Path> = row.path.into();
        let record = catalog.remembered(&row.id);
        let (standing, body) = match row.stamps {
            Stamps::File(stamp) => (standing_of_file(&path, &stamp), Body::File(stamp)),
            Stamps::Collection(stamps) => {
                let folder = self.read_folder(&row.id, stamps, catalog);
                match path.metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        (Standing::Gone, Body::File(Stamp::default()))
                    }
                    _ => match folder {
                        Some(folder) => {
                            let changed = changed_entries(&path, &folder);
                            (Standing::Same(changed), Body::Collection(Arc::new(folder)))
                        }
                        None => (Standing::Changed, Body::Collection(Arc::new(empty_folder()))),
                    },
                }
            }
        };
        match (standing, record) {
            (Standing::Gone, _) => {
                tracing::info!(path = %path.display(), "no longer there: no longer shared");
                Standing::Gone
            }
            (Standing::Same(changed), Some(record)) => {
                let hashed = HashMap::new();
                let item = NewItem {
                    path,
                    record,
                    body,
                    hashed,
                };
                catalog.restore(number, item, &changed, delta);
                Standing::Same(changed)
            }
            _ => {
                let record = record.unwrap_or(FileRecord {
                    id: row.id,
                    size: 0,
                    root: Root([0; 32]),
                    sha256: None,
                    kind: if matches!(body, Body::File(_)) {
                        Kind::File
                    } else {
                        Kind::Collection
                    },
                });
                catalog.put_stale(number, path, record, body);
                Standing::Changed
            }
        }
    }

    /// The manifest of a collection with its stamps, if the blob is whole and every file of it known.
    fn read_folder(&self, id: &FileId, stamps: Vec<Stamp>, catalog: &Catalog) -> Option<Folder> {
        let path = self.manifest_path(id);
        if path.metadata().ok()?.len() > MAX_MANIFEST_SIZE {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        if hash_bytes(&bytes).id() != *id {
            tracing::warn!(%id, "a collection's manifest is damaged: its folder is hashed again");
            return None;
        }
        let manifest = Arc::new(Manifest::decode(&bytes).ok()?);
        let units = Plan::collection(&manifest).unit_count();
        let folder = Folder {
            manifest,
            stamps,
            units,
        };
        let whole = folder.stamps.len() == folder.manifest.entries.len();
        (whole && folder.files().all(|(_, id)| catalog.remembered(&id).is_some())).then_some(folder)
    }
}

fn empty_folder() -> Folder {
    Folder {
        manifest: Arc::default(),
        stamps: Vec::new(),
        units: 0,
    }
}

fn standing_of_file(path: &Path, known: &Stamp) -> Standing {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && stamp_of(&metadata) == *known => Standing::Same(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Gone,
        _ => Standing::Changed,
    }
}

/// Entries of a collection whose files are not what they were.
pub(super) fn changed_entries(root: &Path, folder: &Folder) -> Vec<u32> {
    let entries = &folder.manifest.entries;
    let files = folder.files().map(|(entry, _)| entry);
    files
        .filter(|&entry| {
            let path = root.join(entries[entry as usize].path.as_str());
            let stamp = path.symlink_metadata().ok().map(|metadata| stamp_of(&metadata));
            stamp != Some(folder.stamps[entry as usize])
        })
        .collect()
}
