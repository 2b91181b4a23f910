//! Content that the peer can serve: the interface between its sources (the library, running
//! downloads) and the upload service.

use std::{fmt, fs::File, ops::Range, sync::Arc};

use potluck_core::{
    FileId, Problem, availability::Availability, collection::plan::Plan,
    grpc::limiter::ClientAddress, identity::merkle::Hash, model::FileRecord,
};
use tokio::sync::watch;

/// A file, or the files of a collection, that this peer can serve in whole or in part.
///
/// Methods may block on the disk, so do not call them on async threads. Exceptions:
/// [`Content::availability`], [`Content::changes`], [`Content::try_open`] and
/// [`Content::is_unchanged`].
pub trait Content: Send + Sync + fmt::Debug {
    /// The id of the file or manifest.
    fn id(&self) -> FileId;

    /// Size in bytes.
    fn size(&self) -> u64;

    /// The file's record, with the root hash.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` if the root is not known yet.
    fn record(&self) -> Result<FileRecord, Problem>;

    /// The name that it is shared under.
    fn name(&self) -> String;

    /// The piece layer; empty if the file has fewer than two pieces.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` if the piece layer is not known yet.
    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem>;

    /// How the content is divided into units. For a collection, this covers the files in it.
    ///
    /// May block on the disk, although [`Content::availability`] does not.
    fn plan(&self) -> Option<Arc<Plan>> {
        Plan::of_file(self.id(), self.size()).map(Arc::new)
    }

    /// The units that can be served now. For a collection, the units of the files in it.
    fn availability(&self) -> Availability;

    /// Changes whenever [`Content::availability`] changes; `None` if it never does.
    fn changes(&self) -> Option<watch::Receiver<u64>>;

    /// Opens the file to read `range`, which must lie inside the file.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` if part of the range is not verified yet; `FILE_CHANGED` if the file
    /// changed since it was hashed.
    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem>;

    /// Opens the file like [`Content::open`], but never blocks on a disk, another machine or a
    /// contended lock. Returns a file only if reading cached pages of it does not block either.
    fn try_open(&self, range: Range<u64>) -> Option<Arc<File>>;

    /// Whether the open file is certainly unchanged since it was hashed, as far as that is known
    /// without blocking.
    fn is_unchanged(&self, file: &File) -> bool;

    /// Checks that the open file is unchanged since it was hashed. Called after reading and before
    /// sending.
    ///
    /// # Errors
    /// `FILE_CHANGED` if it has changed.
    fn check_unchanged(&self, file: &File) -> Result<(), Problem>;
}

/// A range of bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRange {
    /// The file.
    pub(crate) id: FileId,
    /// The bytes. May lie outside the file if it comes from another peer.
    pub(crate) range: Range<u64>,
}

impl FileRange {
    /// Number of bytes.
    pub(crate) const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A report that pieces of a file failed verification at their receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPieces {
    /// The file.
    pub id: FileId,
    /// Index of the first piece.
    pub first: u32,
    /// Number of pieces.
    pub count: u32,
}

/// Finds content by id.
pub trait ContentSource: Send + Sync + fmt::Debug {
    /// The content with this id, if there is any. May block.
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>>;

    /// Finds content without blocking, so that async threads may call it. `None` also if the answer
    /// is not known without blocking.
    fn try_find(&self, _id: &FileId) -> Option<Arc<dyn Content>> {
        None
    }

    /// Schedules a check of pieces that another peer reports as bad. The report itself is not
    /// trusted: only the check counts. Returns false if there are too many reports. Never blocks.
    fn on_bad_pieces(&self, _pieces: BadPieces, _source: ClientAddress) -> bool {
        true
    }
}
