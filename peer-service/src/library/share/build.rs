//! Builds an item from a path: `stat`, hash what is not known, make the manifest, add the item to
//! the library.
//!
//! A folder is shared whole or not at all. If it holds anything that cannot be shared, it is
//! refused, and every problem is reported, up to a limit. A collection that silently lacks a file
//! would be worse than none.
//!
//! Blocks: run it off the async threads.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Problem, Reason,
    collection::{
        manifest::{EntryContent, Manifest},
        path::Label,
    },
    identity::hash::hash_bytes,
    model::FileKind,
    problem::RAISE_OPEN_FILES,
};

use crate::{
    library::{
        Item, LibraryShared,
        catalog::{Catalog, Delta, ItemBody, NewItem, SharedCollection},
        hash::{
            entry_hashes::EntryHashes,
            folder::{hash_snapshot, stopped},
            hasher::{HashedFile, IsCancelled, OnProgress, hash_one, record_of},
        },
        scan::{
            snapshot::{Snapshot, is_same},
            walk::{Refused, is_gone, not_a_regular_file, stamp_of, unreadable, walk},
        },
    },
    store::{Members, Stamp, StoreError},
};

/// Bytes of a manifest file compared in one step.
const COMPARED_AT_ONCE: usize = 256 * 1024;

/// How many times an item is built again because files that it relied on were unshared meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// The callbacks of a share.
pub(crate) struct ShareObserver<'a> {
    /// Receives sizes of files, in bytes, before they are hashed or found to be known.
    pub(crate) on_size: &'a (dyn Fn(u64) + Sync),
    /// Receives the bytes done of a file.
    pub(crate) on_progress: &'a OnProgress<'a>,
    /// Whether to stop.
    pub(crate) is_cancelled: &'a IsCancelled<'a>,
}

/// Why an item is put. Hashing takes a while, and its owner may unshare the path meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ShareCause {
    /// Its owner requested it.
    Requested,
    /// The item with this number changed: put it if it is still at the path.
    Changed(u64),
    /// It is in the files folder: put it unless its owner unshared it.
    DroppedIn,
}

impl ShareCause {
    fn holds(self, catalog: &Catalog, path: &Path) -> bool {
        match self {
            Self::Requested => true,
            Self::Changed(number) => catalog.item_at(path) == Some(number),
            Self::DroppedIn => !catalog.is_tombstoned(path),
        }
    }
}

/// The path of an item: absolute, with links in its parent folders resolved. The last part is not
/// resolved, so that a link keeps its name.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Problem> {
    let absolute = std::path::absolute(path).map_err(|error| unreadable(&error))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent
            .canonicalize()
            .map_err(|error| unreadable(&error))?
            .join(name)),
        // The path ends in `..` or is the root.
        _ => absolute.canonicalize().map_err(|error| unreadable(&error)),
    }
}

fn single_refusal(path: &Path, problem: Problem) -> Vec<Refused> {
    vec![(path.to_owned(), problem)]
}

impl LibraryShared {
    /// Builds the item at a resolved path.
    ///
    /// # Errors
    /// Everything that keeps it from being shared.
    pub(crate) fn build_item(&self, path: &Path, watch: &ShareObserver<'_>) -> Result<NewItem, Vec<Refused>> {
        let refuse = |problem| single_refusal(path, problem);
        let metadata = path.metadata().map_err(|error| refuse(unreadable(&error)))?;
        self.check_location(path).map_err(refuse)?;
        if metadata.is_dir() {
            let mut snapshot = walk(path, self.hash_threads)?;
            match self.catalog().folder_at(path).is_some() {
                // It may be unchanged, which the stamps show.
                true => snapshot.stat_all(path, self.hash_threads)?,
                false => snapshot.stat_if_many(path, self.hash_threads)?,
            }
            self.build_collection(path, &snapshot, watch)
        } else if metadata.is_file() {
            let size = metadata.len();
            (watch.on_size)(size);
            if let Some(item) = self.reuse_file(path, &stamp_of(&metadata)) {
                (watch.on_progress)(&|| path.to_owned(), size);
                return Ok(item);
            }
            let done =
                hash_one(path, self.hash_threads, watch.on_progress, watch.is_cancelled).map_err(refuse)?;
            Ok(file_item(path, done))
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
                "it has no name in UTF-8: rename it, or share what is in it",
            )
        })?;
        Label::parse(name)
            .map_err(|error| Problem::new(Reason::InvalidName, format!("{error}: rename it to share it")))?;
        let real = path.canonicalize().map_err(|error| unreadable(&error))?;
        let state = self.store.folder();
        if real.starts_with(state) || state.starts_with(&real) {
            return Err(Problem::new(
                Reason::UnsafePath,
                "it holds the peer's own state, its secret among it: share what else is in it",
            ));
        }
        Ok(())
    }

    /// The item of a file that was hashed with this stamp before.
    fn reuse_file(&self, path: &Path, stamp: &Stamp) -> Option<NewItem> {
        let record = self.catalog().known_file(path, stamp)?;
        Some(NewItem {
            path: path.into(),
            downloaded: false,
            label: None,
            record,
            body: ItemBody::File(*stamp),
            sha256s: BTreeMap::new(),
            layers: HashMap::new(),
        })
    }

    /// Builds the collection of a folder.
    pub(crate) fn build_collection(
        &self,
        root: &Path,
        snapshot: &Snapshot,
        watch: &ShareObserver<'_>,
    ) -> Result<NewItem, Vec<Refused>> {
        (watch.on_size)(snapshot.size());
        if let Some(item) = self.reuse_folder(root, snapshot) {
            (watch.on_progress)(&|| root.to_owned(), snapshot.size());
            return Ok(item);
        }
        let known = |path: &Path, stamp: &Stamp| self.catalog().known_file(path, stamp);
        let known = self
            .catalog()
            .may_know(root, snapshot.len())
            .then_some(&known as _);
        let hashed = hash_snapshot(root, snapshot, known, self.hash_threads, watch)?;
        // The manifest is in the order of `snapshot`, as are the stamps.
        let manifest = hashed.manifest(root, snapshot)?;
        self.collection_item(root, Arc::new(manifest), snapshot.all_stamps(), hashed.hashes)
            .map_err(|problem| single_refusal(root, problem))
    }

    /// The item of a folder that is already shared and unchanged.
    fn reuse_folder(&self, root: &Path, snapshot: &Snapshot) -> Option<NewItem> {
        let (record, folder) = {
            let catalog = self.catalog();
            let (record, folder) = catalog.folder_at(root)?;
            (record, folder.clone())
        };
        is_same(snapshot, &folder.manifest, &folder.members.stamps).then(|| NewItem {
            path: root.into(),
            downloaded: false,
            label: None,
            record,
            body: ItemBody::Collection(folder),
            sha256s: BTreeMap::new(),
            layers: HashMap::new(),
        })
    }

    /// The item of a manifest. Writes the manifest to disk.
    pub(crate) fn collection_item(
        &self,
        root: &Path,
        manifest: Arc<Manifest>,
        stamps: Vec<Stamp>,
        hashes: EntryHashes,
    ) -> Result<NewItem, Problem> {
        let bytes = manifest.bytes();
        let tree = hash_bytes(bytes);
        let record = record_of(&tree, FileKind::Collection);
        let EntryHashes {
            roots,
            mut layers,
            sha256s,
        } = hashes;
        if !tree.piece_hashes.is_empty() {
            layers.insert(record.id, tree.piece_hashes.into());
        }
        let folder = SharedCollection::new(manifest, Members { stamps, roots });
        let item = NewItem {
            path: root.into(),
            downloaded: false,
            label: None,
            record,
            body: ItemBody::Collection(Arc::new(folder)),
            sha256s,
            layers,
        };
        self.write_manifest(&item).map(|()| item)
    }

    /// Writes a collection's manifest if it is missing: the last collection that had the same one
    /// may have been unshared.
    fn write_manifest(&self, item: &NewItem) -> Result<(), Problem> {
        let ItemBody::Collection(folder) = &item.body else {
            return Ok(());
        };
        let path = self.manifest_path(&item.record.id);
        let _alone = self.manifest.lock();
        if open_manifest(&path, &folder.manifest).is_some() {
            return Ok(());
        }
        crate::home::write_durably(&path, folder.manifest.bytes(), 0o600)
            .map_err(|error| self.not_written(&error))
    }

    /// Opens the stored manifest of a collection. Writes a missing or damaged one again from
    /// memory, where it was verified against its id.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`: it can be neither read nor written.
    pub(crate) fn manifest_file(&self, id: &FileId, manifest: &Manifest) -> Result<File, Problem> {
        let path = self.manifest_path(id);
        if let Some(file) = open_manifest(&path, manifest) {
            return Ok(file);
        }
        let _alone = self.manifest.lock();
        let written = crate::home::write_durably(&path, manifest.bytes(), 0o600);
        match written.map(|()| open_manifest(&path, manifest)) {
            Ok(Some(file)) => {
                tracing::warn!(%id, "the manifest of a collection was missing or damaged: it is written again");
                Ok(file)
            }
            Ok(None) => Err(manifest_unreadable(id, "what was written cannot be read back")),
            Err(error) => Err(manifest_unreadable(id, &error)),
        }
    }

    pub(crate) fn not_written(&self, error: &io::Error) -> Problem {
        let folder = self.store.folder().display();
        match Reason::of_exhaustion(error) {
            Some(Reason::DiskFull) => Problem::new(
                Reason::DiskFull,
                format!("it is not shared: no room in {folder}; make room and share it again"),
            ),
            Some(reason) => Problem::new(reason, format!("cannot write in {folder}: {RAISE_OPEN_FILES}")),
            None => Problem::new(
                Reason::StoreUnavailable,
                format!("cannot write in {folder}: {error}"),
            ),
        }
    }

    /// Builds the item at a path and puts it into the library.
    ///
    /// # Errors
    /// Everything that keeps it from being shared.
    pub(crate) fn share_path(
        &self,
        path: &Path,
        cause: ShareCause,
        watch: &ShareObserver<'_>,
    ) -> Result<Item, Vec<Refused>> {
        let mut last = None;
        for _ in 0..MAX_ATTEMPTS {
            let item = self.build_item(path, watch)?;
            if let Some(result) = self.put_items(vec![item], cause).pop() {
                match result {
                    Ok(item) => return Ok(item),
                    Err(problem) if problem.reason == Reason::Busy => last = Some(problem),
                    Err(problem) => return Err(single_refusal(path, problem)),
                }
            }
        }
        Err(single_refusal(path, last.unwrap_or_else(stopped)))
    }

    /// Puts items in one batch; one result for each.
    ///
    /// # Errors
    /// - `BUSY`: files that the item relied on were unshared; build it again.
    /// - `CANCELLED`: the cause no longer holds.
    /// - Otherwise the reason why the item cannot be stored.
    pub(crate) fn put_items(&self, items: Vec<NewItem>, cause: ShareCause) -> Vec<Result<Item, Problem>> {
        let _writing = self.writing();
        let written: Vec<_> = items.iter().map(|item| self.write_manifest(item)).collect();
        let mut delta = Delta::default();
        let mut catalog = self.catalog();
        let mut put = Vec::with_capacity(items.len());
        for (mut item, written) in items.into_iter().zip(written) {
            // Only a request turns a download into a shared item.
            item.downloaded |= !matches!(cause, ShareCause::Requested);
            put.push(match written {
                Err(problem) => Err(problem),
                Ok(()) if !cause.holds(&catalog, &item.path) => {
                    let path = item.path.display();
                    Err(Problem::new(
                        Reason::Cancelled,
                        format!("{path} was unshared meanwhile"),
                    ))
                }
                Ok(()) if catalog.lacks_layer(&item) => Err(Problem::new(
                    Reason::Busy,
                    "what it shares files with was unshared meanwhile",
                )),
                Ok(()) => {
                    let number = catalog.put(item, &mut delta);
                    Ok(catalog.item(number).expect("was put just now").to_item())
                }
            });
        }
        drop(catalog);
        let stored = self.publish(delta).map_err(|error| not_remembered(&error));
        put.into_iter()
            .map(|item| item.and_then(|item| stored.clone().map(|()| item)))
            .collect()
    }
}

/// Opens a manifest file if it holds exactly this manifest.
fn open_manifest(path: &Path, manifest: &Manifest) -> Option<File> {
    let mut file = File::open(path).ok()?;
    let mut rest = &manifest.bytes()[..];
    let mut reader = BufReader::with_capacity(COMPARED_AT_ONCE, &file);
    loop {
        let read = reader.fill_buf().ok()?;
        if read.is_empty() {
            break;
        }
        rest = rest.strip_prefix(read)?;
        let len = read.len();
        reader.consume(len);
    }
    file.rewind().ok()?;
    rest.is_empty().then_some(file)
}

fn manifest_unreadable(id: &FileId, why: impl std::fmt::Display) -> Problem {
    tracing::warn!(%id, %why, "the manifest of a collection cannot be read");
    Problem::new(
        Reason::StoreUnavailable,
        "the list of the collection's files cannot be read now",
    )
}

/// The problem with an item that is shared but could not be stored.
fn not_remembered(error: &StoreError) -> Problem {
    let until = "it is shared only until the peer stops";
    match error.exhaustion() {
        Some(Reason::DiskFull) => Problem::new(
            Reason::DiskFull,
            format!("{until}: the disk of its home is full; make room and share it again"),
        ),
        Some(reason) => Problem::new(reason, format!("{until}: {RAISE_OPEN_FILES}, and share it again")),
        None => Problem::new(
            Reason::StoreUnavailable,
            format!("{until}: it could not be stored; see the peer's log"),
        ),
    }
}

/// The item of a hashed file.
pub(crate) fn file_item(path: &Path, done: HashedFile) -> NewItem {
    let record = record_of(&done.tree, FileKind::File);
    let layer = done.tree.piece_hashes;
    let layers = (!layer.is_empty()).then(|| (record.id, layer.into()));
    NewItem {
        path: path.into(),
        downloaded: false,
        label: None,
        record,
        body: ItemBody::File(done.stamp),
        sha256s: BTreeMap::new(),
        layers: layers.into_iter().collect(),
    }
}

/// The current stamps of a manifest's files. Blocks.
///
/// # Errors
/// - `FILE_CHANGED`, with the first path: it is gone, not a regular file, or of another size.
/// - `TARGET_NOT_WRITABLE`, with the system's message: `stat` fails for another reason.
pub fn stamps_at(root: &Path, manifest: &Manifest) -> Result<Vec<Stamp>, Problem> {
    let stamps = manifest.entries().map(|entry| {
        let EntryContent::File { size, .. } = entry.content else {
            return Ok(Stamp::default());
        };
        let (path, shown) = (entry.path, root.display());
        let there = match root.join(path.as_str()).symlink_metadata() {
            Err(error) if !is_gone(&error) => {
                return Err(Problem::new(
                    Reason::TargetNotWritable,
                    format!("`{path}` in {shown} cannot be looked at: {error}"),
                ));
            }
            there => there.ok().filter(std::fs::Metadata::is_file),
        };
        there
            .map(|metadata| stamp_of(&metadata))
            .filter(|stamp| stamp.size == size)
            .ok_or_else(|| {
                Problem::new(
                    Reason::FileChanged,
                    format!("`{path}` in {shown} is not what was fetched any more"),
                )
            })
    });
    stamps.collect()
}
