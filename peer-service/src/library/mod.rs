//! The library: what the peer shares. Files and folders are shared in place and never copied.
//!
//! | module | its one job |
//! |---|---|
//! | `catalog` | the library in memory: items, files and the location of each copy; pure |
//! | `check` | hashes shared files again to find silent corruption |
//! | `content` | opens files for uploads, never one that changed |
//! | `hash` | files to hashes and manifests, and which hashing goes first |
//! | `reports` | pieces that other peers received from here and report as corrupt |
//! | `scan` | walks of folders, their snapshots, the watch on the files folder |
//! | `share` | adds and removes items, publishes each change |
//! | `sync` | loads the library at start and reconciles it with the disk |
//!
//! Invariants:
//! - A file is offered only under the id of its current bytes, as far as `stat` can tell.
//! - A collection's manifest is on the disk before its item enters the catalog or the database.
//! - A shared folder is the collection that it was when it was shared. A changed file makes it a
//!   new collection as soon as the change is noticed: on a read, at start, or by the periodic
//!   check. Added files are noticed only in the files folder, which is watched.
//! - An item that its owner shared from outside the files folder stays until the owner unshares it,
//!   whatever is at its path.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    FileId, Problem, Reason, Sha256,
    collection::{manifest::Manifest, path::Label},
    grpc::limiter::ClientAddress,
    identity::merkle::FileTree,
    model::FileRecord,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod catalog;
mod check;
mod content;
pub(crate) mod hash;
mod reports;
pub(crate) mod scan;
pub(crate) mod share;
pub(crate) mod sync;
#[cfg(test)]
mod tests;

pub use crate::library::check::{CheckEvent, CheckTarget};
pub use crate::library::hash::entry_hashes::EntryHashes;
pub use crate::library::hash::identify::{Identified, identify, kept_manifest};
pub use crate::library::scan::walk::stamp_of;
pub use crate::library::share::build::stamps_at;
use crate::{
    activity::Activity,
    announce::set::AnnounceSet,
    content::{BadPieces, Content, ContentSource},
    fs::blocking::{blocking, in_background},
    library::{
        hash::{open, priority},
        scan::files_folder,
        share::{batch, build, publish},
        sync::reconcile,
    },
    store::{Stamp, Store, StoreError},
};
use catalog::{Catalog, ItemBody, NewItem};
use hash::hasher::HashedFile;

/// The folder for the manifests of collections, in the peer's state. Each is named by its id.
const MANIFESTS: &str = "manifests";

/// Why the library cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder of the library cannot be used.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// A shared file, or a shared folder as a collection. Files inside a collection are not items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The record of the file, or of the collection's manifest.
    pub record: FileRecord,
    /// The label that others see.
    pub name: String,
    /// The path on this peer.
    pub path: PathBuf,
    /// Number of files; 1 for a file.
    pub file_count: u64,
    /// Size of the content in bytes.
    pub content_size: u64,
    /// The first damaged files: their bytes are not what was hashed, but their stamps are
    /// unchanged. A damaged item is not offered.
    pub damaged: Vec<PathBuf>,
}

/// Progress and results of a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareEvent {
    /// Progress. Byte counts are sums over all paths of the call.
    Progress {
        /// The file that is being hashed.
        path: PathBuf,
        /// Bytes hashed so far.
        done: u64,
        /// Bytes found so far.
        total: u64,
    },
    /// A path is shared.
    Shared(Item),
    /// A path, or something inside a folder, cannot be shared.
    Failed {
        /// The path.
        path: PathBuf,
        /// The reason.
        problem: Problem,
    },
}

/// What to stop sharing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnshareTarget {
    /// Every item with this id.
    Id(FileId),
    /// The item at this path.
    Path(PathBuf),
}

/// Totals over the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Number of items: files and collections.
    pub items: u64,
    /// Number of distinct files, including those in collections.
    pub files: u64,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// Number of items with a damaged file.
    pub damaged: u64,
}

/// Maximum number of items in a page.
const MAX_PAGE: usize = 1000;

/// The library. Clones are cheap and share one state.
#[derive(Debug, Clone)]
pub struct Library {
    shared: Arc<LibraryShared>,
}

/// The state behind [`Library`].
///
/// Lock order: `writing`, `watchers`, `catalog`; `manifest` comes last. `open_files` is never held
/// together with another lock.
#[derive(Debug)]
pub(crate) struct LibraryShared {
    catalog: Mutex<Catalog>,
    /// Held while the catalog changes and the change is stored and announced, so that all observers
    /// see the changes in one order.
    writing: Mutex<()>,
    /// Held while a manifest is written: two writers would write to the same file.
    manifest: Mutex<()>,
    store: Store,
    /// Changes that could not be stored yet. Changes only while `writing` is held.
    unsaved_changes: Mutex<publish::UnsavedChanges>,
    holdings: AnnounceSet,
    /// An absolute path without links.
    files_folder: PathBuf,
    hash_threads: usize,
    open_files: Mutex<content::OpenFiles>,
    /// One sender for each watched file. Dropping the sender notifies the watchers that the file is
    /// withdrawn.
    watchers: Mutex<HashMap<FileId, watch::Sender<u64>>>,
    foreground_hashers: priority::ForegroundHashers,
    activity: Activity,
    reports: reports::Reports,
    stale: Notify,
    sha256_needed: Notify,
    /// The time of the last finished download.
    last_download: Mutex<Option<Instant>>,
    rescan: Notify,
    shutdown: CancellationToken,
}

impl LibraryShared {
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock()
    }

    /// The catalog, or `None` if the lock is held.
    fn try_catalog(&self) -> Option<MutexGuard<'_, Catalog>> {
        self.catalog.try_lock()
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock()
    }

    fn open_files(&self) -> MutexGuard<'_, content::OpenFiles> {
        self.open_files.lock()
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<FileId, watch::Sender<u64>>> {
        self.watchers.lock()
    }

    fn manifests(&self) -> PathBuf {
        self.store.folder().join(MANIFESTS)
    }

    /// The path of a collection's manifest.
    fn manifest_path(&self, id: &FileId) -> PathBuf {
        self.manifests().join(id.to_string())
    }

    fn is_in_files_folder(&self, path: &Path) -> bool {
        path.parent() == Some(&self.files_folder)
    }
}

impl Library {
    /// Opens the library.
    ///
    /// Items that are unchanged according to `stat` are shared immediately. Changed items are
    /// hashed again in the background, until `shutdown`. New files in `files_folder` are found only
    /// after [`Library::watch_files_folder`].
    ///
    /// Blocks: call it off the async threads, within the context of a runtime.
    ///
    /// # Errors
    /// The database or a folder cannot be read.
    pub fn open(
        store: Store,
        announce_set: AnnounceSet,
        files_folder: PathBuf,
        hash_threads: usize,
        shutdown: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<Self, LibraryError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LibraryError::Folder { path, source }
        };
        std::fs::create_dir_all(&files_folder).map_err(failed(&files_folder))?;
        let files_folder = files_folder.canonicalize().map_err(failed(&files_folder))?;
        let shared = Arc::new(LibraryShared {
            catalog: Mutex::default(),
            writing: Mutex::default(),
            manifest: Mutex::default(),
            store,
            unsaved_changes: Mutex::default(),
            holdings: announce_set,
            files_folder,
            hash_threads: hash_threads.max(1),
            open_files: Mutex::default(),
            watchers: Mutex::default(),
            foreground_hashers: priority::ForegroundHashers::default(),
            activity: Activity::default(),
            reports: reports::Reports::default(),
            stale: Notify::new(),
            sha256_needed: Notify::new(),
            last_download: Mutex::default(),
            rescan: Notify::new(),
            shutdown,
        });
        std::fs::create_dir_all(shared.manifests()).map_err(failed(&shared.manifests()))?;
        let source: Weak<LibraryShared> = Arc::downgrade(&shared);
        shared.holdings.set_source(source);
        shared.load_or_begin_anew()?;
        reconcile::start(&shared, tracker);
        Ok(Self { shared })
    }

    /// Shares the content of the files folder and follows changes in it until shutdown. Call it
    /// once.
    pub fn watch_files_folder(&self, tracker: &TaskTracker) {
        files_folder::start(&self.shared, tracker);
    }

    /// The counters of bytes that the peer uploads and downloads. Uploads and downloads update
    /// them; background work waits while they grow.
    pub fn activity(&self) -> &Activity {
        &self.shared.activity
    }

    /// Shares files and folders in place, in order.
    ///
    /// Each path ends in [`ShareEvent::Shared`] or in at least one [`ShareEvent::Failed`]. A folder
    /// with anything in it that cannot be shared is refused as a whole, and every problem is
    /// reported, up to a limit. Stops early if `events` is closed.
    pub async fn share(&self, paths: Vec<PathBuf>, events: mpsc::Sender<ShareEvent>) {
        let shared = self.shared.clone();
        let ended = blocking(move || {
            batch::share_all(&shared, paths, &events);
        });
        // A panic is logged in `blocking`; the events then end without a result.
        let _ = ended.await;
    }

    /// Shares a finished download without hashing it again.
    ///
    /// `stamp` is the file's stamp, taken at a time after which any change of the bytes also
    /// changes the stamp. `label` is the name that others see, if it must not be derived from the
    /// path.
    ///
    /// # Errors
    /// - `FILE_CHANGED`: the file at `path` has another stamp, or another size than `tree`.
    /// - `STORE_UNAVAILABLE`, `DISK_FULL`: the item cannot be stored.
    pub async fn adopt_file(
        &self,
        path: PathBuf,
        tree: FileTree,
        stamp: Stamp,
        sha256: Option<Sha256>,
        label: Option<Label>,
    ) -> Result<Item, Problem> {
        let shared = self.shared.clone();
        blocking(move || {
            let path = build::resolve(&path)?;
            let (_, snapshot) = open::open_regular(&path)?;
            let mut item = build::file_item(&path, HashedFile { tree, stamp });
            if snapshot != stamp || stamp.size != item.record.size {
                return Err(content::file_changed(&item.record.id));
            }
            item.record.sha256 = sha256.or(item.record.sha256);
            item.label = other_name(&path, label);
            shared.adopt(item)
        })
        .await?
    }

    /// Shares a finished download of a collection without hashing it again.
    ///
    /// `stamps` and `hashes` have one element for each entry of the manifest. The stamps come from
    /// [`stamps_at`], called before the files were read for hashing.
    ///
    /// # Errors
    /// - `INVALID_ARGUMENT`: a hash is missing or belongs to another file.
    /// - `STORE_UNAVAILABLE`, `DISK_FULL`: the item cannot be stored.
    pub async fn adopt_collection(
        &self,
        root: PathBuf,
        manifest: Arc<Manifest>,
        stamps: Vec<Stamp>,
        hashes: EntryHashes,
        label: Option<Label>,
    ) -> Result<Item, Problem> {
        let shared = self.shared.clone();
        blocking(move || {
            let root = build::resolve(&root)?;
            let mut item = shared.collection_item(&root, manifest, stamps, hashes)?;
            item.label = other_name(&root, label);
            match &item.body {
                ItemBody::Collection(folder) if folder.ids_match_roots() => shared.adopt(item),
                _ => Err(not_hashed()),
            }
        })
        .await?
    }

    /// Hashes shared files again and reports files whose bytes changed silently. These are no
    /// longer offered.
    ///
    /// `rate` is the maximum number of bytes per second; 0 means no limit. Stops early if `events`
    /// is closed.
    pub async fn check(&self, targets: Vec<CheckTarget>, rate: u64, events: mpsc::Sender<CheckEvent>) {
        let shared = self.shared.clone();
        let check = move || shared.check_targets(&targets, rate, &events);
        // A failure is logged in `in_background`; the events then end without a result.
        let _ = in_background("potluck-check", check).await;
    }

    /// Stops sharing; deletes no file. The files of a collection go too, unless another item shares
    /// them. A path in the files folder gets a tombstone, so that it is not shared automatically
    /// again.
    ///
    /// # Errors
    /// - `NOT_FOUND`: the target is not shared.
    /// - `DISK_FULL`, `STORE_UNAVAILABLE`: the target is no longer shared, but the change could not
    ///   be stored. Calling this again stores it.
    pub async fn unshare(&self, target: UnshareTarget) -> Result<Vec<Item>, Problem> {
        let shared = self.shared.clone();
        blocking(move || shared.unshare(&target)).await?
    }

    /// A page of items, oldest first, and the token of the next page. `page_size` is clamped to
    /// 1..=1000.
    ///
    /// # Errors
    /// `INVALID_PAGE_TOKEN`: this library did not issue the token.
    pub fn list(&self, page_size: usize, token: &str) -> Result<(Vec<Item>, Option<String>), Problem> {
        let after = match token {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Problem::new(Reason::InvalidPageToken, "this peer gave no such page token")
                    .field("page_token")
            })?),
        };
        let catalog = self.shared.catalog();
        let mut items = catalog.items_after(after).peekable();
        let mut page = Vec::new();
        let mut last = None;
        for (number, _) in items.by_ref().take(page_size.clamp(1, MAX_PAGE)) {
            page.extend(catalog.shown(number));
            last = Some(number);
        }
        let next = last
            .filter(|_| items.peek().is_some())
            .map(|number: u64| number.to_string());
        Ok((page, next))
    }

    /// Totals over the library.
    pub fn totals(&self) -> Totals {
        self.shared.catalog().totals()
    }

    /// The path of an unchanged copy of this file or collection. Reads the disk: call it off the
    /// async threads.
    pub fn locate(&self, id: &FileId) -> Option<PathBuf> {
        self.shared.locate(id)
    }
}

/// The label, unless it equals the name that the path gives.
fn other_name(path: &Path, label: Option<Label>) -> Option<Label> {
    label.filter(|label| label.as_str() != catalog::name_of(path))
}

fn not_hashed() -> Problem {
    Problem::new(Reason::InvalidArgument, "a file of the collection was not hashed")
}

impl LibraryShared {
    fn adopt(&self, mut item: NewItem) -> Result<Item, Problem> {
        item.downloaded = true;
        *self.last_download.lock() = Some(Instant::now());
        let put = self.put_items(vec![item], build::ShareCause::Requested).pop();
        put.unwrap_or_else(|| Err(Problem::new(Reason::Internal, "nothing to share")))
            .map_err(|problem| match problem.reason {
                Reason::Busy => not_hashed(),
                _ => problem,
            })
    }
}

impl ContentSource for Library {
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        let content = content::LibraryContent::find(&self.shared, id)?;
        Some(Arc::new(content))
    }

    fn try_find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        let content = content::LibraryContent::try_find(&self.shared, id)?;
        Some(Arc::new(content))
    }

    fn on_bad_pieces(&self, pieces: BadPieces, source: ClientAddress) -> bool {
        self.shared.reports.push(pieces, source)
    }
}
