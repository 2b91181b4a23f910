//! What the peer shares.

use std::{path::PathBuf, sync::Arc};

use potluck_core::{FileId, Problem, Reason, Sha256, index_client::FileRecord, merkle::FileTree};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    holdings::Holdings,
    offer::{Offer, Shelf},
    store::{Store, StoreError},
};

/// Why the library cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something that is shared as such: a file, or a folder as a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file, or the collection's manifest.
    pub record: FileRecord,
    /// Its label.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Files in it; 1 for a file.
    pub file_count: u64,
    /// Size of its content in bytes.
    pub content_size: u64,
}

/// What happens while sharing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareEvent {
    /// Hashing goes on; sums over all paths of the call, in bytes.
    Progress {
        /// What is being hashed.
        path: PathBuf,
        /// Hashed so far.
        done: u64,
        /// Found so far.
        total: u64,
    },
    /// A path is shared.
    Shared(Item),
    /// A path, or something in a folder, cannot be shared.
    Failed {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: Problem,
    },
}

/// What to stop sharing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every item with this id.
    Id(FileId),
    /// The item at this path.
    Path(PathBuf),
}

/// Sums over the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Files and collections shared as such.
    pub items: u64,
    /// Distinct files, those of collections among them.
    pub files: u64,
    /// Their sizes in all, in bytes.
    pub bytes: u64,
}

/// The library. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Library {}

impl Library {
    /// Opens the library: returns at once with what is unchanged since the last time (told by `stat` alone); what changed is
    /// hashed again in the background. Watches `files_folder` until `shutdown`. Blocks: use it off the async threads, within
    /// the runtime's context.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub fn open(
        _store: Store,
        _holdings: Holdings,
        _files_folder: PathBuf,
        _hash_threads: usize,
        _shutdown: CancellationToken,
        _tracker: &TaskTracker,
    ) -> Result<Self, LibraryError> {
        Ok(Self {})
    }

    /// Shares files and folders in place, in order. Each ends in [`ShareEvent::Shared`] or at least one [`ShareEvent::Failed`].
    /// Ends early when nobody receives the events any more.
    pub async fn share(&self, _paths: Vec<PathBuf>, _events: mpsc::Sender<ShareEvent>) {}

    /// Shares a finished download without hashing it again.
    ///
    /// # Errors
    /// `FILE_CHANGED` where the file at `path` is not as long as the tree says.
    pub async fn adopt_file(
        &self,
        _path: PathBuf,
        _tree: FileTree,
        _sha256: Option<Sha256>,
    ) -> Result<Item, Problem> {
        Err(Problem::new(Reason::Internal, "not there yet"))
    }

    /// Stops sharing; deletes no file. What a collection held goes too, unless something else shares it.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn unshare(&self, _target: Target) -> Result<Vec<Item>, Problem> {
        Ok(Vec::new())
    }

    /// A page of what is shared, oldest first, and the token of the next page.
    ///
    /// # Errors
    /// `INVALID_PAGE_TOKEN`.
    pub fn list(&self, _page_size: usize, _token: &str) -> Result<(Vec<Item>, Option<String>), Problem> {
        Ok((Vec::new(), None))
    }

    /// Sums over the library.
    pub fn totals(&self) -> Totals {
        Totals::default()
    }

    /// Where a current, unchanged copy of this file or collection is. Reads the disk: use it off the async threads.
    pub fn locate(&self, _id: &FileId) -> Option<PathBuf> {
        None
    }
}

impl Shelf for Library {
    fn find(&self, _id: &FileId) -> Option<Arc<dyn Offer>> {
        None
    }
}
