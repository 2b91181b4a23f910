//! The library as it was before the last stop: read from the database, checked by `stat` alone, so that a hundred thousand
//! shares are there in about a second.
//!
//! What is gone is dropped; what changed keeps its place and is looked at again in the background.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::Arc,
};

use potluck_core::{
    FileId, Root, Sha256,
    hash::hash_bytes,
    index_client::{FileRecord, Kind},
    manifest::{Content, MAX_MANIFEST_SIZE, Manifest},
    merkle::FileTree,
};

use super::{
    Inner,
    catalog::{Body, Catalog, Delta, Folder, NewItem, Part, Place, WHOLE},
    hasher::record_of,
    walk::stamp_of,
};
use crate::store::{ItemRow, Members, RowBody, Stamp, StoreError, Sums};

/// Where a remembered item stands.
enum Standing {
    Gone,
    /// But for these parts.
    Same(Vec<Part>),
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
        for (number, row, sums) in loaded.items {
            self.restore(&mut catalog, number, row, sums, &mut delta);
        }
        let settled = catalog.settle(delta);
        let stale = !catalog.stale().is_empty();
        drop(catalog);
        self.store.apply(&settled.changes)?;
        self.tell(&settled);
        if stale {
            self.stale.notify_one();
        }
        self.unsummed.notify_one();
        Ok(())
    }

    fn restore(&self, catalog: &mut Catalog, number: u64, row: ItemRow, sums: Sums, delta: &mut Delta) {
        let path = row.path.clone();
        let mut sums: BTreeMap<Part, Sha256> = sums.into_iter().collect();
        let remembered = match &row.body {
            RowBody::File(stamp) => {
                let tree = FileTree {
                    size: stamp.size,
                    root: row.root,
                    piece_hashes: Vec::new(),
                };
                let mut record = record_of(&tree, Kind::File);
                record.sha256 = record.sha256.or_else(|| sums.remove(&WHOLE));
                Some((record, Body::File(*stamp)))
            }
            RowBody::Collection(members) => self.read_folder(&row.id, members),
        };
        // What an id commits to is checked wherever it comes from.
        let Some((record, body)) = remembered.filter(|(record, _)| record.id == row.id) else {
            let record = FileRecord {
                id: row.id,
                size: 0,
                root: Root([0; 32]),
                sha256: None,
                kind: Kind::File,
            };
            let body = match row.body {
                RowBody::File(stamp) => Body::File(stamp),
                RowBody::Collection(_) => Body::Collection(Arc::default()),
            };
            return catalog.put_stale(number, path, record, body);
        };
        let standing = standing(&path, &body);
        let item = NewItem {
            path: path.clone(),
            record,
            body,
            sums,
            layers: HashMap::new(),
        };
        catalog.insert(number, item, delta);
        match standing {
            Standing::Gone => {
                tracing::info!(path = %path.display(), "no longer there: no longer shared");
                catalog.remove(number, delta);
            }
            Standing::Same(changed) => {
                for part in changed {
                    catalog.distrust(Place { item: number, part }, delta);
                }
            }
        }
    }

    /// The manifest of a collection with its members, if the blob is whole and fits them.
    fn read_folder(&self, id: &FileId, members: &Arc<Members>) -> Option<(FileRecord, Body)> {
        let path = self.manifest_path(id);
        if path.metadata().ok()?.len() > MAX_MANIFEST_SIZE {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        let record = record_of(&hash_bytes(&bytes), Kind::Collection);
        if record.id != *id {
            tracing::warn!(%id, "a collection's manifest is damaged: its folder is hashed again");
            return None;
        }
        let manifest = Arc::new(Manifest::decode(bytes).ok()?);
        let folder = Folder::new(manifest, members.clone());
        folder
            .fits()
            .then(|| (record, Body::Collection(Arc::new(folder))))
    }
}

fn standing(path: &Path, body: &Body) -> Standing {
    match (path.metadata(), body) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Standing::Gone,
        (metadata, Body::File(known)) => {
            let file = metadata.ok().filter(std::fs::Metadata::is_file);
            match file.is_some_and(|metadata| stamp_of(&metadata) == *known) {
                true => Standing::Same(Vec::new()),
                false => Standing::Same(vec![WHOLE]),
            }
        }
        (_, Body::Collection(folder)) => Standing::Same(changed_entries(path, folder)),
    }
}

/// Entries of a collection whose files are not what they were.
pub(super) fn changed_entries(root: &Path, folder: &Folder) -> Vec<Part> {
    let entries = (0..).zip(folder.manifest.entries()).zip(&folder.members.stamps);
    let changed = entries.filter(|((_, entry), known): &((Part, _), &Stamp)| {
        let is_file = matches!(entry.content, Content::File { .. });
        let stamp = || root.join(entry.path.as_str()).symlink_metadata().ok();
        is_file && stamp().map(|metadata| stamp_of(&metadata)) != Some(**known)
    });
    changed.map(|((entry, _), _)| entry).collect()
}
