//! Shares the content of the files folder: each file at its top level as a file, each folder as a
//! collection.
//!
//! Every change leads to one pass over the whole folder, which compares it with the library. A lost
//! event is therefore harmless. If the operating system reports no events, passes run at a fixed
//! interval. The rest after a pass is a multiple of its duration.
//!
//! Invariant: no file is shared while it changes. Either its last change was [`IDLE_BEFORE_HASH`]
//! ago, or two passes that far apart saw the same fingerprint.

use std::{
    collections::{HashMap, HashSet},
    fs::Metadata,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::AccessKind,
    event::AccessMode,
};
use parking_lot::Mutex;
use potluck_core::Reason;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{
        item::ItemBody,
        stamp::{Stamp, stamp_of},
    },
    library::{
        catalog_store::{CatalogStore, PutCause},
        files_folder::FilesFolder,
        hash::{
            backlog::HashWork,
            hasher::{HashResult, hash_many},
            observer::HashObserver,
            open::BaseFolder,
            priority::ForegroundHashers,
        },
        problems::{Refused, not_a_regular_file, single_refusal, unreadable},
        reconcile::{IDLE_BEFORE_HASH, Reconciler, is_idle},
        scan::snapshot::{Snapshot, fingerprint, is_same, latest_change},
        share::builder::{ItemBuilder, file_item},
    },
};

/// How long events are collected before a pass.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Interval of passes if the operating system reports no changes.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Rest after a pass, as a multiple of its duration: a huge folder that changes constantly costs a
/// fifth of one core.
const REST_FACTOR: u32 = 4;

/// First and maximum delay before a path is tried again that could not be shared for a transient
/// reason, such as a full disk. The delay doubles each time, because each attempt hashes everything
/// again.
const MIN_RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(120);

/// Maximum number of files hashed and added in one batch.
const MAX_BATCH: usize = 512;

/// Suffixes of names that are not shared, besides hidden files: files that are still being written.
const SKIPPED: [&str; 3] = [".part", ".part.state", ".tmp"];

fn is_skipped(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b".") || SKIPPED.iter().any(|end| name.ends_with(end.as_bytes()))
}

/// Scans the files folder and shares its content. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct FilesFolderScan {
    pub(crate) catalog: Arc<CatalogStore>,
    pub(crate) builder: Arc<ItemBuilder>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) hashers: Arc<ForegroundHashers>,
    pub(crate) files_folder: FilesFolder,
    pub(crate) shutdown: CancellationToken,
}

impl FilesFolderScan {
    /// Makes the first pass, and another after each change, until shutdown.
    pub(crate) async fn run(self) {
        let mut scanner = Some(FolderScanner::default());
        let watching = {
            let scan = self.clone();
            // Watching a deep folder takes a while.
            tokio::task::spawn_blocking(move || scan.start_watching())
        };
        let watcher = tokio::select! {
            watcher = watching => watcher.ok().flatten(),
            () = self.shutdown.cancelled() => return,
        };
        loop {
            let Some(mut taken) = scanner.take() else {
                return;
            };
            let started = Instant::now();
            let pass = tokio::task::spawn_blocking({
                let scan = self.clone();
                move || {
                    let delay = taken.scan(&scan);
                    (taken, delay)
                }
            });
            // Not cancelled from here: the pass notices the shutdown itself, and nothing may use
            // the database after this task ends.
            let delay = match pass.await {
                Ok((taken, delay)) => {
                    scanner = Some(taken);
                    delay
                }
                Err(error) => {
                    tracing::error!(%error, "the scan of the files folder failed");
                    scanner = Some(FolderScanner::default());
                    Some(SCAN_INTERVAL)
                }
            };
            let delay = match watcher {
                Some(_) => delay,
                None => Some(delay.unwrap_or(SCAN_INTERVAL).min(SCAN_INTERVAL)),
            };
            let rest = (started.elapsed() * REST_FACTOR).max(DEBOUNCE);
            // All branches are cancel-safe: a notification that was taken leads to a pass.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.reconciler.rescan_requested() => {}
                () = tokio::time::sleep(delay.unwrap_or(Duration::MAX)) => {}
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Subscribes to changes from the operating system; `None` if that fails.
    fn start_watching(&self) -> Option<RecommendedWatcher> {
        let reconciler = Arc::downgrade(&self.reconciler);
        let on_event = move |event: notify::Result<notify::Event>| {
            if let Some(reconciler) = reconciler.upgrade()
                && !event.as_ref().is_ok_and(|event| is_read(&event.kind))
            {
                reconciler.request_rescan();
            }
        };
        let folder = self.files_folder.path();
        let watching =
            RecommendedWatcher::new(on_event, notify::Config::default()).and_then(|mut watcher| {
                watcher.watch(folder, RecursiveMode::Recursive)?;
                Ok(watcher)
            });
        watching
            .inspect_err(|error| {
                let hint = match error.kind {
                    notify::ErrorKind::MaxFilesWatch => {
                        "; the system allows no more watches: raise fs.inotify.max_user_watches"
                    }
                    _ => "",
                };
                tracing::warn!(
                    folder = %folder.display(), %error,
                    "the files folder cannot be watched: it is scanned every {SCAN_INTERVAL:?}{hint}"
                );
            })
            .ok()
    }
}

/// Whether the event is a read. Reads are ignored: they change nothing, and hashing itself reads.
fn is_read(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Access(kind) if *kind != AccessKind::Close(AccessMode::Write))
}

/// State kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct FolderScanner {
    /// Paths that still change: the last fingerprint, and since when it is the same.
    pending: HashMap<PathBuf, (u64, Instant)>,
    /// Paths that cannot be shared.
    rejected: HashMap<PathBuf, RejectedPath>,
    /// Whether a pass was made.
    has_scanned: bool,
}

/// A path that could not be shared.
#[derive(Debug, Clone, Copy)]
struct RejectedPath {
    /// The fingerprint when it was rejected.
    fingerprint: u64,
    /// The time of the next attempt, and the delay before it. `None`: only after its fingerprint
    /// changes.
    retry: Option<(Instant, Duration)>,
}

impl RejectedPath {
    /// Rejects a path with this fingerprint. `before` is the previous rejection of the same path,
    /// which determines the delay.
    fn new(fingerprint: u64, is_transient: bool, before: Option<&Self>, now: Instant) -> Self {
        let last = before
            .filter(|before| before.fingerprint == fingerprint)
            .and_then(|before| before.retry);
        let delay = last.map_or(MIN_RETRY, |(_, delay)| (2 * delay).min(MAX_RETRY));
        Self {
            fingerprint,
            retry: is_transient.then(|| (now + delay, delay)),
        }
    }

    /// Time until a path with this fingerprint is tried again; `None` if it is tried now.
    fn remaining_delay(&self, fingerprint: u64, now: Instant) -> Option<Duration> {
        if self.fingerprint != fingerprint {
            return None;
        }
        match self.retry {
            None => Some(Duration::MAX),
            Some((at, _)) => Some(at.saturating_duration_since(now)).filter(|left| !left.is_zero()),
        }
    }
}

/// A path at the top level that is new or changed.
enum FolderCandidate {
    File(PathBuf, Stamp),
    Folder(PathBuf, Snapshot),
    Refused(PathBuf, Vec<Refused>),
}

impl FolderCandidate {
    fn path(&self) -> &Path {
        match self {
            Self::File(path, _) | Self::Folder(path, _) | Self::Refused(path, _) => path,
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::File(_, stamp) => stamp.hash(&mut hasher),
            Self::Folder(_, snapshot) => return fingerprint(snapshot),
            Self::Refused(_, refused) => {
                for (path, problem) in refused {
                    (path, &problem.message).hash(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::File(_, stamp) => is_idle(stamp.ctime.max(stamp.mtime)),
            Self::Folder(_, snapshot) => is_idle(latest_change(snapshot)),
            Self::Refused(..) => true,
        }
    }
}

impl FolderScanner {
    /// Makes one pass: compares the folder with the library and shares what is new or changed.
    /// Returns the delay until the next pass, if one is needed without an event.
    pub(crate) fn scan(&mut self, scan: &FilesFolderScan) -> Option<Duration> {
        let listing = match list(scan.files_folder.path()) {
            Ok(listing) => listing,
            Err(error) => {
                let folder = scan.files_folder.path().display();
                tracing::warn!(%folder, %error, "the files folder cannot be read");
                return Some(SCAN_INTERVAL);
            }
        };
        // The library was just loaded and every file in it checked, so the first pass looks only
        // for new files. A full pass follows for changes from before the watch.
        let first = !std::mem::replace(&mut self.has_scanned, true);
        if !first {
            remove_missing(scan, &listing);
        }
        self.pending.retain(|path, _| listing.contains(path));
        self.rejected.retain(|path, _| listing.contains(path));
        let mut next_pass = first.then_some(SCAN_INTERVAL);
        let sooner = |next_pass: Option<Duration>, delay: Duration| {
            Some(next_pass.map_or(delay, |at| at.min(delay)))
        };
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for path in &listing {
            if scan.shutdown.is_cancelled() {
                return None;
            }
            if first && is_known_file(scan, path) {
                continue;
            }
            let Some(candidate) = inspect(scan, path) else {
                self.pending.remove(path);
                continue;
            };
            let fingerprint = candidate.fingerprint();
            let refused = self.rejected.get(path);
            if let Some(rest) =
                refused.and_then(|refused| refused.remaining_delay(fingerprint, Instant::now()))
            {
                if rest < Duration::MAX {
                    next_pass = sooner(next_pass, rest);
                }
                continue;
            }
            if !self.has_settled(&candidate, fingerprint) {
                next_pass = sooner(next_pass, IDLE_BEFORE_HASH);
                continue;
            }
            match candidate {
                FolderCandidate::File(path, stamp) => files.push((path, stamp)),
                FolderCandidate::Folder(path, snapshot) => folders.push((path, snapshot)),
                FolderCandidate::Refused(path, refused) => {
                    if let Some(delay) = self.reject(path, fingerprint, &refused) {
                        next_pass = sooner(next_pass, delay);
                    }
                }
            }
        }
        let _hashing = scan.hashers.begin();
        for batch in files.chunks(MAX_BATCH) {
            if let Some(delay) = self.share_files(scan, batch) {
                next_pass = sooner(next_pass, delay);
            }
        }
        for (path, snapshot) in folders {
            if scan.shutdown.is_cancelled() {
                return None;
            }
            let fingerprint = fingerprint(&snapshot);
            match share_folder(scan, &path, snapshot) {
                Ok(()) => {
                    self.pending.remove(&path);
                    self.rejected.remove(&path);
                }
                Err(refused) if is_changing(&refused) => {
                    next_pass = sooner(next_pass, IDLE_BEFORE_HASH)
                }
                Err(_) if scan.shutdown.is_cancelled() => return None,
                Err(refused) => {
                    if let Some(delay) = self.reject(path, fingerprint, &refused) {
                        next_pass = sooner(next_pass, delay);
                    }
                }
            }
        }
        next_pass
    }

    /// Whether a path is rejected.
    #[cfg(test)]
    pub(crate) fn has_rejected(&self, path: &Path) -> bool {
        self.rejected.contains_key(path)
    }

    /// Whether a candidate has stopped changing.
    fn has_settled(&mut self, candidate: &FolderCandidate, fingerprint: u64) -> bool {
        if candidate.is_idle() {
            return true;
        }
        let now = Instant::now();
        let (stat, since) = self
            .pending
            .entry(candidate.path().to_owned())
            .or_insert((fingerprint, now));
        if *stat != fingerprint {
            (*stat, *since) = (fingerprint, now);
        }
        since.elapsed() >= IDLE_BEFORE_HASH
    }

    /// Rejects a path. Returns the delay until it is tried again unchanged, if it is.
    fn reject(&mut self, path: PathBuf, fingerprint: u64, refused: &[Refused]) -> Option<Duration> {
        let before = self.rejected.get(&path);
        // Logged once, however often it is tried.
        if before.is_none_or(|before| before.fingerprint != fingerprint) {
            for (path, problem) in refused.iter().take(10) {
                tracing::warn!(path = %path.display(), %problem, "not shared");
            }
        }
        let refusal = RejectedPath::new(fingerprint, is_transient(refused), before, Instant::now());
        self.pending.remove(&path);
        self.rejected.insert(path, refusal);
        refusal.retry.map(|(_, delay)| delay)
    }

    /// Shares files. Returns the delay until the earliest retry, if any file failed for a transient
    /// reason.
    fn share_files(
        &mut self,
        scan: &FilesFolderScan,
        files: &[(PathBuf, Stamp)],
    ) -> Option<Duration> {
        let mut items = Vec::new();
        let mut refused = Vec::new();
        let mut ready = Vec::new();
        for (path, stamp) in files {
            match scan.builder.check_location(path) {
                Ok(()) => ready.push((path, *stamp)),
                Err(problem) => refused.push((path, problem)),
            }
        }
        let is_cancelled = || scan.shutdown.is_cancelled();
        let backlog = scan.hashers.backlog.begin(HashWork::Share);
        backlog.add(ready.iter().map(|(_, stamp)| stamp.size).sum());
        let observer = HashObserver {
            on_progress: &|_, bytes| backlog.finish(bytes),
            ..HashObserver::silent(&is_cancelled)
        };
        let results = Mutex::new(Vec::with_capacity(ready.len()));
        let file = |index: usize| {
            let (path, stamp): &(&PathBuf, Stamp) = &ready[index];
            (path.as_path(), Some(*stamp))
        };
        let on_done = |outcomes: Vec<HashResult<'_>>| {
            let outcomes = outcomes.into_iter().map(|(index, _, result)| (index, result));
            results.lock().extend(outcomes);
        };
        let (base, count, threads) =
            (BaseFolder::default(), ready.len(), scan.builder.hash_threads());
        if !hash_many(&base, count, &file, &|_, _, _| true, &on_done, threads, &observer) {
            return None;
        }
        let mut results = results.into_inner();
        results.sort_unstable_by_key(|(index, _)| *index);
        for (index, result) in results {
            let (path, _) = ready[index];
            match result {
                Ok(done) => items.push(file_item(path, done)),
                Err(problem) => refused.push((path, problem)),
            }
        }
        for result in scan.catalog.put_items(items, PutCause::InFilesFolder) {
            match result {
                Err(problem) if problem.reason == Reason::Cancelled => tracing::debug!(%problem),
                Ok(item) => {
                    tracing::info!(path = %item.path.display(), id = %item.record.id, "shared");
                    self.pending.remove(&*item.path);
                    self.rejected.remove(&*item.path);
                }
                // It is shared now and will be stored as soon as that works.
                Err(problem) => {
                    tracing::warn!(%problem, "a file in the files folder is shared but not stored")
                }
            }
        }
        let mut next_pass: Option<Duration> = None;
        for (path, problem) in refused {
            // A changed file comes back with another stamp; a removed one is not in the next
            // listing.
            if !matches!(problem.reason, Reason::FileChanged | Reason::NotFound) {
                let stamp = files
                    .iter()
                    .find(|(other, _)| other == path)
                    .map(|(_, stamp)| *stamp);
                let candidate = FolderCandidate::File(path.clone(), stamp.unwrap_or_default());
                let refused = [(path.clone(), problem)];
                if let Some(delay) = self.reject(path.clone(), candidate.fingerprint(), &refused) {
                    next_pass = Some(next_pass.map_or(delay, |at| at.min(delay)));
                }
            }
        }
        next_pass
    }
}

/// The paths at the top level of the folder.
fn list(folder: &Path) -> io::Result<HashSet<PathBuf>> {
    std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

/// Removes items and tombstones whose paths are gone from the folder.
fn remove_missing(scan: &FilesFolderScan, listing: &HashSet<PathBuf>) {
    let gone: Vec<u64> = {
        let catalog = scan.catalog.read();
        let items = catalog.items_after(None);
        items
            .filter(|(_, item)| {
                scan.files_folder.has_item_at(&item.path) && !listing.contains(&*item.path)
            })
            .map(|(number, _)| number)
            .collect()
    };
    scan.reconciler.remove_gone(gone);
    scan.reconciler.remove_gone_tombstones(listing);
}

/// Whether the refusal is transient: a full disk, too many open files, a disk or database that does
/// not respond.
fn is_transient(refused: &[Refused]) -> bool {
    let is_transient = |reason: Reason| {
        reason.is_exhaustion() || matches!(reason, Reason::StoreUnavailable | Reason::Internal)
    };
    refused.iter().any(|(_, problem)| is_transient(problem.reason))
}

/// Whether the path, or an item that it relied on, changed during the attempt.
fn is_changing(refused: &[Refused]) -> bool {
    refused
        .iter()
        .any(|(_, problem)| matches!(problem.reason, Reason::FileChanged | Reason::Busy))
}

fn is_known_file(scan: &FilesFolderScan, path: &Path) -> bool {
    let catalog = scan.catalog.read();
    let known = catalog.item_at(path).filter(|&number| !catalog.is_stale(number));
    known
        .and_then(|number| catalog.item(number))
        .is_some_and(|item| matches!(item.body, ItemBody::File(_)))
}

/// The candidate at a path; `None` if it must not be shared or is shared unchanged.
fn inspect(scan: &FilesFolderScan, path: &Path) -> Option<FolderCandidate> {
    let (known_body, is_stale) = {
        let catalog = scan.catalog.read();
        if catalog.is_tombstoned(path) {
            return None;
        }
        let number = catalog.item_at(path);
        let body = number
            .and_then(|number| catalog.item(number))
            .map(|item| item.body.clone());
        (body, number.is_some_and(|number| catalog.is_stale(number)))
    };
    // An item that its owner shared explicitly is kept up to date regardless of its name.
    if known_body.is_none() && is_skipped(path) {
        return None;
    }
    let metadata: Metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return None,
        Err(error) => {
            let refused = single_refusal(path, unreadable(&error));
            return Some(FolderCandidate::Refused(path.into(), refused));
        }
    };
    if metadata.is_dir() {
        match scan.builder.walk_and_stat(path) {
            Ok(snapshot) => match &known_body {
                Some(ItemBody::Collection(folder))
                    if !is_stale
                        && is_same(&snapshot, &folder.manifest, &folder.members.stamps) =>
                {
                    None
                }
                _ => Some(FolderCandidate::Folder(path.into(), snapshot)),
            },
            Err(refused) => Some(FolderCandidate::Refused(path.into(), refused)),
        }
    } else if metadata.is_file() {
        let stamp = stamp_of(&metadata);
        match known_body {
            Some(ItemBody::File(known)) if !is_stale && known == stamp => None,
            _ => Some(FolderCandidate::File(path.into(), stamp)),
        }
    } else {
        let refused = single_refusal(path, not_a_regular_file(metadata.file_type()));
        Some(FolderCandidate::Refused(path.into(), refused))
    }
}

fn share_folder(
    scan: &FilesFolderScan,
    path: &Path,
    snapshot: Snapshot,
) -> Result<(), Vec<Refused>> {
    let is_cancelled = || scan.shutdown.is_cancelled();
    let backlog = scan.hashers.backlog.begin(HashWork::Share);
    let observer = HashObserver {
        on_size: &|bytes| backlog.add(bytes),
        on_progress: &|_, bytes| backlog.finish(bytes),
        is_cancelled: &is_cancelled,
    };
    scan.builder
        .check_location(path)
        .map_err(|problem| single_refusal(path, problem))?;
    let options = scan.builder.options_of(path);
    let built = scan
        .builder
        .build_collection(path, &options, snapshot, &observer)?;
    built.omitted.warn(path);
    for result in scan.catalog.put_items(vec![built.item], PutCause::InFilesFolder) {
        match result {
            Err(problem) if problem.reason == Reason::Cancelled => tracing::debug!(%problem),
            Ok(item) => {
                tracing::info!(path = %path.display(), id = %item.record.id, "shared as a collection")
            }
            Err(problem) => return Err(single_refusal(path, problem)),
        }
    }
    Ok(())
}
