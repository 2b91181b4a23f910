//! Hashes files on disk and proves that each did not change while it was read.
//!
//! Invariant: the stamp of a result was the file's stamp both before the first byte was read and
//! after the last. The stamp is old enough that any later change produces another one.

use std::{
    fs::File,
    io,
    ops::{ControlFlow, Range},
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use potluck_core::{
    Problem, Reason,
    identity::{
        hash::{READ_SIZE, hash_batch, hash_file, read_whole},
        merkle::{FileTree, LEAF_SIZE},
    },
    read_buffer::ReadBuffer,
};

#[cfg(test)]
mod tests;

use crate::{
    catalog::stamp::{Stamp, stamp_of},
    library::{
        hash::{
            observer::{HashObserver, IsCancelled, OnProgress},
            open::{BaseFolder, FolderOpener},
        },
        problems::{changed_while_hashing, unreadable},
        scan::snapshot::FileStat,
    },
};

/// Files above this size, in bytes, are hashed one at a time with all threads. Smaller files are
/// hashed in parallel with one thread each.
const MAX_SINGLE_THREADED_SIZE: u64 = 16 * 1024 * 1024;

/// Maximum number of files that a thread takes in one step: they are mostly in one folder, and the
/// last thread to finish delays the end only a little.
const MAX_FILES_PER_TURN: usize = 32;

/// Minimum age of a file's last change before it is hashed. Longer than a tick of the clock for
/// file times (10 ms at most), so that a change after hashing gets another stamp.
const SETTLE_TIME: Duration = Duration::from_millis(20);

/// The minimum age on file systems with times of one or two seconds (FAT): a change within that
/// time gets the same stamp.
const COARSE_SETTLE_TIME: Duration = Duration::from_secs(2).saturating_add(SETTLE_TIME);

/// How many times to wait for a file that is being written to.
const MAX_SETTLE_WAITS: usize = 3;

/// The result of hashing a file.
#[derive(Debug, Clone)]
pub(crate) struct HashedFile {
    pub(crate) tree: FileTree,
    pub(crate) stamp: Stamp,
}

/// The result for one file: its number, its path, and the tree or the problem.
pub(crate) type HashResult<'f> = (usize, &'f Path, Result<HashedFile, Problem>);

/// Receives the results for some files.
pub(crate) type OnHashed<'a> = dyn Fn(Vec<HashResult<'_>>) + Sync + 'a;

/// Hashes one file.
///
/// # Errors
/// `FILE_CHANGED`: it changed meanwhile. `CANCELLED`: `is_cancelled` returned true. Otherwise the
/// reason why it cannot be read.
pub(crate) fn hash_one(
    path: &Path,
    threads: usize,
    on_progress: &OnProgress<'_>,
    is_cancelled: &IsCancelled<'_>,
) -> Result<HashedFile, Problem> {
    hash_at(&BaseFolder::default(), path, threads, on_progress, is_cancelled)
}

/// Implements [`hash_one`] for a path relative to `base`.
fn hash_at(
    base: &BaseFolder,
    path: &Path,
    threads: usize,
    on_progress: &OnProgress<'_>,
    is_cancelled: &IsCancelled<'_>,
) -> Result<HashedFile, Problem> {
    let (file, stamp) = open_settled(base, path)?;
    let tree = hash_file(&file, stamp.size, threads, &|bytes| {
        on_progress(&|| base.join(path), bytes);
        match is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match tree {
        Ok(tree) => check_unchanged(&file, &stamp).map(|()| HashedFile { tree, stamp }),
        // A length that differs because the stamp changed is a change. If the stamp is the same,
        // the file system reports a length that the file never had.
        Err(error) if is_other_length(&error) => {
            check_unchanged(&file, &stamp).and_then(|()| Err(unsized_file()))
        }
        Err(error) => Err(unreadable_to_end(&error)),
    }
}

pub(crate) fn is_other_length(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
    )
}

/// The problem with a file whose length is not the one from `stat`: a stamp would not show a change
/// of its content.
fn unsized_file() -> Problem {
    Problem::new(
        Reason::UnsizedFile,
        "its length differs from what its file system reports, so a change would not be noticed: \
         share a copy of it",
    )
}

/// Opens a file and waits until its stamp is old enough.
fn open_settled(base: &BaseFolder, path: &Path) -> Result<(File, Stamp), Problem> {
    let (file, mut stamp) = base.open_regular(path)?;
    for _ in 0..MAX_SETTLE_WAITS {
        let Some(wait) = settle_delay(&stamp) else {
            return Ok((file, stamp));
        };
        std::thread::sleep(wait);
        stamp = stamp_of(&file.metadata().map_err(|error| unreadable(&error))?);
    }
    Err(changed_while_hashing())
}

fn check_unchanged(file: &File, stamp: &Stamp) -> Result<(), Problem> {
    match stamp_of(&file.metadata().map_err(|error| unreadable(&error))?) == *stamp {
        true => Ok(()),
        false => Err(changed_while_hashing()),
    }
}

/// The problem with a file that could not be read to its end.
fn unreadable_to_end(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::Interrupted => Problem::new(Reason::Cancelled, "hashing was cancelled"),
        io::ErrorKind::FileTooLarge => Problem::new(Reason::OutOfRange, "it is too large to share"),
        _ => unreadable(error),
    }
}

/// How long to wait until the stamp is old enough; `None` if it is, or if it is in the future.
fn settle_delay(stamp: &Stamp) -> Option<Duration> {
    settle_delay_at(stamp, SystemTime::now().duration_since(UNIX_EPOCH).ok()?)
}

/// Like `settle_delay`, at a time since 1970.
fn settle_delay_at(stamp: &Stamp, now: Duration) -> Option<Duration> {
    let changed = Duration::from_nanos(u64::try_from(stamp.ctime.max(stamp.mtime)).ok()?);
    let age = now.checked_sub(changed)?;
    let is_whole = |time: i64| time % 1_000_000_000 == 0;
    // A tool that sets times to whole seconds can set only `mtime`.
    let settled = match is_whole(stamp.ctime) && is_whole(stamp.mtime) {
        true => COARSE_SETTLE_TIME,
        false => SETTLE_TIME,
    };
    settled.checked_sub(age).filter(|wait| !wait.is_zero())
}

/// Hashes `count` files in three passes: the small ones in parallel, read in batches; then medium
/// ones in parallel; then large ones one by one, each with all threads.
///
/// - `file` gives the path of a file, and its stamp if `stat` was already called.
/// - `is_wanted` is called for each other file once it is open and decides whether to hash it.
/// - `on_done` receives the results.
///
/// All callbacks run on any thread. False if `is_cancelled` stopped it before all files were
/// hashed.
pub(crate) fn hash_many<'f>(
    base: &BaseFolder,
    count: usize,
    file: &(dyn Fn(usize) -> (&'f Path, Option<Stamp>) + Sync),
    is_wanted: &(dyn Fn(usize, &Path, FileStat) -> bool + Sync),
    on_done: &OnHashed<'_>,
    threads: usize,
    observer: &HashObserver<'_>,
) -> bool {
    let HashObserver {
        on_size,
        on_progress,
        is_cancelled,
    } = *observer;
    let is_complete = AtomicBool::new(true);
    let hash = |index: usize, path: &Path, threads: usize| match hash_at(
        base,
        path,
        threads,
        on_progress,
        is_cancelled,
    ) {
        Err(problem) if problem.reason == Reason::Cancelled => {
            is_complete.store(false, Ordering::Relaxed)
        }
        result => on_done(vec![(index, path, result)]),
    };
    let next = AtomicUsize::new(0);
    let run_len = (count / (4 * threads.max(1))).clamp(1, MAX_FILES_PER_TURN);
    let larger = Mutex::new(Vec::new());
    let hash_small = || {
        let mut opener = FolderOpener::new(base);
        let mut batch = SmallFileBatch::default();
        while !is_cancelled() {
            let first = next.fetch_add(run_len, Ordering::Relaxed);
            if first >= count {
                return batch.hash(base, observer, on_done);
            }
            for index in first..count.min(first + run_len) {
                let (path, known_stamp) = file(index);
                let (open, stamp) = match known_stamp
                    .map_or_else(|| opener.open_listed(path).map(Some), |_| Ok(None))
                {
                    Ok(Some((_, stat))) if !is_wanted(index, path, stat) => continue,
                    Ok(Some((file, stat))) => (Some(file), stat.stamp),
                    Ok(None) => (None, known_stamp.unwrap_or_default()),
                    Err(problem) => {
                        on_done(vec![(index, path, Err(problem))]);
                        continue;
                    }
                };
                let is_new = open.is_some();
                if stamp.size > READ_SIZE as u64 {
                    on_size(if is_new { stamp.size } else { 0 });
                    let mut larger = larger.lock();
                    larger.push((index, stamp.size));
                    continue;
                }
                if !batch.has_room(stamp.size) {
                    batch.hash(base, observer, on_done);
                }
                batch.unreported_bytes += if is_new { stamp.size } else { 0 };
                // A file that changed since it was listed, or that cannot be opened, is hashed
                // alone: that reports the problem.
                let open = open.map_or_else(|| opener.open_any(path, true), Ok);
                if !open.is_ok_and(|file| batch.read(index, path, &file, stamp)) {
                    hash(index, path, 1);
                }
            }
        }
        is_complete.store(false, Ordering::Relaxed);
    };
    run_on_threads(threads.min(count), &hash_small);
    let larger = larger.into_inner();
    let (large, medium): (Vec<_>, Vec<_>) = larger
        .into_iter()
        .partition(|(_, size)| *size > MAX_SINGLE_THREADED_SIZE);
    let hash_alone = |(index, _): &(usize, u64), threads: usize| match is_cancelled() {
        true => is_complete.store(false, Ordering::Relaxed),
        false => hash(*index, file(*index).0, threads),
    };
    let next = AtomicUsize::new(0);
    let hash_medium = || {
        while let Some(file) = medium.get(next.fetch_add(1, Ordering::Relaxed)) {
            hash_alone(file, 1);
        }
    };
    run_on_threads(threads.min(medium.len()), &hash_medium);
    large.iter().for_each(|file| hash_alone(file, threads));
    is_complete.into_inner()
}

/// Runs the work on this thread and `threads - 1` more.
fn run_on_threads(threads: usize, work: &(dyn Fn() + Sync)) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

/// Small files, read one after the other into one buffer, to be hashed together.
#[derive(Default)]
struct SmallFileBatch<'f> {
    buffer: ReadBuffer,
    used: usize,
    files: Vec<(usize, &'f Path, Range<usize>, Stamp)>,
    /// Bytes not yet reported to the observer.
    unreported_bytes: u64,
}

impl<'f> SmallFileBatch<'f> {
    /// Whether a file of this size fits in the batch. Sizes are rounded up to whole leaves. A batch
    /// larger than [`READ_SIZE`] gains nothing.
    fn has_room(&self, size: u64) -> bool {
        self.used + (size as usize).next_multiple_of(LEAF_SIZE).max(LEAF_SIZE) <= READ_SIZE
    }

    /// Reads a file that had this stamp. False if it changed meanwhile or cannot be read. The file
    /// need not stay open afterwards.
    fn read(&mut self, index: usize, path: &'f Path, file: &File, stamp: Stamp) -> bool {
        if self.buffer.is_empty() {
            // One byte more, to notice a file that is longer than its `stat`.
            self.buffer = ReadBuffer::new(READ_SIZE + 1);
        }
        if let Some(wait) = settle_delay(&stamp) {
            std::thread::sleep(wait);
        }
        let range = self.used..self.used + stamp.size as usize;
        let read = read_whole(file, range.len(), &mut self.buffer[range.start..]);
        if read.is_err() || check_unchanged(file, &stamp).is_err() {
            return false;
        }
        self.used += range.len().next_multiple_of(LEAF_SIZE).max(LEAF_SIZE);
        self.files.push((index, path, range, stamp));
        true
    }

    /// Hashes the batch. Reports all files in one call, because all threads share the observer.
    fn hash(&mut self, base: &BaseFolder, observer: &HashObserver<'_>, on_done: &OnHashed<'_>) {
        (observer.on_size)(std::mem::take(&mut self.unreported_bytes));
        let Some(&(_, last, ..)) = self.files.last() else {
            return;
        };
        let slices: Vec<&[u8]> = self
            .files
            .iter()
            .map(|(_, _, range, _)| &self.buffer[range.clone()])
            .collect();
        let trees = hash_batch(&slices);
        self.used = 0;
        let bytes = trees.iter().map(|tree| tree.size).sum();
        let files = self.files.drain(..).zip(trees);
        on_done(
            files
                .map(|((index, path, _, stamp), tree)| {
                    (index, path, Ok(HashedFile { tree, stamp }))
                })
                .collect(),
        );
        (observer.on_progress)(&|| base.join(last), bytes);
    }
}
