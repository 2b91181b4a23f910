//! What can be served: the seam between those who have bytes (the library, running transfers) and the open port.

use std::{fmt, fs::File, ops::Range, sync::Arc};

use potluck_core::{
    FileId, Problem, availability::Availability, collection::plan::Plan, grpc::limiter::ClientAddress,
    identity::merkle::Hash, model::FileRecord,
};
use tokio::sync::watch;

/// One file, or a collection's content, that this peer can serve in whole or in part.
///
/// Calls may read the disk: use them off the async threads, but for [`Content::availability`], [`Content::changes`], [`Content::try_open`] and
/// [`Content::is_unchanged`].
pub trait Content: Send + Sync + fmt::Debug {
    /// Its id.
    fn id(&self) -> FileId;

    /// Its size in bytes.
    fn size(&self) -> u64;

    /// What the file is, root and all.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` where the root is not known yet.
    fn record(&self) -> Result<FileRecord, Problem>;

    /// The label it is shared by.
    fn name(&self) -> String;

    /// The piece layer; empty where the file has fewer than two pieces.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` where it is not known yet.
    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem>;

    /// What it is cut into. For a collection, its content. May read the disk where [`Content::availability`] may not: what that counts is known then.
    fn plan(&self) -> Option<Arc<Plan>> {
        Plan::of_file(self.id(), self.size()).map(Arc::new)
    }

    /// Which units can be served now. For a collection, the units of its content.
    fn availability(&self) -> Availability;

    /// Changes each time that [`Content::availability`] does; `None` where it never will.
    fn changes(&self) -> Option<watch::Receiver<u64>>;

    /// Opens the file for reading `range`, which lies inside it, all of it verified.
    ///
    /// # Errors
    /// `PIECE_NOT_AVAILABLE` where part of it is not verified yet; `FILE_CHANGED` where the file is not what was hashed.
    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem>;

    /// The same, where that can be done without waiting for a disk, another machine or a lock that is held for long, and neither does
    /// reading what is in memory already.
    fn try_open(&self, range: Range<u64>) -> Option<Arc<File>>;

    /// Whether the file that was opened is surely still what was hashed, as far as that can be told at once.
    fn is_unchanged(&self, file: &File) -> bool;

    /// Whether the file that was opened is still what was hashed: asked after reading and before sending.
    ///
    /// # Errors
    /// `FILE_CHANGED`.
    fn check_unchanged(&self, file: &File) -> Result<(), Problem>;
}

/// Pieces of a file that somebody received and that failed verification there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPieces {
    /// The file.
    pub id: FileId,
    /// The first of them.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A place to look for offers by id.
pub trait ContentSource: Send + Sync + fmt::Debug {
    /// The offer of this file, if there is one.
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>>;

    /// The same without ever waiting for long: also on the async threads. `None` too where that cannot be said so quickly.
    fn try_find(&self, _id: &FileId) -> Option<Arc<dyn Content>> {
        None
    }

    /// Somebody says that these pieces were wrong when they came: they are looked at when there is
    /// time. Only what is seen here is believed. False where too much was reported; never waits.
    fn on_bad_pieces(&self, _pieces: BadPieces, _source: ClientAddress) -> bool {
        true
    }
}
