//! Runs one share call: shares its paths in order, sends events meanwhile, and stores items in
//! batches.
//!
//! Invariant: [`ShareEvent::Shared`] is sent after the item is on disk.
//!
//! Blocks: run it off the async threads.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{Problem, Reason};
use tokio::sync::mpsc;

use crate::{
    catalog::{item::Item, share_options::ShareOptions},
    library::{
        catalog_store::{CatalogStore, PutCause},
        hash::{backlog::BacklogJob, observer::HashObserver},
        problems::{Refused, single_refusal},
        scan::{omissions::Omissions, resolve::resolve},
        share::builder::{BuiltItem, ItemBuilder},
    },
};

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
    /// Entries of a folder that is shared next are left out.
    Omitted {
        /// The folder.
        path: PathBuf,
        /// The entries.
        omitted: Omissions,
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

/// Minimum time between two progress events: a person cannot follow more.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum number of items in a batch, and how long the first may wait for it. A batch needs only
/// one flush to disk.
const BATCH_ITEMS: usize = 256;
const BATCH_TIME: Duration = Duration::from_millis(200);

/// First and last delay if file descriptors run out; about four seconds in total. A burst of other
/// work ends within that time, and the command does not seem to hang.
const FIRST_DESCRIPTOR_WAIT: Duration = Duration::from_millis(125);
const LAST_DESCRIPTOR_WAIT: Duration = Duration::from_secs(2);

/// Shares paths with these options, in order, in batches. Stops early if `events` is closed or `is_stopping` returns
/// true.
pub(crate) fn share_all(
    catalog: &CatalogStore,
    builder: &ItemBuilder,
    paths: Vec<PathBuf>,
    options: &ShareOptions,
    events: &mpsc::Sender<ShareEvent>,
    is_stopping: &(dyn Fn() -> bool + Sync),
    backlog: &BacklogJob,
) {
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let last_progress = Mutex::new(None::<Instant>);
    let on_progress = |path: &dyn Fn() -> PathBuf, bytes: u64| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        backlog.finish(bytes);
        // If the lock is taken, another thread is reporting newer progress.
        let Some(mut last_progress) = last_progress.try_lock() else {
            return;
        };
        if last_progress.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        *last_progress = Some(Instant::now());
        let total = total.load(Ordering::Relaxed);
        // A slow receiver does not delay hashing.
        let _ = events.try_send(ShareEvent::Progress {
            path: path(),
            done,
            total,
        });
    };
    let on_size = |bytes: u64| {
        total.fetch_add(bytes, Ordering::Relaxed);
        backlog.add(bytes);
    };
    let is_cancelled = || events.is_closed() || is_stopping();
    let observer = HashObserver {
        on_size: &on_size,
        on_progress: &on_progress,
        is_cancelled: &is_cancelled,
    };
    let mut batch = ShareBatch {
        catalog,
        builder,
        options,
        events,
        observer,
        items: Vec::new(),
        since: Instant::now(),
    };
    for path in paths {
        if is_cancelled() {
            break;
        }
        match build_with_retries(builder, &path, options, &observer) {
            Ok(item) => batch.push(item),
            Err(refused) => {
                // Results are sent in the order of the paths.
                batch.put();
                send_refused(refused, events);
            }
        }
    }
    batch.put();
}

/// Items that are built and not in the library yet.
struct ShareBatch<'a> {
    catalog: &'a CatalogStore,
    builder: &'a ItemBuilder,
    options: &'a ShareOptions,
    events: &'a mpsc::Sender<ShareEvent>,
    observer: HashObserver<'a>,
    items: Vec<BuiltItem>,
    /// When the first of them was added.
    since: Instant,
}

impl ShareBatch<'_> {
    fn push(&mut self, item: BuiltItem) {
        if self.items.is_empty() {
            self.since = Instant::now();
        }
        self.items.push(item);
        if self.items.len() >= BATCH_ITEMS || self.since.elapsed() >= BATCH_TIME {
            self.put();
        }
    }

    /// Puts the items into the library and sends the results.
    fn put(&mut self) {
        let items = std::mem::take(&mut self.items);
        let (items, facts): (Vec<_>, Vec<_>) = items
            .into_iter()
            .map(|BuiltItem { item, omitted }| {
                let path = item.path.clone();
                (item, (path, omitted))
            })
            .unzip();
        let results = self.catalog.put_items(items, PutCause::Requested);
        for ((path, omitted), result) in facts.into_iter().zip(results) {
            let result = match result {
                Err(problem) if problem.reason == Reason::Busy => {
                    let (options, cause) = (Some(self.options), PutCause::Requested);
                    self.builder.build_and_put(&path, options, cause, &self.observer)
                }
                result => result
                    .map(|item| (item, omitted))
                    .map_err(|problem| single_refusal(&path, problem)),
            };
            match result {
                Ok((item, omitted)) => {
                    let path = item.path.clone();
                    let omitted =
                        (!omitted.is_empty()).then_some(ShareEvent::Omitted { path, omitted });
                    for event in omitted.into_iter().chain([ShareEvent::Shared(item)]) {
                        // An error means that the caller is gone.
                        let _ = self.events.blocking_send(event);
                    }
                }
                Err(refused) => send_refused(refused, self.events),
            }
        }
    }
}

/// Builds the item at a path. Retries with a growing delay if file descriptors run out, because
/// other work releases some.
fn build_with_retries(
    builder: &ItemBuilder,
    path: &Path,
    options: &ShareOptions,
    observer: &HashObserver<'_>,
) -> Result<BuiltItem, Vec<Refused>> {
    let mut wait = FIRST_DESCRIPTOR_WAIT;
    loop {
        let built = match resolve(path) {
            Ok(resolved) => builder.build(&resolved, options, observer),
            Err(problem) => Err(single_refusal(path, problem)),
        };
        let is_shortage = |(_, problem): &Refused| problem.reason == Reason::TooManyOpenFiles;
        match built {
            Err(refused)
                if refused.iter().any(is_shortage)
                    && wait <= LAST_DESCRIPTOR_WAIT
                    && !(observer.is_cancelled)() =>
            {
                std::thread::sleep(wait);
                wait *= 2;
            }
            built => return built,
        }
    }
}

fn send_refused(refused: Vec<Refused>, events: &mpsc::Sender<ShareEvent>) {
    for (path, problem) in refused {
        if events
            .blocking_send(ShareEvent::Failed { path, problem })
            .is_err()
        {
            break;
        }
    }
}
