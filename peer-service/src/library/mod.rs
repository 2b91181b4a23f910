//! The library: the files and folders that the peer shares. Files and folders are shared in place
//! and never copied.
//!
//! [`Library`] assembles the parts below and does nothing else. Each part owns its state and its
//! lock, and depends only on parts above it in this table:
//!
//! | module | purpose |
//! |---|---|
//! | `problems`, `files_folder` | problems with paths; rules for the files folder |
//! | `scan` | walks of folders, their snapshots, and comparisons by `stat` |
//! | `hash` | computes hashes and manifests of files, and the priority of hashing |
//! | `catalog_store` | `CatalogStore`: the catalog and its rows on disk; publishes every change |
//! | `share` | `ItemBuilder`: builds items from paths; share calls |
//! | `reconcile` | `Reconciler`: updates the catalog after changes on the disk |
//! | `serve` | `CopyOpener`: opens files for uploads, but never a changed one |
//! | `check` | `Checker`: hashes shared files again to find silent corruption |
//! | `sha256`, `maintenance` | background work |
//!
//! Invariants:
//! - A file is offered only under the id of its current bytes, as far as `stat` can tell.
//! - An answered change is on disk and announced. See `catalog_store` for the order of a change and
//!   the order of the locks.
//! - A shared folder is the collection that it was when it was shared. A changed file makes it a
//!   new collection as soon as the change is noticed: on a read, at start, or by the periodic
//!   check. Added files are noticed only in the files folder, which is watched.
//! - An item that its owner shared from outside the files folder stays until the owner unshares it,
//!   even if its path is replaced or removed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Problem, Reason, Sha256,
    collection::{manifest::Manifest, path::Label},
    grpc::limiter::ClientAddress,
    identity::merkle::FileTree,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod catalog_store;
mod check;
mod files_folder;
mod hash;
mod maintenance;
mod problems;
mod reconcile;
pub(crate) mod scan;
mod serve;
mod sha256;
mod share;
#[cfg(test)]
mod tests;

pub use crate::catalog::{
    Totals,
    item::Item,
    share_options::{LinkPolicy, ShareOptions},
    stamp::{Stamp, stamp_of},
};
pub use crate::library::{
    catalog_store::{UnshareTarget, manifests::stored_manifest},
    check::events::{CheckEvent, CheckTarget},
    hash::{
        entry_hashes::EntryHashes,
        identify::{Identified, identify},
    },
    problems::Refused,
    scan::{
        manifest_stamps::stamps_at,
        omissions::{Omission, OmissionKind, Omissions},
    },
    share::batch::ShareEvent,
};
use crate::{
    activity::Activity,
    announce::set::AnnounceSet,
    catalog::item::{ItemBody, NewItem, name_of},
    content::{BadPieces, Content, ContentSource},
    fs::blocking::{blocking, in_background},
    library::{
        catalog_store::{CatalogStore, PutCause},
        check::{Checker, reports::ReportQueue},
        files_folder::FilesFolder,
        hash::{
            backlog::{HashBacklog, HashWork},
            hasher::HashedFile,
            open::open_regular,
            priority::ForegroundHashers,
        },
        problems::file_changed,
        reconcile::{Reconciler, files_folder_scan::FilesFolderScan, load::load},
        scan::resolve::resolve,
        serve::{content::LibraryContent, copies::CopyOpener},
        sha256::Sha256Worker,
        share::{
            batch::share_all,
            builder::{ItemBuilder, file_item},
        },
    },
    store::{Store, StoreError},
};

/// Maximum number of items in a page.
const MAX_PAGE: usize = 1000;

/// The reason why the library cannot be opened.
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

/// The library. Clones are cheap and share one state.
#[derive(Debug, Clone)]
pub struct Library {
    catalog: Arc<CatalogStore>,
    builder: Arc<ItemBuilder>,
    reconciler: Arc<Reconciler>,
    copies: Arc<CopyOpener>,
    checker: Arc<Checker>,
    reports: Arc<ReportQueue>,
    sha256s: Arc<Sha256Worker>,
    hashers: Arc<ForegroundHashers>,
    activity: Activity,
    files_folder: FilesFolder,
    shutdown: CancellationToken,
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
        let hash_threads = hash_threads.max(1);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LibraryError::Folder { path, source }
        };
        let files_folder = FilesFolder::create(&files_folder).map_err(failed(&files_folder))?;
        let catalog = CatalogStore::new(store, announce_set);
        let manifests = catalog.manifests().folder();
        std::fs::create_dir_all(manifests).map_err(failed(manifests))?;
        load(&catalog, &files_folder, hash_threads)?;

        let builder = Arc::new(ItemBuilder::new(catalog.clone(), hash_threads));
        let reconciler = Arc::new(Reconciler::new(
            catalog.clone(),
            builder.clone(),
            files_folder.clone(),
            shutdown.clone(),
        ));
        let copies = Arc::new(CopyOpener::new(catalog.clone(), reconciler.clone()));
        let hashers = Arc::<ForegroundHashers>::default();
        let checker = Arc::new(Checker {
            catalog: catalog.clone(),
            builder: builder.clone(),
            reconciler: reconciler.clone(),
            copies: copies.clone(),
            backlog: hashers.backlog.clone(),
            shutdown: shutdown.clone(),
        });
        let activity = Activity::default();
        let sha256s = Arc::new(Sha256Worker::new(
            catalog.clone(),
            copies.clone(),
            hashers.clone(),
            activity.clone(),
            shutdown.clone(),
        ));
        let library = Self {
            catalog,
            builder,
            reconciler,
            copies,
            checker,
            reports: Arc::default(),
            sha256s,
            hashers,
            activity,
            files_folder,
            shutdown,
        };
        library.start(tracker);
        Ok(library)
    }

    /// Starts the background tasks.
    fn start(&self, tracker: &TaskTracker) {
        let Self {
            catalog,
            reconciler,
            checker,
            reports,
            sha256s,
            shutdown,
            ..
        } = self.clone();
        tracker.spawn(reconciler.clone().run());
        tracker.spawn(sha256s.run());
        tracker.spawn(reports.run(checker, shutdown.clone()));
        tracker.spawn(maintenance::run(catalog, reconciler, shutdown));
    }

    /// Shares the content of the files folder and follows changes in it until shutdown. Call it
    /// once.
    pub fn watch_files_folder(&self, tracker: &TaskTracker) {
        let scan = self.files_folder_scan();
        tracker.spawn(scan.run());
    }

    /// What waits to be hashed.
    pub(crate) fn hash_backlog(&self) -> &HashBacklog {
        &self.hashers.backlog
    }

    /// The counters of bytes that the peer uploads and downloads. Uploads and downloads update
    /// them; background work waits while they grow.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Shares files and folders in place, in order.
    ///
    /// Each path ends in [`ShareEvent::Shared`] or in at least one [`ShareEvent::Failed`]. What is
    /// left out of a folder is reported before it is; strict options refuse the folder instead, and
    /// report every problem, up to a limit. The options are kept with each folder, for the time
    /// when it is read again. Stops early if `events` is closed.
    pub async fn share(
        &self,
        paths: Vec<PathBuf>,
        options: ShareOptions,
        events: mpsc::Sender<ShareEvent>,
    ) {
        let library = self.clone();
        let share = move || {
            let _hashing = library.hashers.begin();
            let is_stopping = || library.shutdown.is_cancelled();
            let (catalog, builder) = (&library.catalog, &library.builder);
            let backlog = library.hashers.backlog.begin(HashWork::Share);
            share_all(catalog, builder, paths, &options, &events, &is_stopping, &backlog);
        };
        // A panic is logged in `blocking`; the events then end without a result.
        let _ = blocking(share).await;
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
        let library = self.clone();
        blocking(move || {
            let path = resolve(&path)?;
            let (_, now) = open_regular(&path)?;
            let mut item = file_item(&path, HashedFile { tree, stamp });
            if now != stamp || stamp.size != item.record.size {
                return Err(file_changed(&item.record.id));
            }
            item.record.sha256 = sha256.or(item.record.sha256);
            item.label = label_beside_path(&path, label);
            library.adopt(item)
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
        let library = self.clone();
        blocking(move || {
            let root = resolve(&root)?;
            let mut item = library.builder.collection_item(&root, manifest, stamps, hashes)?;
            item.label = label_beside_path(&root, label);
            match &item.body {
                ItemBody::Collection(folder) if folder.ids_match_roots() => library.adopt(item),
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
    pub async fn check(
        &self,
        targets: Vec<CheckTarget>,
        rate: u64,
        events: mpsc::Sender<CheckEvent>,
    ) {
        let checker = self.checker.clone();
        let check = move || checker.check_targets(&targets, rate, &events);
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
        let library = self.clone();
        blocking(move || library.catalog.unshare(&target, &library.files_folder)).await?
    }

    /// Stops sharing the download at this path, unless its owner asked to share it.
    ///
    /// # Errors
    /// `DISK_FULL`, `STORE_UNAVAILABLE`: the change could not be stored.
    pub async fn unshare_download(&self, path: PathBuf) -> Result<(), Problem> {
        let library = self.clone();
        blocking(move || {
            let path = resolve(&path)?;
            library.catalog.unshare_download(path, &library.files_folder)
        })
        .await?
    }

    /// Stops sharing what is at this path of the cache. False, and nothing changes, if its owner shares
    /// it, alone or as part of a folder. Blocks.
    pub(crate) fn release_cached(&self, path: &Path) -> bool {
        let is_folder = path.is_dir();
        self.catalog.release_cached(path, is_folder)
    }

    /// Whether the owner asked to share what is at this path, alone or as part of a folder. Blocks.
    pub(crate) fn is_requested_at(&self, path: &Path) -> bool {
        self.catalog.read().is_requested_at(path, true)
    }

    /// The path of an item with this file that is directly in `folder`.
    pub(crate) fn item_below(&self, id: &FileId, folder: &Path) -> Option<Arc<Path>> {
        self.catalog.read().item_below(id, folder)
    }

    /// As [`Library::item_below`], but `None` if the answer is not known without waiting.
    pub(crate) fn try_item_below(&self, id: &FileId, folder: &Path) -> Option<Option<Arc<Path>>> {
        Some(self.catalog.try_read()?.item_below(id, folder))
    }

    /// Keeps the scan of the files folder from sharing this path, as if its owner had unshared it.
    /// Does nothing if the path is elsewhere, or is shared.
    ///
    /// # Errors
    /// `DISK_FULL`, `STORE_UNAVAILABLE`: the change could not be stored.
    pub async fn keep_unshared(&self, path: PathBuf) -> Result<(), Problem> {
        let library = self.clone();
        blocking(move || {
            let path = resolve(&path)?;
            library.catalog.keep_unshared(path, &library.files_folder)
        })
        .await?
    }

    /// A page of items, oldest first, and the token of the next page. `page_size` is clamped to
    /// 1..=1000.
    ///
    /// # Errors
    /// `INVALID_PAGE_TOKEN`: this library did not issue the token.
    pub fn list(
        &self,
        page_size: usize,
        token: &str,
    ) -> Result<(Vec<Item>, Option<String>), Problem> {
        let after = match token {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Problem::new(
                    Reason::InvalidPageToken,
                    "this peer did not issue this page token",
                )
                .field("page_token")
            })?),
        };
        let catalog = self.catalog.read();
        let mut items = catalog.items_after(after).peekable();
        let mut page = Vec::new();
        let mut last = None;
        for (number, _) in items.by_ref().take(page_size.clamp(1, MAX_PAGE)) {
            page.extend(catalog.item_with_damage(number));
            last = Some(number);
        }
        let next = last
            .filter(|_| items.peek().is_some())
            .map(|number: u64| number.to_string());
        Ok((page, next))
    }

    /// Totals over the library.
    pub fn totals(&self) -> Totals {
        self.catalog.read().totals()
    }

    /// The path of an unchanged copy of this file or collection. Reads the disk: call it off the
    /// async threads.
    pub fn locate(&self, id: &FileId) -> Option<PathBuf> {
        self.copies.locate(id)
    }

    fn files_folder_scan(&self) -> FilesFolderScan {
        FilesFolderScan {
            catalog: self.catalog.clone(),
            builder: self.builder.clone(),
            reconciler: self.reconciler.clone(),
            hashers: self.hashers.clone(),
            files_folder: self.files_folder.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    /// Shares a finished download.
    fn adopt(&self, mut item: NewItem) -> Result<Item, Problem> {
        item.is_unrequested = true;
        self.sha256s.on_download();
        let result = self.catalog.put_items(vec![item], PutCause::Requested).pop();
        result
            .unwrap_or_else(|| Err(Problem::new(Reason::Internal, "there is no item to share")))
            .map_err(|problem| match problem.reason {
                Reason::Busy => not_hashed(),
                _ => problem,
            })
    }
}

/// The label, unless it equals the name that the path gives.
fn label_beside_path(path: &Path, label: Option<Label>) -> Option<Label> {
    label.filter(|label| label.as_str() != name_of(path))
}

fn not_hashed() -> Problem {
    Problem::new(Reason::InvalidArgument, "a file of the collection was not hashed")
}

impl ContentSource for Library {
    fn find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        Some(Arc::new(LibraryContent::find(&self.copies, id)?))
    }

    fn try_find(&self, id: &FileId) -> Option<Arc<dyn Content>> {
        Some(Arc::new(LibraryContent::try_find(&self.copies, id)?))
    }

    fn on_bad_pieces(&self, pieces: BadPieces, source: ClientAddress) -> bool {
        self.reports.push(pieces, source)
    }
}
