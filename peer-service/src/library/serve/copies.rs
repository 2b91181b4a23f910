//! Finds and opens unchanged copies of a file.
//!
//! Invariant: a handle is returned, and the bytes read from it count, only while its `stat` equals
//! the one from when the file was hashed. A copy that changed is withdrawn as soon as this module
//! meets it.
//!
//! Blocks, except for [`CopyOpener::open_cached`] and [`CopyOpener::is_unchanged`].

use std::{fs::File, path::PathBuf, sync::Arc};

use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    collection::manifest::Manifest,
    identity::merkle::{self, Hash},
    model::FileRecord,
};

use crate::{
    catalog::{
        Catalog,
        item::{ItemBody, Location, SharedItem},
        row::EntryIndex,
        stamp::{Stamp, stamp_of},
    },
    library::{
        catalog_store::CatalogStore, hash::open::open_regular, problems::file_changed,
        reconcile::Reconciler,
    },
};

/// Opens copies, and withdraws those that changed.
#[derive(Debug)]
pub(crate) struct CopyOpener {
    catalog: Arc<CatalogStore>,
    reconciler: Arc<Reconciler>,
}

/// One copy of a file: its location, its path, and the expected `stat`.
#[derive(Debug)]
pub(crate) struct CopyCandidate {
    pub(crate) location: Location,
    /// The body of the item that has the copy.
    pub(crate) body: ItemBody,
    pub(crate) path: PathBuf,
    is_manifest: bool,
    pub(crate) expected: ExpectedStat,
}

/// The expected `stat` of a copy.
#[derive(Debug)]
pub(crate) enum ExpectedStat {
    Stamp(Stamp),
    /// A manifest file has no stamp in the database. While it is open, only its size is checked;
    /// its bytes are compared when it is opened.
    Size(u64),
}

impl ExpectedStat {
    fn of(item: &SharedItem, entry: EntryIndex) -> Option<Self> {
        match item.is_manifest(entry) {
            true => Some(Self::Size(item.record.size)),
            false => item.stamp(entry).map(Self::Stamp),
        }
    }

    pub(crate) fn matches(&self, stamp: &Stamp) -> bool {
        match self {
            Self::Stamp(expected) => expected == stamp,
            Self::Size(expected) => *expected == stamp.size,
        }
    }
}

impl CopyCandidate {
    /// The manifest, if this copy is a manifest.
    pub(crate) fn manifest(&self) -> Option<&Manifest> {
        match &self.body {
            ItemBody::Collection(folder) if self.is_manifest => Some(&folder.manifest),
            _ => None,
        }
    }

    /// Whether the file at the path still has the expected `stat`.
    fn is_unchanged(&self) -> bool {
        let now = self.path.metadata().ok().map(|metadata| stamp_of(&metadata));
        now.is_some_and(|now| self.expected.matches(&now))
    }
}

impl CopyOpener {
    pub(crate) const fn new(catalog: Arc<CatalogStore>, reconciler: Arc<Reconciler>) -> Self {
        Self { catalog, reconciler }
    }

    pub(crate) fn catalog(&self) -> &CatalogStore {
        &self.catalog
    }

    /// All trusted copies of a file.
    pub(crate) fn candidates(&self, id: &FileId) -> Vec<CopyCandidate> {
        let catalog = self.catalog.read();
        let locations = catalog.locations(id).into_iter();
        let candidates = locations.filter_map(|location| {
            let item = catalog.item(location.item)?;
            let is_manifest = item.is_manifest(location.entry);
            Some(CopyCandidate {
                location,
                body: item.body.clone(),
                path: match is_manifest {
                    true => self.catalog.manifests().path(id),
                    false => item.locate(location.entry)?,
                },
                is_manifest,
                expected: ExpectedStat::of(item, location.entry)?,
            })
        });
        candidates.collect()
    }

    /// Opens an unchanged copy, from the open handles if possible.
    ///
    /// # Errors
    /// - `FILE_CHANGED`: no copy is unchanged.
    /// - `STORE_UNAVAILABLE`: this machine cannot open files now.
    pub(crate) fn open(&self, id: &FileId) -> Result<Arc<File>, Problem> {
        let handles = self.catalog.handles();
        if let Some(file) = handles.get(id) {
            if self.check_unchanged(id, &file).is_ok() {
                return Ok(file);
            }
            handles.close(&[*id]);
        }
        let file = self.open_new(id)?;
        handles.put(*id, file.clone());
        Ok(file)
    }

    /// Opens an unchanged copy, never from the open handles.
    ///
    /// # Errors
    /// As [`CopyOpener::open`].
    pub(crate) fn open_new(&self, id: &FileId) -> Result<Arc<File>, Problem> {
        for candidate in self.candidates(id) {
            if let Some(manifest) = candidate.manifest() {
                // A manifest has no stamp, so its bytes are checked each time it is opened.
                return self.catalog.manifests().open(id, manifest).map(Arc::new);
            }
            match open_regular(&candidate.path) {
                Ok((file, stamp)) if candidate.expected.matches(&stamp) => {
                    return Ok(Arc::new(file));
                }
                // A failure of the machine, such as too many open files, does not mean that the
                // file changed.
                Err(problem)
                    if problem.reason == Reason::Internal || problem.reason.is_exhaustion() =>
                {
                    let path = candidate.path.display();
                    tracing::warn!(%path, %problem, "a shared file cannot be opened");
                    return Err(Problem::new(
                        Reason::StoreUnavailable,
                        "the file cannot be opened now",
                    ));
                }
                _ => self.reconciler.withdraw(candidate.location, &candidate.body),
            }
        }
        Err(file_changed(id))
    }

    /// An open handle whose reads never wait for the disk.
    pub(crate) fn open_cached(&self, id: &FileId) -> Option<Arc<File>> {
        let file = self.catalog.handles().get_cached(id)?;
        self.is_unchanged(id, &file).then_some(file)
    }

    /// Whether an open file is certainly still an unchanged copy, as far as that is known without
    /// waiting.
    pub(crate) fn is_unchanged(&self, id: &FileId, file: &File) -> bool {
        let stamp = file.metadata().map(|metadata| stamp_of(&metadata));
        let known = stamp.ok().zip(self.catalog.try_read());
        known.is_some_and(|(stamp, catalog)| matches_any_copy(&catalog, id, &stamp))
    }

    /// Checks that an open file is still an unchanged copy. If it is not, all copies are checked.
    ///
    /// # Errors
    /// `FILE_CHANGED`.
    pub(crate) fn check_unchanged(&self, id: &FileId, file: &File) -> Result<(), Problem> {
        // Before the catalog is locked.
        let stamp = file.metadata().map(|metadata| stamp_of(&metadata));
        if stamp.is_ok_and(|stamp| matches_any_copy(&self.catalog.read(), id, &stamp)) {
            return Ok(());
        }
        self.catalog.handles().close(&[*id]);
        for candidate in self.candidates(id) {
            // A manifest is written again when it is next opened.
            if candidate.manifest().is_none() && !candidate.is_unchanged() {
                self.reconciler.withdraw(candidate.location, &candidate.body);
            }
        }
        Err(file_changed(id))
    }

    /// The path of an unchanged copy.
    pub(crate) fn locate(&self, id: &FileId) -> Option<PathBuf> {
        let mut unchanged = None;
        for candidate in self.candidates(id) {
            let path = match candidate.is_manifest {
                true => self.reconciler.unchanged_folder(candidate.location.item),
                false if candidate.is_unchanged() => Some(candidate.path),
                false => {
                    self.reconciler.withdraw(candidate.location, &candidate.body);
                    None
                }
            };
            unchanged = unchanged.or(path);
        }
        unchanged
    }

    /// The piece layer of a file, verified against its root. `None` if the stored one is missing or
    /// damaged: then the file is hashed again.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`: the database cannot be read.
    pub(crate) fn verified_layer(
        &self,
        record: &FileRecord,
    ) -> Result<Option<Arc<[Hash]>>, Problem> {
        let id = &record.id;
        let layer = self.catalog.layer(id).map_err(|error| {
            tracing::warn!(%id, %error, "piece hashes cannot be read");
            Problem::new(Reason::StoreUnavailable, "the piece hashes cannot be read now")
        })?;
        let layout = FileLayout::new(record.size);
        let root = |layer: &[Hash]| layout.and_then(|layout| merkle::fold(layer, &layout));
        if let Some(layer) = layer.filter(|layer| root(layer) == Some(record.root)) {
            return Ok(Some(layer));
        }
        tracing::warn!(
            %id, "the stored piece hashes of a file are missing or damaged: it is hashed again"
        );
        for candidate in self.candidates(id) {
            self.reconciler.withdraw(candidate.location, &candidate.body);
        }
        Ok(None)
    }
}

/// Whether one of the file's copies has this stamp.
fn matches_any_copy(catalog: &Catalog, id: &FileId, stamp: &Stamp) -> bool {
    let mut copies = catalog.copies(id);
    copies.any(|(item, entry)| {
        ExpectedStat::of(item, entry).is_some_and(|expected| expected.matches(stamp))
    })
}
