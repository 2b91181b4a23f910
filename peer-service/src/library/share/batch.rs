//! One call to share: paths in order, what happens told as it happens, the items of several stored in one batch.
//!
//! Blocks; run off the async threads.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::Reason;
use tokio::sync::mpsc;

use crate::library::{
    LibraryShared, ShareEvent,
    catalog::NewItem,
    scan::walk::Refused,
    share::build::{self, ShareCause, ShareObserver},
};

/// Least time between two progress events of a share: more than a person can read costs for nothing.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Most items of a share that are put in one batch, and how long the first may wait for it: one flush of the disk for many.
const BATCH_ITEMS: usize = 256;
const BATCH_TIME: Duration = Duration::from_millis(200);

/// First and last wait for file descriptors that are lacking: about four seconds in all, in which
/// a burst of other work ends, and not so long that whoever waits thinks the command hangs.
const FIRST_DESCRIPTOR_WAIT: Duration = Duration::from_millis(125);
const LAST_DESCRIPTOR_WAIT: Duration = Duration::from_secs(2);

/// Shares paths in order, the items of several in one batch.
pub(crate) fn share_all(shared: &LibraryShared, paths: Vec<PathBuf>, events: &mpsc::Sender<ShareEvent>) {
    let _hashing = shared.foreground_hashers.begin();
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let told = Mutex::new(None::<Instant>);
    let on_progress = |path: &dyn Fn() -> PathBuf, bytes: u64| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds the lock taken has nothing newer to tell.
        let Some(mut told) = told.try_lock() else { return };
        if told.is_some_and(|told| told.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        *told = Some(Instant::now());
        let total = total.load(Ordering::Relaxed);
        // A reader that is behind does not hold up the hashing.
        let _ = events.try_send(ShareEvent::Progress {
            path: path(),
            done,
            total,
        });
    };
    let on_found = |bytes: u64| {
        total.fetch_add(bytes, Ordering::Relaxed);
    };
    let cancelled = || events.is_closed() || shared.shutdown.is_cancelled();
    let watch = ShareObserver {
        on_size: &on_found,
        on_progress: &on_progress,
        is_cancelled: &cancelled,
    };
    let mut batch: Vec<NewItem> = Vec::new();
    let mut since = Instant::now();
    for path in paths {
        if cancelled() {
            break;
        }
        let prepared = prepare(shared, &path, &watch);
        match prepared {
            Ok(item) => {
                if batch.is_empty() {
                    since = Instant::now();
                }
                batch.push(item);
                if batch.len() >= BATCH_ITEMS || since.elapsed() >= BATCH_TIME {
                    put_batch(shared, &mut batch, events, &watch);
                }
            }
            Err(refused) => {
                put_batch(shared, &mut batch, events, &watch);
                report_refused(refused, events);
            }
        }
    }
    put_batch(shared, &mut batch, events, &watch);
}

/// Makes the item at a path. A lack of file descriptors passes as other work ends: it is waited
/// for, a little longer each time.
fn prepare(shared: &LibraryShared, path: &Path, watch: &ShareObserver<'_>) -> Result<NewItem, Vec<Refused>> {
    let mut wait = FIRST_DESCRIPTOR_WAIT;
    loop {
        let prepared = match build::resolve(path) {
            Ok(resolved) => shared.build_item(&resolved, watch),
            Err(problem) => Err(vec![(path.to_owned(), problem)]),
        };
        let lacks = |(_, problem): &Refused| problem.reason == Reason::TooManyOpenFiles;
        match prepared {
            Err(refused)
                if refused.iter().any(lacks) && wait <= LAST_DESCRIPTOR_WAIT && !(watch.is_cancelled)() =>
            {
                std::thread::sleep(wait);
                wait *= 2;
            }
            prepared => return prepared,
        }
    }
}

fn put_batch(
    shared: &LibraryShared,
    batch: &mut Vec<NewItem>,
    events: &mpsc::Sender<ShareEvent>,
    watch: &ShareObserver<'_>,
) {
    let items = std::mem::take(batch);
    let paths: Vec<_> = items.iter().map(|item| item.path.clone()).collect();
    for (path, result) in paths
        .into_iter()
        .zip(shared.put_items(items, ShareCause::Requested))
    {
        let result = match result {
            Err(problem) if problem.reason == Reason::Busy => {
                shared.share_path(&path, ShareCause::Requested, watch)
            }
            result => result.map_err(|problem| vec![(path.to_path_buf(), problem)]),
        };
        match result {
            // Nobody there to tell: the caller is gone.
            Ok(item) => drop(events.blocking_send(ShareEvent::Shared(item))),
            Err(refused) => report_refused(refused, events),
        }
    }
}

fn report_refused(refused: Vec<Refused>, events: &mpsc::Sender<ShareEvent>) {
    for (path, problem) in refused {
        if events
            .blocking_send(ShareEvent::Failed { path, problem })
            .is_err()
        {
            break;
        }
    }
}
