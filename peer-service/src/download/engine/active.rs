//! A running download as an upload source: the content that it can serve so far.
//!
//! Invariant: a range is served only if every unit that covers it was verified and written.

use std::{
    fs::File,
    io::{self, Write as _},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    availability::Availability,
    bitfield::Bitfield,
    collection::plan::Plan,
    identity::merkle::{FileTree, Hash},
    model::{FileKind, FileRecord},
};
use tokio::sync::watch;

use crate::{
    content::Content,
    download::{
        engine::verifier::UnitVerifier, origin::pieces::ProvisionalPieces,
        storage::part_file::PartFile,
    },
};

/// State shared by the driver of a download and the uploads that read from it.
#[derive(Debug)]
pub(crate) struct ActiveDownload {
    /// The file, or the collection's manifest.
    pub(crate) record: FileRecord,
    /// The public name of the content.
    pub(crate) name: String,
    /// The data on disk.
    pub(crate) part_file: Arc<PartFile>,
    /// Verifies the units.
    pub(crate) verifier: Arc<UnitVerifier>,
    /// The pieces of content whose root is not known yet.
    pub(crate) pieces: Option<Arc<ProvisionalPieces>>,
    /// Whether other peers may have the content.
    is_shared: bool,
    /// Number of peers that download or have the content, and this one.
    receivers: AtomicU64,
    /// The manifest, if the download is a collection.
    manifest: Option<LocalManifest>,
    availability: Mutex<Availability>,
    version: watch::Sender<u64>,
    /// The units that are not offered, because the download leaves out some of their files.
    incomplete_units: Option<Bitfield>,
}

#[derive(Debug)]
struct LocalManifest {
    tree: FileTree,
    file: Arc<File>,
}

impl ActiveDownload {
    /// Creates a download that already has the units `have`, or needs nothing of them. `manifest` is a collection's encoded
    /// manifest with its tree.
    ///
    /// # Errors
    /// If the temporary file for the manifest cannot be written.
    pub(crate) fn new(
        record: FileRecord,
        name: String,
        part_file: Arc<PartFile>,
        verifier: Arc<UnitVerifier>,
        manifest: Option<(FileTree, &[u8])>,
        have: Bitfield,
    ) -> io::Result<Self> {
        let manifest = match manifest {
            Some((tree, bytes)) => {
                let mut file = tempfile::tempfile()?;
                file.write_all(bytes)?;
                Some(LocalManifest {
                    tree,
                    file: Arc::new(file),
                })
            }
            None => None,
        };
        let units = Availability {
            fetching: Bitfield::new(have.len()),
            have,
        };
        Ok(Self {
            record,
            name,
            incomplete_units: part_file.plan().incomplete_units(),
            part_file,
            verifier,
            manifest,
            pieces: None,
            is_shared: true,
            receivers: AtomicU64::new(1),
            availability: Mutex::new(units),
            version: watch::Sender::new(0),
        })
    }

    /// Makes this a download of content whose root is not known yet.
    #[must_use]
    pub(crate) fn provisional(mut self, pieces: Option<Arc<ProvisionalPieces>>) -> Self {
        self.pieces = pieces;
        self
    }

    /// Whether other peers may have the content.
    #[must_use]
    pub(crate) const fn shared(mut self, is_shared: bool) -> Self {
        self.is_shared = is_shared;
        self
    }

    /// Number of peers that download or have the content, and this one.
    pub(crate) fn receivers(&self) -> u64 {
        self.receivers.load(Ordering::Relaxed)
    }

    /// Sets the number of known peers.
    pub(crate) fn set_known_peers(&self, peers: usize) {
        self.receivers.store(peers as u64 + 1, Ordering::Relaxed);
    }

    fn availability(&self) -> MutexGuard<'_, Availability> {
        self.availability.lock()
    }

    /// Changes the availability and notifies watchers if `change` returns true.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Availability) -> bool) {
        let changed = change(&mut self.availability());
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Changes whenever the availability changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The units verified so far.
    pub(crate) fn have(&self) -> Bitfield {
        self.availability().have.clone()
    }

    /// Whether this unit was verified and written.
    pub(crate) fn has(&self, unit: u32) -> bool {
        self.availability().have.get(unit)
    }

    /// How many bytes at `offset` of a plain file may be handed to a reader, at most `max`. `None` if
    /// none may yet.
    pub(crate) fn readable(&self, offset: u64, max: usize) -> Option<usize> {
        let plan = self.part_file.plan();
        let unit = plan.units_of(0, offset..offset + 1).next()?;
        let span = plan.spans(unit).next()?;
        let may_be_read = match &self.pieces {
            // The last unit waits for the SHA-256 of all bytes.
            Some(pieces) => pieces.is_from_origin(unit) && unit + 1 < plan.unit_count(),
            None => true,
        };
        let left = (span.offset + span.len)
            .checked_sub(offset)
            .filter(|&left| left > 0)?;
        (may_be_read && self.has(unit)).then(|| max.min(usize::try_from(left).unwrap_or(max)))
    }

    /// The content that this download can serve under this id.
    pub(crate) fn content(self: &Arc<Self>, id: &FileId) -> Option<Arc<dyn Content>> {
        if !self.is_shared {
            return None;
        }
        if *id == self.record.id {
            return Some(Arc::new(DownloadContent(Arc::clone(self))));
        }
        let plan = self.part_file.plan();
        let index = plan.find(id).filter(|&index| plan.needs(index))?;
        Some(Arc::new(CollectionFile {
            download: Arc::clone(self),
            index,
            size: plan.file(index)?.size,
            id: *id,
        }))
    }

    /// Opens the file at this index of the plan to read a range whose units are all verified.
    fn open(&self, index: usize, range: Range<u64>) -> Result<Arc<File>, Problem> {
        let mut units = self.part_file.plan().units_of(index, range);
        let have = self.availability();
        // Of provisional content, only what the origin itself sent.
        let may_serve = |unit| {
            self.pieces
                .as_ref()
                .is_none_or(|pieces| pieces.is_from_origin(unit))
        };
        let all = units.all(|unit| have.have.get(unit) && may_serve(unit));
        drop(have);
        if !all {
            return Err(Problem::new(
                Reason::PieceNotAvailable,
                "part of this range is not verified here yet",
            ));
        }
        self.part_file.file(index).map_err(|error| {
            tracing::warn!(
                path = %self.part_file.target().part().display(), %error,
                "cannot read the downloaded data"
            );
            Problem::new(Reason::FileChanged, "the file cannot be read here any more")
        })
    }
}

/// The download's own file or collection.
#[derive(Debug)]
struct DownloadContent(Arc<ActiveDownload>);

impl Content for DownloadContent {
    fn id(&self) -> FileId {
        self.0.record.id
    }

    fn size(&self) -> u64 {
        self.0.record.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        Ok(self.0.record)
    }

    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        match &self.0.manifest {
            Some(manifest) => Ok(manifest.tree.piece_hashes.clone().into()),
            None => layer(&self.0.verifier, 0, self.0.record.size),
        }
    }

    fn plan(&self) -> Option<Arc<Plan>> {
        Some(Arc::clone(self.0.part_file.plan()))
    }

    fn availability(&self) -> Availability {
        let mut units = self.0.availability().clone();
        for unit in self.0.incomplete_units.iter().flat_map(Bitfield::ones) {
            units.have.set(unit, false);
            units.fetching.set(unit, false);
        }
        if let Some(pieces) = &self.0.pieces {
            pieces.retain_from_origin(&mut units.have);
        }
        units
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.version.subscribe())
    }

    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem> {
        match &self.0.manifest {
            Some(manifest) => Ok(Arc::clone(&manifest.file)),
            None => self.0.open(0, range),
        }
    }

    fn try_open(&self, range: Range<u64>) -> Option<Arc<File>> {
        // A plain file stays open while the download runs, so opening it never waits.
        let never_waits = self.0.manifest.is_none() && self.0.part_file.never_waits();
        never_waits.then(|| self.open(range).ok()).flatten()
    }

    fn is_unchanged(&self, _file: &File) -> bool {
        true
    }

    fn check_unchanged(&self, _file: &File) -> Result<(), Problem> {
        Ok(())
    }
}

/// Suggested retry delay while a root is unknown: about the time that a unit takes.
const ROOT_RETRY: Duration = Duration::from_millis(250);

/// One file of a collection that is being downloaded.
#[derive(Debug)]
struct CollectionFile {
    download: Arc<ActiveDownload>,
    /// Index in the plan.
    index: usize,
    id: FileId,
    size: u64,
}

impl Content for CollectionFile {
    fn id(&self) -> FileId {
        self.id
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        let root = self.download.verifier.root(self.index).ok_or_else(|| {
            let message = format!("the root of {} is not known here yet: try again", self.id);
            Problem::new(Reason::PieceNotAvailable, message).retry_after(ROOT_RETRY)
        })?;
        Ok(FileRecord {
            id: self.id,
            size: self.size,
            root,
            sha256: None,
            kind: FileKind::File,
        })
    }

    fn name(&self) -> String {
        self.download.name.clone()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        layer(&self.download.verifier, self.index, self.size)
    }

    fn availability(&self) -> Availability {
        let plan = self.download.part_file.plan();
        let Some(layout) = FileLayout::new(self.size) else {
            return Availability {
                have: Bitfield::new(0),
                fetching: Bitfield::new(0),
            };
        };
        let mut units = Availability {
            have: Bitfield::new(layout.piece_count()),
            fetching: Bitfield::new(layout.piece_count()),
        };
        let all = self.download.availability();
        for piece in layout.pieces() {
            let mut covering = plan.units_of(self.index, layout.range(piece));
            units
                .have
                .set(piece.get(), covering.clone().all(|unit| all.have.get(unit)));
            units
                .fetching
                .set(piece.get(), covering.any(|unit| all.fetching.get(unit)));
        }
        units
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.download.version.subscribe())
    }

    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem> {
        self.download.open(self.index, range)
    }

    fn try_open(&self, _: Range<u64>) -> Option<Arc<File>> {
        None
    }

    fn is_unchanged(&self, _file: &File) -> bool {
        true
    }

    fn check_unchanged(&self, _file: &File) -> Result<(), Problem> {
        Ok(())
    }
}

fn layer(verifier: &UnitVerifier, file: usize, size: u64) -> Result<Arc<[Hash]>, Problem> {
    if FileLayout::new(size).is_some_and(|layout| layout.piece_count() < 2) {
        return Ok(Arc::new([]));
    }
    match verifier.layer(file) {
        Some(layer) => Ok(layer),
        None => Err(Problem::new(
            Reason::PieceNotAvailable,
            "the piece hashes are not known here yet",
        )),
    }
}
