//! Builds an item from a path: calls `stat`, hashes new files, makes the manifest.
//!
//! Entries of a folder that cannot be shared are left out and reported, or refuse the folder if its
//! [`ShareOptions`] are strict. A file that changes while it is read, or that the disk cannot read,
//! always refuses it: a collection that silently lacks a file would be worse than none.
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
        item::{Item, ItemBody, NewItem, SharedCollection, SharedItem},
        record::record_of,
        row::Members,
        share_options::ShareOptions,
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
            omissions::Omissions,
            rules::WalkRules,
            snapshot::{Snapshot, is_same},
            walk::walk,
        },
    },
};

/// How many times an item is built again because files that it relied on were unshared meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// An item to put into the catalog, and what is left out of it.
#[derive(Debug)]
pub(crate) struct BuiltItem {
    pub(crate) item: NewItem,
    pub(crate) omitted: Omissions,
}

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

    /// How the item at a path is shared; the defaults if there is none.
    pub(crate) fn options_of(&self, path: &Path) -> ShareOptions {
        let catalog = self.catalog.read();
        let item = catalog.item_at(path).and_then(|number| catalog.item(number));
        item.map(SharedItem::options).unwrap_or_default()
    }

    /// Walks the folder at a path as its item is shared, and calls `stat` on all its files.
    ///
    /// # Errors
    /// As [`walk`].
    pub(crate) fn walk_and_stat(&self, path: &Path) -> Result<Snapshot, Vec<Refused>> {
        let rules = self.rules(&self.options_of(path));
        let rules = rules.map_err(|problem| single_refusal(path, problem))?;
        let mut snapshot = walk(path, &rules, self.hash_threads)?;
        snapshot.stat_all(path, self.hash_threads)?;
        Ok(snapshot)
    }

    /// The rules of a walk with these options.
    ///
    /// # Errors
    /// As [`WalkRules::new`].
    pub(crate) fn rules(&self, options: &ShareOptions) -> Result<WalkRules, Problem> {
        WalkRules::new(options, Some(self.catalog.store().folder()))
    }

    /// Builds the item at a resolved path and puts it into the library. Without options, those of
    /// the item at the path apply.
    ///
    /// # Errors
    /// Every problem that prevents sharing it.
    pub(crate) fn build_and_put(
        &self,
        path: &Path,
        options: Option<&ShareOptions>,
        cause: PutCause,
        observer: &HashObserver<'_>,
    ) -> Result<(Item, Omissions), Vec<Refused>> {
        let mut last = None;
        for _ in 0..MAX_ATTEMPTS {
            let options = options.cloned().unwrap_or_else(|| self.options_of(path));
            let BuiltItem { item, omitted } = self.build(path, &options, observer)?;
            if let Some(result) = self.catalog.put_items(vec![item], cause).pop() {
                match result {
                    Ok(item) => return Ok((item, omitted)),
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
        options: &ShareOptions,
        observer: &HashObserver<'_>,
    ) -> Result<BuiltItem, Vec<Refused>> {
        let refuse = |problem| single_refusal(path, problem);
        let metadata = path.metadata().map_err(|error| refuse(unreadable(&error)))?;
        self.check_location(path).map_err(refuse)?;
        if metadata.is_dir() {
            let rules = self.rules(options).map_err(refuse)?;
            let mut snapshot = walk(path, &rules, self.hash_threads)?;
            let is_shared = self.catalog.read().folder_at(path).is_some();
            match is_shared {
                // The stamps show whether it is unchanged.
                true => snapshot.stat_all(path, self.hash_threads)?,
                false => snapshot.stat_if_many(path, self.hash_threads)?,
            }
            self.build_collection(path, options, snapshot, observer)
        } else if metadata.is_file() {
            let size = metadata.len();
            (observer.on_size)(size);
            if let Some(item) = self.reuse_file(path, &stamp_of(&metadata)) {
                (observer.on_progress)(&|| path.to_owned(), size);
                return Ok(whole(item));
            }
            let hashed = hash_one(
                path,
                self.hash_threads,
                observer.on_progress,
                observer.is_cancelled,
            );
            hashed
                .map(|hashed| whole(file_item(path, hashed)))
                .map_err(refuse)
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

    /// Builds the collection of a folder whose snapshot was made with these options.
    pub(crate) fn build_collection(
        &self,
        root: &Path,
        options: &ShareOptions,
        mut snapshot: Snapshot,
        observer: &HashObserver<'_>,
    ) -> Result<BuiltItem, Vec<Refused>> {
        let stored = (*options != ShareOptions::default()).then(|| Arc::new(options.clone()));
        let built = |item: NewItem, snapshot: Snapshot| BuiltItem {
            item: NewItem {
                options: stored.clone(),
                ..item
            },
            omitted: snapshot.omitted,
        };
        (observer.on_size)(snapshot.size());
        if let Some(item) = self.reuse_folder(root, &snapshot) {
            (observer.on_progress)(&|| root.to_owned(), snapshot.size());
            return Ok(built(item, snapshot));
        }
        let known = |path: &Path, stamp: &Stamp| self.catalog.read().known_file(path, stamp);
        let may_know = self.catalog.read().may_know(root, snapshot.len());
        let known = may_know.then_some(&known as _);
        let mut hashed = hash_snapshot(root, &snapshot, known, self.hash_threads, observer)?;
        if options.is_strict {
            hashed.refuse_lost(root, &snapshot)?;
        }
        hashed.leave_out_lost(root, &mut snapshot);
        // The manifest is in the order of `snapshot`, as are the stamps.
        let manifest = hashed.manifest(root, &snapshot)?;
        let stamps = snapshot.all_stamps();
        self.collection_item(root, Arc::new(manifest), stamps, hashed.hashes)
            .map(|item| built(item, snapshot))
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

/// An item that lacks nothing.
fn whole(item: NewItem) -> BuiltItem {
    BuiltItem {
        item,
        omitted: Omissions::default(),
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
