//! Updates the catalog after changes on the disk: withdraws changed copies, keeps items whose paths
//! are offline, hashes changed items again, and removes items whose paths are gone for good.
//!
//! A copy that changed is withdrawn as soon as anything notices: a read, the periodic check, or a
//! check of the files. Its item is then stale, and [`Reconciler::run`] hashes it again. Items at
//! the top level of the files folder are left to `files_folder_scan`.
//!
//! Invariants:
//! - Each change is made only if the item is still the one that was checked. Otherwise an item
//!   that was replaced meanwhile would be withdrawn for the changes of its predecessor.
//! - An item outside the files folder whose path does not exist is offline, not gone, unless it is
//!   a download that its owner did not ask to share.
//! - A damaged item is never hashed again automatically.
//!
//! Blocks, except for [`Reconciler::run`].

use std::{
    collections::HashSet,
    fs::Metadata,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use potluck_core::Reason;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub(crate) mod files_folder_scan;
pub(crate) mod load;

use crate::{
    catalog::{
        item::{ItemBody, Location},
        row::{EntryIndex, WHOLE_ITEM},
        share_options::ShareOptions,
        stamp::stamp_of,
    },
    fs::blocking::blocking_until_shutdown,
    library::{
        catalog_store::{CatalogStore, PutCause},
        files_folder::FilesFolder,
        hash::observer::HashObserver,
        problems::{Refused, is_gone, warn_offline},
        scan::{changed_entries::changed_entries, snapshot::latest_change},
        share::builder::ItemBuilder,
    },
};

/// Minimum time since a file's last change before it is hashed again.
pub(crate) const IDLE_BEFORE_HASH: Duration = Duration::from_secs(1);

/// Delay before an item that still changes is checked again.
const RETRY_CHANGING: Duration = Duration::from_secs(1);

/// Delay before an item that cannot be read is checked again.
pub(crate) const RETRY_FAILED: Duration = Duration::from_secs(60);

/// Maximum delay before stale items are checked again.
const MAX_REFRESH_DELAY: Duration = Duration::from_secs(300);

/// Maximum number of problems logged for one item.
const MAX_LOGGED: usize = 5;

/// Updates the catalog after changes on the disk; the module's documentation lists the invariants.
#[derive(Debug)]
pub(crate) struct Reconciler {
    catalog: Arc<CatalogStore>,
    builder: Arc<ItemBuilder>,
    files_folder: FilesFolder,
    /// Notified when an item becomes stale.
    stale: Notify,
    /// Notified when the files folder must be scanned.
    rescan: Notify,
    shutdown: CancellationToken,
}

/// The result of checking a stale item again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshOutcome {
    Done,
    Changing,
    Failed,
}

impl Reconciler {
    /// A reconciler that checks stale items as soon as it [runs](Self::run).
    pub(crate) fn new(
        catalog: Arc<CatalogStore>,
        builder: Arc<ItemBuilder>,
        files_folder: FilesFolder,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            catalog,
            builder,
            files_folder,
            stale: Notify::new(),
            rescan: Notify::new(),
            shutdown,
        }
    }

    /// Checks stale items until shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut offline_checked: Option<Instant> = None;
        loop {
            // There may be many offline items, and changing items are checked every second.
            let include_offline = offline_checked.is_none_or(|at| at.elapsed() >= RETRY_FAILED);
            if include_offline {
                offline_checked = Some(Instant::now());
            }
            let reconciler = Arc::clone(&self);
            let pass = move || reconciler.refresh(include_offline);
            let Some(delay) = blocking_until_shutdown(&self.shutdown, pass).await else {
                return;
            };
            // All branches are cancel-safe: a notification that was taken leads to a pass.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.stale.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Requests a scan of the files folder.
    pub(crate) fn request_rescan(&self) {
        self.rescan.notify_one();
    }

    /// Waits for a request. Only one task may wait.
    pub(crate) async fn rescan_requested(&self) {
        self.rescan.notified().await;
    }

    /// Checks each stale item again; the offline ones only if `include_offline`. Returns the delay
    /// until the next pass.
    pub(crate) fn refresh(&self, include_offline: bool) -> Duration {
        let mut delay = MAX_REFRESH_DELAY;
        // A separate statement, so that the catalog does not stay locked in the loop.
        let stale = self.catalog.read().stale_numbers();
        for number in stale {
            if self.shutdown.is_cancelled() {
                break;
            }
            if !include_offline && self.catalog.read().is_offline(number) {
                delay = delay.min(RETRY_FAILED);
                continue;
            }
            match self.refresh_item(number) {
                RefreshOutcome::Done => {}
                RefreshOutcome::Changing => delay = delay.min(RETRY_CHANGING),
                RefreshOutcome::Failed => delay = delay.min(RETRY_FAILED),
            }
        }
        delay
    }

    /// Checks one stale item again, and hashes it if it changed.
    pub(crate) fn refresh_item(&self, number: u64) -> RefreshOutcome {
        let (path, is_unrequested) = match self.catalog.read().item(number) {
            Some(item) => (item.path.clone(), item.is_unrequested),
            None => return RefreshOutcome::Done,
        };
        if self.files_folder.has_item_at(&path) {
            // A scan of the files folder handles its items.
            self.rescan.notify_one();
            return RefreshOutcome::Done;
        }
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(error)
                if is_gone(&error) && self.files_folder.survives_offline(&path, is_unrequested) =>
            {
                let is_offline = self.catalog.read().is_offline(number);
                if !is_offline {
                    self.mark_offline(number);
                }
                return RefreshOutcome::Failed;
            }
            Err(error) if is_gone(&error) => {
                self.remove_gone(vec![number]);
                return RefreshOutcome::Done;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a shared path cannot be read");
                return RefreshOutcome::Failed;
            }
        };
        let (was_offline, _) = self
            .catalog
            .writer()
            .apply(|catalog, _| catalog.set_online(number));
        if self.catalog.read().is_damaged(number) {
            return RefreshOutcome::Done;
        }
        if !self.is_idle_at(&path, &metadata) {
            return RefreshOutcome::Changing;
        }
        let is_cancelled = || self.shutdown.is_cancelled();
        let observer = HashObserver::silent(&is_cancelled);
        match self
            .builder
            .build_and_put(&path, None, PutCause::Changed(number), &observer)
        {
            Ok((item, omitted)) => {
                omitted.warn(&path);
                let message = match was_offline {
                    true => "a path that was offline is shared again",
                    false => "a path that changed is hashed and shared again",
                };
                tracing::info!(path = %path.display(), id = %item.record.id, "{message}");
                RefreshOutcome::Done
            }
            Err(_)
                if self.shutdown.is_cancelled() || self.catalog.read().item(number).is_none() =>
            {
                RefreshOutcome::Done
            }
            Err(refused) => {
                for (path, problem) in refused.iter().take(MAX_LOGGED) {
                    let path = path.display();
                    tracing::warn!(%path, %problem, "a path that changed cannot be shared");
                }
                let is_changing = |(_, problem): &Refused| problem.reason == Reason::FileChanged;
                match refused.iter().all(is_changing) {
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
        let snapshot = self.builder.walk_and_stat(path);
        snapshot.map_or(true, |snapshot| is_idle(latest_change(&snapshot)))
    }

    /// Withdraws a changed copy; its item is checked again in the background. `seen` is the item as
    /// it was checked: an item that replaced it since is left alone.
    pub(crate) fn withdraw(&self, location: Location, seen: &ItemBody) {
        let item = {
            let catalog = self.catalog.read();
            let item = catalog.item(location.item).filter(|item| item.body.is(seen));
            item.filter(|_| !catalog.is_offline(location.item))
                .map(|item| (item.path.clone(), item.is_unrequested))
        };
        let Some((path, is_unrequested)) = item else {
            return;
        };
        if self.files_folder.is_offline(&path, is_unrequested) && self.mark_offline(location.item) {
            return;
        }
        // A failure is already logged, and `stat` shows the change again at the next start.
        let (is_withdrawn, _) = self.catalog.writer().apply(|catalog, delta| {
            let item = catalog.item(location.item);
            let Some(item) = item.filter(|item| item.body.is(seen)) else {
                return false;
            };
            tracing::info!(
                path = %item.path.display(), id = %item.record.id,
                "a shared file changed: it is withdrawn and hashed again"
            );
            catalog.invalidate(location, delta);
            true
        });
        if is_withdrawn {
            self.stale.notify_one();
            self.rescan.notify_one();
        }
    }

    /// Withdraws entries of a collection that changed.
    pub(crate) fn withdraw_entries(&self, number: u64, entries: &[EntryIndex], seen: &ItemBody) {
        for &entry in entries {
            let location = Location { item: number, entry };
            self.withdraw(location, seen);
        }
    }

    /// The path of a collection if all its files are unchanged. Withdraws the changed ones.
    pub(crate) fn unchanged_folder(&self, number: u64) -> Option<PathBuf> {
        let (root, body, options) = {
            let catalog = self.catalog.read();
            let item = catalog.item(number)?;
            (item.path.clone(), item.body.clone(), item.options())
        };
        let ItemBody::Collection(folder) = &body else {
            return None;
        };
        let changed = changed_entries(&root, folder, &options, self.builder.hash_threads());
        self.withdraw_entries(number, &changed, &body);
        changed.is_empty().then(|| root.to_path_buf())
    }

    /// Withdraws the copies of an item whose path does not exist, and keeps the item. Checks the
    /// path itself, because it may have come back since the caller looked. Returns whether the item
    /// is offline.
    fn mark_offline(&self, number: u64) -> bool {
        let writer = self.catalog.writer();
        // A separate statement, so that the catalog does not stay locked during disk access.
        let item = self
            .catalog
            .read()
            .item(number)
            .map(|item| (item.path.clone(), item.is_unrequested));
        let is_offline =
            |path: &Path, is_unrequested| self.files_folder.is_offline(path, is_unrequested);
        let Some((path, _)) =
            item.filter(|(path, is_unrequested)| is_offline(path, *is_unrequested))
        else {
            return false;
        };
        // A failure is already logged, and `stat` shows the change again at the next start.
        let (is_new, _) = writer.apply(|catalog, delta| catalog.set_offline(number, delta));
        if is_new {
            warn_offline(&path);
            self.stale.notify_one();
        }
        true
    }

    /// Removes the items in `numbers` whose paths are gone. Checks the paths itself: a path may
    /// have come back since the caller looked, such as that of a download that just ended.
    pub(crate) fn remove_gone(&self, mut numbers: Vec<u64>) {
        if numbers.is_empty() {
            return;
        }
        let writer = self.catalog.writer();
        numbers.retain(|&number| {
            // A separate statement, so that the catalog does not stay locked during disk access.
            let path = self.catalog.read().item(number).map(|item| item.path.clone());
            path.is_some_and(|path| path.metadata().is_err_and(|error| is_gone(&error)))
        });
        // A failure is already logged, and `stat` shows the change again at the next start.
        let _ = writer.apply(|catalog, delta| {
            for number in numbers {
                if let Some(item) = catalog.remove(number, delta) {
                    tracing::info!(
                        path = %item.path.display(), id = %item.record.id,
                        "a shared path is gone: it is no longer shared"
                    );
                }
            }
        });
    }

    /// Removes tombstones whose paths are gone: not in `listing`, and not created since.
    pub(crate) fn remove_gone_tombstones(&self, listing: &HashSet<PathBuf>) {
        let writer = self.catalog.writer();
        let mut gone = self.catalog.read().tombstones_not_in(listing);
        gone.retain(|path| path.symlink_metadata().is_err_and(|error| is_gone(&error)));
        // A failure is already logged, and the next scan finds the change again.
        let _ = writer.apply(|catalog, delta| {
            gone.into_iter()
                .for_each(|path| catalog.remove_tombstone(path, delta));
        });
    }

    /// Checks all items by `stat`, and withdraws every copy that changed.
    pub(crate) fn check_all(&self) {
        let mut last = None;
        while let Some((number, path, body, options)) = self.trusted_item_after(last) {
            if self.shutdown.is_cancelled() {
                return;
            }
            last = Some(number);
            let changed = match &body {
                ItemBody::File(stamp) => {
                    let now = path.metadata().ok().map(|metadata| stamp_of(&metadata));
                    match now == Some(*stamp) {
                        true => Vec::new(),
                        false => vec![WHOLE_ITEM],
                    }
                }
                ItemBody::Collection(folder) => changed_entries(&path, folder, &options, 1),
            };
            let is_damaged = self.catalog.read().is_damaged(number);
            if is_damaged {
                self.check_damaged(number, &changed);
            }
            self.withdraw_entries(number, &changed, &body);
        }
    }

    /// Handles changes in a damaged item. If a damaged file changed, its owner has dealt with it,
    /// so the item is checked again.
    fn check_damaged(&self, number: u64, changed: &[EntryIndex]) {
        let is_damaged = |&entry: &EntryIndex| self.catalog.read().is_entry_damaged(number, entry);
        if !changed.iter().any(is_damaged) {
            return;
        }
        // A failure is already logged, and `stat` shows the change again at the next start.
        let _ = self
            .catalog
            .writer()
            .apply(|catalog, delta| catalog.forget_damage(number, delta));
        self.stale.notify_one();
        self.rescan.notify_one();
    }

    /// The next item that is not stale.
    fn trusted_item_after(
        &self,
        last: Option<u64>,
    ) -> Option<(u64, Arc<Path>, ItemBody, ShareOptions)> {
        let catalog = self.catalog.read();
        let mut items = catalog.items_after(last);
        let (number, item) = items.find(|(number, _)| !catalog.is_stale(*number))?;
        Some((number, item.path.clone(), item.body.clone(), item.options()))
    }
}

/// Whether a change at this time, in nanoseconds since 1970, is long enough ago. A time in the
/// future counts as idle: a change during hashing is noticed then.
fn is_idle(changed: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_nanos(u64::try_from(changed).unwrap_or(0));
    now.checked_sub(changed).is_none_or(|age| age >= IDLE_BEFORE_HASH)
}
