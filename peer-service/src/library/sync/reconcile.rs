//! The background tasks of the library:
//!
//! - check changed and offline items again;
//! - check all items by `stat` at an interval;
//! - compute missing plain SHA-256s, slowly while a share hashes;
//! - check pieces that other peers report as bad;
//! - close idle files and store changes that could not be stored before.

use std::{
    collections::{HashMap, HashSet},
    fs::Metadata,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use potluck_core::{FileId, Sha256, identity::hash};
use tokio_util::task::TaskTracker;

use crate::{
    fs::blocking::in_background,
    library::{
        LibraryShared,
        catalog::{Delta, EntryIndex, ItemBody, Location, WHOLE_ITEM},
        content::OPEN_FILE_IDLE,
        hash::{open::open_regular, priority::BackgroundTurns},
        scan::{
            snapshot::newest,
            walk::{is_gone, stamp_of, walk},
        },
        share::build::{ShareCause, ShareObserver},
        sync::load::changed_entries,
    },
};

/// How long a file must be unchanged before it is hashed again.
pub(crate) const IDLE_BEFORE_HASH: Duration = Duration::from_secs(1);

/// Delay before an item that still changes is checked again.
const RETRY_CHANGING: Duration = Duration::from_secs(1);

/// Delay before an item that cannot be read is checked again.
pub(crate) const RETRY_FAILED: Duration = Duration::from_secs(60);

/// Interval of the check of all items by `stat`. Without it, a removed file would stay announced
/// until a peer requests it.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Minimum time from a download to the computation of its plain SHA-256: other peers still download
/// the same file, and nothing waits for the SHA-256.
const AFTER_DOWNLOAD: Duration = Duration::from_secs(20);

/// Minimum time from a share to the computation: the share's caller gets its answer first.
const AFTER_SHARE: Duration = Duration::from_millis(20);

/// Maximum number of SHA-256s stored in one batch, and how long the first may wait.
const BATCH_SHA256S: usize = 512;
const BATCH_TIME: Duration = Duration::from_secs(1);

/// Starts all background tasks.
pub(crate) fn start(shared: &Arc<LibraryShared>, tracker: &TaskTracker) {
    tracker.spawn(refresh_loop(shared.clone()));
    tracker.spawn(sha256_loop(shared.clone()));
    tracker.spawn(sweep_loop(shared.clone()));
    tracker.spawn(report_loop(shared.clone()));
}

/// Runs blocking work. `None` on shutdown, but only after the work has ended: nothing may use the
/// database after the tasks end.
async fn run_blocking<T: Send + 'static>(
    shared: &Arc<LibraryShared>,
    work: impl FnOnce(&LibraryShared) -> T + Send + 'static,
) -> Option<T> {
    let shutdown = shared.shutdown.clone();
    let shared = shared.clone();
    let done = tokio::task::spawn_blocking(move || work(&shared)).await.ok();
    done.filter(|_| !shutdown.is_cancelled())
}

/// The result of checking a stale item again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshOutcome {
    Done,
    Changing,
    Failed,
}

async fn refresh_loop(shared: Arc<LibraryShared>) {
    let mut looked: Option<Instant> = None;
    loop {
        // There may be many offline items, and changing items are checked every second.
        let include_offline = looked.is_none_or(|at| at.elapsed() >= RETRY_FAILED);
        if include_offline {
            looked = Some(Instant::now());
        }
        let pass = move |shared: &LibraryShared| refresh(shared, include_offline);
        let Some(delay) = run_blocking(&shared, pass).await else {
            return;
        };
        // All branches are cancel-safe: a notification that was taken leads to a pass.
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.stale.notified() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Checks each stale item again; the offline ones only if `include_offline`. Returns the delay
/// until the next pass.
pub(crate) fn refresh(shared: &LibraryShared, include_offline: bool) -> Duration {
    let mut delay = CHECK_INTERVAL;
    // A separate statement: the catalog must not stay locked in the loop.
    let stale = shared.catalog().stale_numbers();
    for number in stale {
        if shared.shutdown.is_cancelled() {
            break;
        }
        if !include_offline && shared.catalog().is_offline(number) {
            delay = delay.min(RETRY_FAILED);
            continue;
        }
        match shared.refresh_one(number) {
            RefreshOutcome::Done => {}
            RefreshOutcome::Changing => delay = delay.min(RETRY_CHANGING),
            RefreshOutcome::Failed => delay = delay.min(RETRY_FAILED),
        }
    }
    delay
}

impl LibraryShared {
    pub(crate) fn refresh_one(&self, number: u64) -> RefreshOutcome {
        let (path, downloaded) = match self.catalog().item(number) {
            Some(shared) => (shared.path.clone(), shared.downloaded),
            None => return RefreshOutcome::Done,
        };
        if self.is_in_files_folder(&path) {
            // A scan of the files folder handles its items.
            self.rescan.notify_one();
            return RefreshOutcome::Done;
        }
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error) if is_gone(&error) && self.survives_offline(&path, downloaded) => {
                if !self.catalog().is_offline(number) {
                    self.mark_offline(number);
                }
                return RefreshOutcome::Failed;
            }
            Err(error) if is_gone(&error) => {
                self.drop_gone(vec![number]);
                return RefreshOutcome::Done;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a shared path cannot be read");
                return RefreshOutcome::Failed;
            }
        };
        let was_away = self.catalog().set_online(number);
        if self.catalog().is_damaged(number) {
            return RefreshOutcome::Done;
        }
        if !self.is_idle_at(&path, &metadata) {
            return RefreshOutcome::Changing;
        }
        let watch = ShareObserver {
            on_size: &|_| {},
            on_progress: &|_, _| {},
            is_cancelled: &|| self.shutdown.is_cancelled(),
        };
        match self.share_path(&path, ShareCause::Changed(number), &watch) {
            Ok(item) => {
                let what = match was_away {
                    true => "what was away is shared again",
                    false => "what changed is hashed and shared again",
                };
                tracing::info!(path = %path.display(), id = %item.record.id, "{what}");
                RefreshOutcome::Done
            }
            Err(_) if self.shutdown.is_cancelled() || self.catalog().item(number).is_none() => {
                RefreshOutcome::Done
            }
            Err(refused) => {
                for (path, problem) in refused.iter().take(5) {
                    tracing::warn!(path = %path.display(), %problem, "a changed path is not shared");
                }
                let changing = potluck_core::Reason::FileChanged;
                match refused.iter().all(|(_, problem)| problem.reason == changing) {
                    true => RefreshOutcome::Changing,
                    false => RefreshOutcome::Failed,
                }
            }
        }
    }

    /// Whether nothing was written there for [`IDLE_BEFORE_HASH`]; for a folder, to any of its
    /// files. True if it cannot be read: the attempt to share it then reports the problem.
    fn is_idle_at(&self, path: &Path, metadata: &Metadata) -> bool {
        if !metadata.is_dir() {
            return is_idle(stamp_of(metadata).ctime);
        }
        let snapshot = walk(path, self.hash_threads).and_then(|mut snapshot| {
            snapshot.stat_all(path, self.hash_threads)?;
            Ok(newest(&snapshot))
        });
        snapshot.map_or(true, is_idle)
    }

    /// Removes the items in `numbers` whose paths are gone. Checks the paths itself: a path may
    /// have come back since the caller looked, such as that of a download that just ended.
    pub(crate) fn drop_gone(&self, mut numbers: Vec<u64>) {
        if numbers.is_empty() {
            return;
        }
        let _writing = self.writing();
        numbers.retain(|&number| {
            // A separate statement: the catalog must not stay locked during disk access.
            let path = self.catalog().item(number).map(|shared| shared.path.clone());
            path.is_some_and(|path| path.metadata().is_err_and(|error| is_gone(&error)))
        });
        let mut delta = Delta::default();
        let mut catalog = self.catalog();
        for number in numbers {
            if let Some(item) = catalog.remove(number, &mut delta) {
                tracing::info!(path = %item.path.display(), id = %item.record.id, "no longer there: no longer shared");
            }
        }
        drop(catalog);
        // `publish` logs a failure. At the next start `stat` shows the same.
        let _ = self.publish(delta);
    }

    /// Removes tombstones whose paths are gone: not in `there`, and not created since.
    pub(crate) fn remove_gone_tombstones(&self, there: &HashSet<PathBuf>) {
        let _writing = self.writing();
        let mut gone = self.catalog().tombstones_besides(there);
        gone.retain(|path| path.symlink_metadata().is_err_and(|error| is_gone(&error)));
        let mut delta = Delta::default();
        let mut catalog = self.catalog();
        gone.into_iter()
            .for_each(|path| catalog.remove_tombstone(path, &mut delta));
        drop(catalog);
        if !delta.is_empty() {
            let _ = self.publish(delta);
        }
    }

    /// Withdraws every copy whose `stat` changed.
    pub(crate) fn check_all(&self) {
        let mut last = None;
        while let Some((number, path, body)) = self.item_after(last) {
            if self.shutdown.is_cancelled() {
                return;
            }
            last = Some(number);
            let changed = match &body {
                ItemBody::File(stamp) => {
                    let now = path.metadata().ok().map(|metadata| stamp_of(&metadata));
                    if now == Some(*stamp) {
                        Vec::new()
                    } else {
                        vec![WHOLE_ITEM]
                    }
                }
                ItemBody::Collection(folder) => changed_entries(&path, folder, 1),
            };
            if self.catalog().is_damaged(number) {
                self.look_at_damaged(number, &changed);
            }
            for part in changed {
                self.withdraw(
                    Location {
                        item: number,
                        entry: part,
                    },
                    &body,
                );
            }
        }
    }

    /// Handles changes in a damaged item. If a damaged file changed, its owner has dealt with it,
    /// so the item is checked again.
    fn look_at_damaged(&self, number: u64, changed: &[EntryIndex]) {
        let is_damaged = |&part: &EntryIndex| self.catalog().is_part_damaged(number, part);
        if !changed.iter().any(is_damaged) {
            return;
        }
        let _writing = self.writing();
        let mut delta = Delta::default();
        self.catalog().forget_damage(number, &mut delta);
        // `publish` logs a failure. At the next start `stat` shows the same.
        let _ = self.publish(delta);
        self.stale.notify_one();
        self.rescan.notify_one();
    }

    /// The next item that is not stale.
    fn item_after(&self, last: Option<u64>) -> Option<(u64, Arc<Path>, ItemBody)> {
        let catalog = self.catalog();
        let mut items = catalog.items_after(last);
        let (number, shared) = items.find(|(number, _)| !catalog.is_stale(*number))?;
        Some((number, shared.path.clone(), shared.body.clone()))
    }
}

/// Whether a change at this time, in nanoseconds since 1970, is long enough ago. A time in the
/// future counts as idle: a change during hashing is noticed then.
pub(crate) fn is_idle(changed: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_nanos(u64::try_from(changed).unwrap_or(0));
    now.checked_sub(changed).is_none_or(|age| age >= IDLE_BEFORE_HASH)
}

async fn sweep_loop(shared: Arc<LibraryShared>) {
    let mut checked = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(OPEN_FILE_IDLE / 2) => {}
        }
        shared.open_files().sweep(Instant::now());
        if shared.has_unsaved() && run_blocking(&shared, LibraryShared::save_again).await.is_none() {
            return;
        }
        if checked.elapsed() >= CHECK_INTERVAL {
            if run_blocking(&shared, LibraryShared::check_all).await.is_none() {
                return;
            }
            checked = tokio::time::Instant::now();
        }
    }
}

async fn sha256_loop(shared: Arc<LibraryShared>) {
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.sha256_needed.notified() => {}
        }
        // Wait only once, however many more downloads end meanwhile: the SHA-256s of shared files
        // must not wait for them too.
        let rest = until_calm(*shared.last_download.lock(), Instant::now());
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
        let summed = in_background("potluck-sums", {
            let shared = shared.clone();
            move || compute_sha256s(&shared)
        });
        summed.await;
        if shared.shutdown.is_cancelled() {
            return;
        }
    }
}

/// Checks pieces that other peers reported as bad.
async fn report_loop(shared: Arc<LibraryShared>) {
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.reports.wait() => {}
        }
        let looked = in_background("potluck-reports", {
            let shared = shared.clone();
            move || shared.look_at_reports()
        });
        looked.await;
        if shared.shutdown.is_cancelled() {
            return;
        }
    }
}

/// How long to wait so that other downloaders of the same file, and the callers of shares, go
/// first.
fn until_calm(downloaded: Option<Instant>, now: Instant) -> Duration {
    let calm = downloaded.map(|at| (at + AFTER_DOWNLOAD).saturating_duration_since(now));
    calm.unwrap_or_default().max(AFTER_SHARE)
}

/// Computes every missing SHA-256. Yields to foreground hashing and to downloads.
fn compute_sha256s(shared: &LibraryShared) {
    let mut sha256s = HashMap::new();
    let mut since = Instant::now();
    let mut background_turns =
        BackgroundTurns::new(&shared.foreground_hashers, &shared.activity, &shared.shutdown);
    let mut last = None;
    loop {
        // A separate statement: the catalog must not stay locked in the loop.
        let files = shared.catalog().without_sha256(last, BATCH_SHA256S);
        let Some((location, _)) = files.last() else { break };
        last = Some(*location);
        for (_, id) in files {
            background_turns.before_file();
            if shared.shutdown.is_cancelled() {
                return store_sha256s(shared, &mut sha256s);
            }
            let Some(path) = shared.locate(&id) else { continue };
            if sha256s.is_empty() {
                since = Instant::now();
            }
            if let Some(sum) = sha256_of(shared, &path, &id, &mut background_turns) {
                sha256s.insert(id, sum);
            }
            if sha256s.len() >= BATCH_SHA256S || since.elapsed() >= BATCH_TIME {
                store_sha256s(shared, &mut sha256s);
            }
        }
    }
    store_sha256s(shared, &mut sha256s);
}

fn store_sha256s(shared: &LibraryShared, sha256s: &mut HashMap<FileId, Sha256>) {
    if sha256s.is_empty() {
        return;
    }
    let _writing = shared.writing();
    let mut delta = Delta::default();
    let mut catalog = shared.catalog();
    for (id, sum) in sha256s.drain() {
        catalog.set_sha256(id, sum, &mut delta);
    }
    drop(catalog);
    // `publish` logs a failure. The SHA-256s are computed again after the next start.
    let _ = shared.publish(delta);
}

/// The SHA-256 of a file. `None` if it changed or cannot be read, or on shutdown.
fn sha256_of(
    shared: &LibraryShared,
    path: &Path,
    id: &FileId,
    background_turns: &mut BackgroundTurns<'_>,
) -> Option<Sha256> {
    let (file, before) = open_regular(path).ok()?;
    if shared.catalog().known_file(path, &before)?.id != *id {
        return None;
    }
    let (background_turns, read) = (Mutex::new(background_turns), AtomicU64::new(0));
    let sum = hash::sha256_file(&file, &|bytes| {
        background_turns.lock().before_read(bytes);
        read.fetch_add(bytes, Ordering::Relaxed);
        match shared.shutdown.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let after = stamp_of(&file.metadata().ok()?);
    sum.ok()
        .filter(|_| after == before && read.into_inner() == before.size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{announce::set::AnnounceSet, library::Library, store::Store};

    #[test]
    fn sums_make_way_for_a_while_after_a_download() {
        let at = Instant::now();
        assert_eq!(until_calm(None, at), AFTER_SHARE);
        assert_eq!(until_calm(Some(at), at + AFTER_DOWNLOAD / 2), AFTER_DOWNLOAD / 2);
        assert_eq!(until_calm(Some(at), at + 2 * AFTER_DOWNLOAD), AFTER_SHARE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sums_come_although_somebody_hashes_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 20_000_000]).unwrap();
        let (stop, tasks) = (tokio_util::sync::CancellationToken::new(), TaskTracker::new());
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let store = Store::open_in(&dir.path().join("state")).unwrap();
        let files = dir.path().join("files");
        let announce_set = AnnounceSet::new();
        let library = Library::open(store, announce_set.clone(), files, 2, stop.clone(), &tasks).unwrap();
        let hashing = library.shared.foreground_hashers.begin();
        let shared = tokio::task::spawn_blocking({
            let inner = library.shared.clone();
            let path = path.clone();
            move || {
                let watch = ShareObserver {
                    on_size: &|_| {},
                    on_progress: &|_, _| {},
                    is_cancelled: &|| false,
                };
                inner.share_path(&path, ShareCause::Requested, &watch).unwrap()
            }
        });
        let id = shared.await.unwrap().record.id;
        let known = || {
            let all = announce_set.snapshot();
            all.iter()
                .any(|one| one.file.id == id && one.file.sha256.is_some())
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !known() {
            assert!(Instant::now() < deadline, "the sum does not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(hashing);
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
