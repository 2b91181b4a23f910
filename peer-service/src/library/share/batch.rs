//! Runs one share call: handles its paths in order, sends events while it runs, and stores items in
//! batches.
//!
//! Blocks: run it off the async threads.

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

/// Shares paths in order, in batches.
pub(crate) fn share_all(shared: &LibraryShared, paths: Vec<PathBuf>, events: &mpsc::Sender<ShareEvent>) {
    let _hashing = shared.foreground_hashers.begin();
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let told = Mutex::new(None::<Instant>);
    let on_progress = |path: &dyn Fn() -> PathBuf, bytes: u64| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // If the lock is taken, another thread is reporting newer progress.
        let Some(mut told) = told.try_lock() else { return };
        if told.is_some_and(|told| told.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        *told = Some(Instant::now());
        let total = total.load(Ordering::Relaxed);
        // A slow receiver does not delay hashing.
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

/// Builds the item at a path. Retries with a growing delay if file descriptors run out, because
/// other work releases some.
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
            // An error means that the caller is gone.
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
