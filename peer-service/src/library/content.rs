//! The library as a source of content for uploads: one [`Content`] per file, and the open handles
//! of recently read files.
//!
//! Invariant: a handle is given out, and the bytes read from it are sent, only while its `stat`
//! equals the one from when the file was hashed.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    availability::Availability,
    bitfield::Bitfield,
    collection::{manifest::Manifest, plan::Plan},
    identity::merkle::{self, Hash},
    model::{FileKind, FileRecord},
};
use tokio::sync::watch;

use crate::{
    content::Content,
    fs::page_cache,
    library::{
        LibraryShared,
        catalog::{Catalog, EntryIndex, ItemBody, Location, SharedCollection, SharedItem, WHOLE_ITEM},
        hash::open::open_regular,
        scan::walk::stamp_of,
    },
    store::Stamp,
};

/// Maximum number of open files: one request often covers spans of a few files, and one file often
/// has many readers.
const MAX_OPEN_FILES: usize = 64;

/// Largest file that is not kept open, in bytes: it is read in one go, and many such files would
/// only evict others.
const MAX_UNKEPT_SIZE: u64 = 256 * 1024;

/// How long an unused handle is kept: an open handle keeps the disk space of a removed file.
pub(crate) const OPEN_FILE_IDLE: Duration = Duration::from_secs(10);

/// A file in the library.
#[derive(Debug)]
pub(crate) struct LibraryContent {
    shared: Arc<LibraryShared>,
    record: FileRecord,
}

impl LibraryContent {
    pub(crate) fn find(shared: &Arc<LibraryShared>, id: &FileId) -> Option<Self> {
        Self::of(shared, &shared.catalog(), id)
    }

    /// Like `find`, but never waits: `None` if the catalog is locked or the collection's plan is
    /// not made yet.
    pub(crate) fn try_find(shared: &Arc<LibraryShared>, id: &FileId) -> Option<Self> {
        let catalog = shared.try_catalog()?;
        let content = Self::of(shared, &catalog, id)?;
        let folder = content.collection(&catalog);
        folder.is_none_or(|folder| folder.is_planned()).then_some(content)
    }

    fn of(shared: &Arc<LibraryShared>, catalog: &Catalog, id: &FileId) -> Option<Self> {
        Some(Self {
            shared: shared.clone(),
            record: catalog.record(id)?,
        })
    }

    /// Whether the file is kept open.
    const fn is_kept_open(&self) -> bool {
        self.record.size > MAX_UNKEPT_SIZE
    }

    /// The collection, if this content is a collection's manifest.
    fn collection<'a>(&self, catalog: &'a Catalog) -> Option<&'a Arc<SharedCollection>> {
        if self.record.kind != FileKind::Collection {
            return None;
        }
        let mut copies = catalog.copies(&self.record.id);
        copies.find_map(|(shared, part)| match &shared.body {
            ItemBody::Collection(folder) if part == WHOLE_ITEM => Some(folder),
            _ => None,
        })
    }
}

impl Content for LibraryContent {
    fn id(&self) -> FileId {
        self.record.id
    }

    fn size(&self) -> u64 {
        self.record.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        Ok(self.record)
    }

    fn name(&self) -> String {
        let catalog = self.shared.catalog();
        let names = catalog.registration(&self.record.id).map(|known| known.names);
        names.unwrap_or_default().into_iter().next().unwrap_or_default()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        let pieces = FileLayout::new(self.record.size).map_or(0, |layout| layout.piece_count());
        if pieces < 2 {
            return Ok(Arc::from([]));
        }
        let layer = self.shared.layer(&self.record.id).map_err(|error| {
            tracing::warn!(id = %self.record.id, %error, "the piece hashes cannot be read");
            Problem::new(Reason::StoreUnavailable, "the piece hashes cannot be read now")
        })?;
        if let Some(layer) = layer.filter(|layer| is_layer_of(&self.record, layer)) {
            return Ok(layer);
        }
        // Peers ban a peer that serves a piece layer which does not fold to the root.
        self.shared.hash_again(&self.record.id);
        Err(Problem::new(
            Reason::PieceNotAvailable,
            format!(
                "no piece hashes of {} here now: it is being hashed again",
                self.record.id
            ),
        ))
    }

    fn plan(&self) -> Option<Arc<Plan>> {
        // The plan is made without the catalog's lock.
        let folder = self.collection(&self.shared.catalog()).cloned();
        match folder {
            Some(folder) => Some(folder.plan()),
            None => Plan::of_file(self.record.id, self.record.size).map(Arc::new),
        }
    }

    fn availability(&self) -> Availability {
        let count = self.plan().map_or(0, |plan| plan.unit_count());
        Availability {
            have: Bitfield::full(count),
            fetching: Bitfield::new(count),
        }
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.shared.watch(&self.record.id))
    }

    fn open(&self, _range: Range<u64>) -> Result<Arc<File>, Problem> {
        match self.is_kept_open() {
            true => self.shared.open(&self.record.id),
            false => self.shared.reopen(&self.record.id),
        }
    }

    fn try_open(&self, _range: Range<u64>) -> Option<Arc<File>> {
        if !self.is_kept_open() {
            return None;
        }
        let file = self.shared.open_files().try_get(&self.record.id)?;
        self.is_unchanged(&file).then_some(file)
    }

    fn is_unchanged(&self, file: &File) -> bool {
        let stamp = file.metadata().map(|metadata| stamp_of(&metadata));
        let catalog = self.shared.try_catalog();
        let known = stamp.ok().zip(catalog);
        known.is_some_and(|(stamp, catalog)| matches_any_copy(&catalog, &self.record.id, &stamp))
    }

    fn check_unchanged(&self, file: &File) -> Result<(), Problem> {
        self.shared.check(&self.record.id, file)
    }
}

/// Whether these piece hashes fold to the file's root.
pub(crate) fn is_layer_of(record: &FileRecord, layer: &[Hash]) -> bool {
    let layout = FileLayout::new(record.size);
    layout.and_then(|layout| merkle::fold(layer, &layout)) == Some(record.root)
}

pub(crate) fn file_changed(id: &FileId) -> Problem {
    Problem::new(
        Reason::FileChanged,
        format!("the file shared as {id} is not what it was any more"),
    )
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
    fn of(shared: &SharedItem, part: EntryIndex) -> Option<Self> {
        match shared.is_manifest(part) {
            true => Some(Self::Size(shared.record.size)),
            false => shared.stamp(part).map(Self::Stamp),
        }
    }

    pub(crate) fn matches(&self, snapshot: &Stamp) -> bool {
        match self {
            Self::Stamp(stamp) => stamp == snapshot,
            Self::Size(size) => *size == snapshot.size,
        }
    }
}

impl LibraryShared {
    pub(crate) fn candidates(&self, catalog: &Catalog, id: &FileId) -> Vec<CopyCandidate> {
        let locations = catalog.locations(id).into_iter();
        let candidates = locations.filter_map(|location| {
            let shared = catalog.item(location.item)?;
            let is_manifest = shared.is_manifest(location.entry);
            Some(CopyCandidate {
                location,
                body: shared.body.clone(),
                path: match is_manifest {
                    true => self.manifest_path(id),
                    false => shared.locate(location.entry)?,
                },
                is_manifest,
                expected: ExpectedStat::of(shared, location.entry)?,
            })
        });
        candidates.collect()
    }

    /// Opens an unchanged copy, from the open files if possible. Withdraws every changed copy that
    /// it meets.
    fn open(&self, id: &FileId) -> Result<Arc<File>, Problem> {
        // A separate statement: the open files must not stay locked in the branch.
        let open = self.open_files().get(id);
        if let Some(file) = open {
            if self.check(id, &file).is_ok() {
                return Ok(file);
            }
            self.open_files().remove(id);
        }
        let file = self.reopen(id)?;
        let never_waits = page_cache::never_waits(&file);
        self.open_files().put(*id, file.clone(), never_waits);
        Ok(file)
    }

    /// Opens an unchanged copy anew, never from the open files.
    fn reopen(&self, id: &FileId) -> Result<Arc<File>, Problem> {
        // A separate statement: the catalog must not stay locked in the loop.
        let candidates = self.candidates(&self.catalog(), id);
        for candidate in candidates {
            if let Some(manifest) = candidate.manifest() {
                // A manifest has no stamp, so its bytes are checked each time it is opened.
                return self.manifest_file(id, manifest).map(Arc::new);
            }
            match open_regular(&candidate.path) {
                Ok((file, stamp)) if candidate.expected.matches(&stamp) => return Ok(Arc::new(file)),
                // A failure of the machine, such as too many open files, does not mean that the
                // file changed.
                Err(problem) if problem.reason == Reason::Internal || problem.reason.is_exhaustion() => {
                    tracing::warn!(path = %candidate.path.display(), %problem, "a shared file cannot be opened");
                    return Err(Problem::new(
                        Reason::StoreUnavailable,
                        "the file cannot be opened now",
                    ));
                }
                _ => self.withdraw(candidate.location, &candidate.body),
            }
        }
        Err(file_changed(id))
    }

    /// Checks that an open file is still an unchanged copy. If it is not, all copies are checked
    /// and the changed ones withdrawn.
    fn check(&self, id: &FileId, file: &File) -> Result<(), Problem> {
        // Before the catalog is locked.
        let stamp = file.metadata().map(|metadata| stamp_of(&metadata));
        if stamp.is_ok_and(|stamp| matches_any_copy(&self.catalog(), id, &stamp)) {
            return Ok(());
        }
        self.open_files().remove(id);
        let candidates = self.candidates(&self.catalog(), id);
        for candidate in candidates {
            // A manifest is written again when it is next opened.
            if candidate.manifest().is_none() && !candidate.is_unchanged() {
                self.withdraw(candidate.location, &candidate.body);
            }
        }
        Err(file_changed(id))
    }

    /// Withdraws all copies of a file whose stored piece hashes are damaged, so that it is hashed
    /// again.
    pub(crate) fn hash_again(&self, id: &FileId) {
        tracing::warn!(%id, "the stored piece hashes of a file are missing or damaged: it is hashed again");
        // A separate statement: the catalog must not stay locked in the loop.
        let candidates = self.candidates(&self.catalog(), id);
        for candidate in candidates {
            self.withdraw(candidate.location, &candidate.body);
        }
    }

    /// The path of an unchanged copy. Withdraws the changed ones.
    pub(crate) fn locate(&self, id: &FileId) -> Option<PathBuf> {
        let candidates = self.candidates(&self.catalog(), id);
        let mut snapshot = None;
        for candidate in candidates {
            let path = match candidate.is_manifest {
                true => self.unchanged_folder(candidate.location.item),
                false if candidate.is_unchanged() => Some(candidate.path),
                false => {
                    self.withdraw(candidate.location, &candidate.body);
                    None
                }
            };
            snapshot = snapshot.or(path);
        }
        snapshot
    }

    /// A receiver that closes when the file is withdrawn.
    fn watch(&self, id: &FileId) -> watch::Receiver<u64> {
        let mut watchers = self.watchers();
        // The file may have been withdrawn since it was looked up. Nobody would drop a sender
        // created now.
        if self.catalog().record(id).is_none() {
            return watch::channel(0).1;
        }
        watchers
            .entry(*id)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
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

/// Whether one of the file's copies has this stamp.
fn matches_any_copy(catalog: &Catalog, id: &FileId, stamp: &Stamp) -> bool {
    let mut copies = catalog.copies(id);
    copies
        .any(|(shared, part)| ExpectedStat::of(shared, part).is_some_and(|expected| expected.matches(stamp)))
}

/// A file that is kept open.
#[derive(Debug)]
struct OpenFile {
    id: FileId,
    file: Arc<File>,
    never_waits: bool,
    used: Instant,
}

/// The recently read files, kept open.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    /// Least recently used first.
    files: VecDeque<OpenFile>,
}

impl OpenFiles {
    fn get(&mut self, id: &FileId) -> Option<Arc<File>> {
        self.touch(id).map(|handle| handle.file.clone())
    }

    /// Like `get`, but only a file whose reads never wait for the disk.
    fn try_get(&mut self, id: &FileId) -> Option<Arc<File>> {
        let handle = self.touch(id)?;
        handle.never_waits.then(|| handle.file.clone())
    }

    fn touch(&mut self, id: &FileId) -> Option<&OpenFile> {
        let index = self.files.iter().position(|handle| handle.id == *id)?;
        let mut handle = self.files.remove(index)?;
        handle.used = Instant::now();
        self.files.push_back(handle);
        self.files.back()
    }

    fn put(&mut self, id: FileId, file: Arc<File>, never_waits: bool) {
        self.remove(&id);
        if self.files.len() == MAX_OPEN_FILES {
            self.files.pop_front();
        }
        self.files.push_back(OpenFile {
            id,
            file,
            never_waits,
            used: Instant::now(),
        });
    }

    pub(crate) fn remove(&mut self, id: &FileId) {
        self.files.retain(|handle| handle.id != *id);
    }

    /// Closes files that were not used for [`OPEN_FILE_IDLE`].
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.files
            .retain(|handle| now.saturating_duration_since(handle.used) < OPEN_FILE_IDLE);
    }
}
