//! What the peer shares: files and folders in place, never copied, and whether they still are what they were hashed as.
//!
//! | module | its one job |
//! |---|---|
//! | `catalog` | the library in memory: items, files, where a copy of each is; pure |
//! | `content` | opens files for uploads, never one that changed |
//! | `scan` | walks of folders, their snapshots, the watch on the files folder |
//! | `hash` | from files to hashes and manifests, and who hashes first |
//! | `share` | puts items into the library, takes them out, publishes each change |
//! | `sync` | loads the library at start, and reconciles it with the disk |
//!
//! Invariants: a file is offered only under the id of the bytes that it has, as far as `stat` can tell; what the database says is
//! shared was on the disk before anybody was told. A shared folder is the collection that it was when it was shared: what is
//! changed in it makes it a new collection when that is noticed (on a read, at start, or by the check every few minutes);
//! files added to it are noticed only beneath the files folder, which is watched. What is shared outside the files folder stays an
//! item until its owner unshares it, whatever is at its path.

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

/// The folder in the peer's state for the manifests of collections, each named by its id.
const MANIFESTS: &str = "manifests";

/// Why the library cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder of the library.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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
    /// Files of it whose bytes are not what was hashed, although nothing shows a change; the first
    /// of them. Such an item is not offered to others.
    pub damaged: Vec<PathBuf>,
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
pub enum UnshareTarget {
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
    /// Items with a file whose bytes are not what was hashed.
    pub damaged: u64,
}

/// Most items of a page.
const MAX_PAGE: usize = 1000;

/// The library. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Library {
    shared: Arc<LibraryShared>,
}

/// Locks are taken in this order: `writing`, `watchers`, `catalog`; `open_files` alone, `manifest` last.
#[derive(Debug)]
pub(crate) struct LibraryShared {
    catalog: Mutex<Catalog>,
    /// Held while the catalog is changed and the change is stored and told, so that all see one order.
    writing: Mutex<()>,
    /// Held while a manifest is written: two at once would write to one file.
    manifest: Mutex<()>,
    store: Store,
    /// What could not be stored yet; `writing` is held where it changes.
    unsaved_changes: Mutex<publish::UnsavedChanges>,
    holdings: AnnounceSet,
    /// Absolute, without links.
    files_folder: PathBuf,
    hash_threads: usize,
    open_files: Mutex<content::OpenFiles>,
    /// Of files that somebody watches; dropping the sender tells them that the file is withdrawn.
    watchers: Mutex<HashMap<FileId, watch::Sender<u64>>>,
    foreground_hashers: priority::ForegroundHashers,
    activity: Activity,
    reports: reports::Reports,
    stale: Notify,
    sha256_needed: Notify,
    /// When the last download came.
    last_download: Mutex<Option<Instant>>,
    rescan: Notify,
    shutdown: CancellationToken,
}

impl LibraryShared {
    fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock()
    }

    /// The catalog, unless somebody is busy with it.
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

    /// Where a collection's manifest is kept.
    fn manifest_path(&self, id: &FileId) -> PathBuf {
        self.manifests().join(id.to_string())
    }

    fn is_in_files_folder(&self, path: &Path) -> bool {
        path.parent() == Some(&self.files_folder)
    }
}

impl Library {
    /// Opens the library with what is unchanged since the last time (told by `stat` alone); what changed is hashed again in the
    /// background, until `shutdown`. What is new in `files_folder` is looked for once [`Library::watch_files_folder`] says so. Blocks:
    /// use it off the async threads, within the runtime's context.
    ///
    /// # Errors
    /// Where the database or a folder cannot be read.
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

    /// Shares what is in the files folder from now on, and follows what changes there until the library is shut down. To be called once.
    pub fn watch_files_folder(&self, tracker: &TaskTracker) {
        files_folder::start(&self.shared, tracker);
    }

    /// Counts of what the peer moves, for those who move it: background work waits meanwhile.
    pub fn activity(&self) -> &Activity {
        &self.shared.activity
    }

    /// Shares files and folders in place, in order. Each ends in [`ShareEvent::Shared`] or at least one [`ShareEvent::Failed`];
    /// a folder with anything in it that cannot be shared is refused whole, and every problem told, up to a bound. Ends early
    /// when nobody receives the events any more.
    pub async fn share(&self, paths: Vec<PathBuf>, events: mpsc::Sender<ShareEvent>) {
        let shared = self.shared.clone();
        let ended = blocking(move || {
            batch::share_all(&shared, paths, &events);
        });
        // A failure is logged there, and the events end without a result.
        let _ = ended.await;
    }

    /// Shares a finished download without hashing it again. `stamp`: the file's, from a time since when nothing but a change of it can
    /// have made its bytes others than the tree says. `label`: what others call it, where its path is not to be told.
    ///
    /// # Errors
    /// `FILE_CHANGED` where the file at `path` has another stamp, or another size than the tree says; `STORE_UNAVAILABLE` and
    /// `DISK_FULL` where it cannot be remembered.
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

    /// Shares a finished download of a collection without hashing it again. `stamps` and `hashes`: of each entry of its manifest, the
    /// stamps from [`stamps_at`], before whatever was hashed was read.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where a hash is missing or another file's; `STORE_UNAVAILABLE` and `DISK_FULL` where it cannot be
    /// remembered.
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

    /// Hashes what is shared again, at most so many bytes a second (0: no limit), and tells what is
    /// not what it was hashed as. That is no longer offered to others. Ends early when nobody
    /// receives the events any more.
    pub async fn check(&self, targets: Vec<CheckTarget>, rate: u64, events: mpsc::Sender<CheckEvent>) {
        let shared = self.shared.clone();
        let check = move || shared.check_targets(&targets, rate, &events);
        // A failure is logged there, and the events end without a result.
        let _ = in_background("potluck-check", check).await;
    }

    /// Stops sharing; deletes no file. What a collection held goes too, unless something else shares it. What lies in the files
    /// folder is not shared by itself again.
    ///
    /// # Errors
    /// `NOT_FOUND`; `DISK_FULL` and `STORE_UNAVAILABLE` where it is no longer shared, but that could not be remembered: asked again,
    /// this remembers it.
    pub async fn unshare(&self, target: UnshareTarget) -> Result<Vec<Item>, Problem> {
        let shared = self.shared.clone();
        blocking(move || shared.unshare(&target)).await?
    }

    /// A page of what is shared, oldest first, and the token of the next page. `page_size` is held to 1..=1000.
    ///
    /// # Errors
    /// `INVALID_PAGE_TOKEN`.
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

    /// Sums over the library.
    pub fn totals(&self) -> Totals {
        self.shared.catalog().totals()
    }

    /// Where a current, unchanged copy of this file or collection is. Reads the disk: use it off the async threads.
    pub fn locate(&self, id: &FileId) -> Option<PathBuf> {
        self.shared.locate(id)
    }
}

/// A label that says something else than the path.
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
