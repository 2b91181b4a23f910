//! Builds an item from a path: calls `stat`, hashes new files, makes the manifest.
//!
//! A folder is shared whole or not at all. If it contains anything that cannot be shared, it is
//! refused, and every problem is reported, up to a limit. A collection that silently lacks a file
//! would be worse than none.
//!
//! Invariant: a file whose path and stamp are in the catalog is not hashed again.
//!
//! Non-goals: storing and announcing the item, which [`CatalogStore::put_items`] does.
//!
//! Blocks: run it off the async threads.

use std::{path::Path, sync::Arc};

use potluck_core::{
    Problem, Reason,
    collection::{manifest::Manifest, path::Label},
    identity::hash::hash_bytes,
    model::FileKind,
};

use crate::{
    catalog::{
        item::{Item, ItemBody, NewItem, SharedCollection},
        record::record_of,
        row::Members,
        stamp::{Stamp, stamp_of},
    },
    library::{
        catalog_store::{CatalogStore, PutCause},
        hash::{
            entry_hashes::EntryHashes,
            folder::hash_snapshot,
            hasher::{HashedFile, hash_one},
            observer::HashObserver,
        },
        problems::{Refused, not_a_regular_file, share_cancelled, single_refusal, unreadable},
        scan::{
            snapshot::{Snapshot, is_same},
            walk::walk,
        },
    },
};

/// How many times an item is built again because files that it relied on were unshared meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// Builds items, and reuses what the catalog knows.
#[derive(Debug)]
pub(crate) struct ItemBuilder {
    catalog: Arc<CatalogStore>,
    hash_threads: usize,
}

impl ItemBuilder {
    pub(crate) const fn new(catalog: Arc<CatalogStore>, hash_threads: usize) -> Self {
        Self {
            catalog,
            hash_threads,
        }
    }

    /// Number of threads for hashing and `stat`.
    pub(crate) const fn hash_threads(&self) -> usize {
        self.hash_threads
    }

    /// Builds the item at a resolved path and puts it into the library.
    ///
    /// # Errors
    /// Every problem that prevents sharing it.
    pub(crate) fn build_and_put(
        &self,
        path: &Path,
        cause: PutCause,
        observer: &HashObserver<'_>,
    ) -> Result<Item, Vec<Refused>> {
        let mut last = None;
        for _ in 0..MAX_ATTEMPTS {
            let item = self.build(path, observer)?;
            if let Some(result) = self.catalog.put_items(vec![item], cause).pop() {
                match result {
                    Ok(item) => return Ok(item),
                    Err(problem) if problem.reason == Reason::Busy => last = Some(problem),
                    Err(problem) => return Err(single_refusal(path, problem)),
                }
            }
        }
        Err(single_refusal(path, last.unwrap_or_else(share_cancelled)))
    }

    /// Builds the item at a resolved path.
    ///
    /// # Errors
    /// Every problem that prevents sharing it.
    pub(crate) fn build(
        &self,
        path: &Path,
        observer: &HashObserver<'_>,
    ) -> Result<NewItem, Vec<Refused>> {
        let refuse = |problem| single_refusal(path, problem);
        let metadata = path.metadata().map_err(|error| refuse(unreadable(&error)))?;
        self.check_location(path).map_err(refuse)?;
        if metadata.is_dir() {
            let mut snapshot = walk(path, self.hash_threads)?;
            let is_shared = self.catalog.read().folder_at(path).is_some();
            match is_shared {
                // The stamps show whether it is unchanged.
                true => snapshot.stat_all(path, self.hash_threads)?,
                false => snapshot.stat_if_many(path, self.hash_threads)?,
            }
            self.build_collection(path, &snapshot, observer)
        } else if metadata.is_file() {
            let size = metadata.len();
            (observer.on_size)(size);
            if let Some(item) = self.reuse_file(path, &stamp_of(&metadata)) {
                (observer.on_progress)(&|| path.to_owned(), size);
                return Ok(item);
            }
            let hashed = hash_one(
                path,
                self.hash_threads,
                observer.on_progress,
                observer.is_cancelled,
            );
            hashed.map(|hashed| file_item(path, hashed)).map_err(refuse)
        } else {
            Err(refuse(not_a_regular_file(metadata.file_type())))
        }
    }

    /// Refuses a path without a usable name, and one that would expose the peer's own state.
    pub(crate) fn check_location(&self, path: &Path) -> Result<(), Problem> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            Problem::new(
                Reason::InvalidName,
                "it has no name in UTF-8: rename it, or share its content",
            )
        })?;
        Label::parse(name).map_err(|error| {
            Problem::new(Reason::InvalidName, format!("{error}: rename it to share it"))
        })?;
        let real = path.canonicalize().map_err(|error| unreadable(&error))?;
        let state = self.catalog.store().folder();
        if real.starts_with(state) || state.starts_with(&real) {
            return Err(Problem::new(
                Reason::UnsafePath,
                "it contains the peer's own state and its secret token: share other paths instead",
            ));
        }
        Ok(())
    }

    /// The item of a file that was hashed with this stamp before.
    fn reuse_file(&self, path: &Path, stamp: &Stamp) -> Option<NewItem> {
        let record = self.catalog.read().known_file(path, stamp)?;
        Some(NewItem::new(path, record, ItemBody::File(*stamp)))
    }

    /// Builds the collection of a folder.
    pub(crate) fn build_collection(
        &self,
        root: &Path,
        snapshot: &Snapshot,
        observer: &HashObserver<'_>,
    ) -> Result<NewItem, Vec<Refused>> {
        (observer.on_size)(snapshot.size());
        if let Some(item) = self.reuse_folder(root, snapshot) {
            (observer.on_progress)(&|| root.to_owned(), snapshot.size());
            return Ok(item);
        }
        let known = |path: &Path, stamp: &Stamp| self.catalog.read().known_file(path, stamp);
        let may_know = self.catalog.read().may_know(root, snapshot.len());
        let known = may_know.then_some(&known as _);
        let hashed = hash_snapshot(root, snapshot, known, self.hash_threads, observer)?;
        // The manifest is in the order of `snapshot`, as are the stamps.
        let manifest = hashed.manifest(root, snapshot)?;
        let stamps = snapshot.all_stamps();
        self.collection_item(root, Arc::new(manifest), stamps, hashed.hashes)
            .map_err(|problem| single_refusal(root, problem))
    }

    /// The item of a folder that is already shared and unchanged.
    fn reuse_folder(&self, root: &Path, snapshot: &Snapshot) -> Option<NewItem> {
        let (record, folder) = {
            let catalog = self.catalog.read();
            let (record, folder) = catalog.folder_at(root)?;
            (record, folder.clone())
        };
        is_same(snapshot, &folder.manifest, &folder.members.stamps)
            .then(|| NewItem::new(root, record, ItemBody::Collection(folder)))
    }

    /// The item of a manifest. Writes the manifest to disk.
    pub(crate) fn collection_item(
        &self,
        root: &Path,
        manifest: Arc<Manifest>,
        stamps: Vec<Stamp>,
        hashes: EntryHashes,
    ) -> Result<NewItem, Problem> {
        let tree = hash_bytes(manifest.bytes());
        let record = record_of(&tree, FileKind::Collection);
        self.catalog.manifests().ensure(&record.id, &manifest)?;
        let EntryHashes {
            roots,
            mut layers,
            sha256s,
        } = hashes;
        if !tree.piece_hashes.is_empty() {
            layers.insert(record.id, tree.piece_hashes.into());
        }
        let folder = SharedCollection::new(manifest, Members { stamps, roots });
        Ok(NewItem {
            sha256s,
            layers,
            ..NewItem::new(root, record, ItemBody::Collection(Arc::new(folder)))
        })
    }
}

/// The item of a hashed file.
pub(crate) fn file_item(path: &Path, hashed: HashedFile) -> NewItem {
    let record = record_of(&hashed.tree, FileKind::File);
    let layer = hashed.tree.piece_hashes;
    let layers = (!layer.is_empty()).then(|| (record.id, layer.into()));
    NewItem {
        layers: layers.into_iter().collect(),
        ..NewItem::new(path, record, ItemBody::File(hashed.stamp))
    }
}
