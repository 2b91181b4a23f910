//! Hashing of files on disk, with the proof that each was one thing while it was read.
//!
//! Invariant: a result's stamp was the file's before the first byte was read and after the last, and is old enough that a later
//! change must show in it.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use potluck_core::{
    Problem, Reason, Root, Sha256,
    hash::hash_file,
    index_client::{FileRecord, Kind},
    merkle::{FileTree, LEAF_SIZE},
};

use super::walk::{special, stamp_of, unreadable};
use crate::store::Stamp;

/// Files above this are hashed one at a time with all threads, those below many at a time with one each, in bytes.
const LARGE: u64 = 16 * 1024 * 1024;

/// How old a file's last change must be before it is hashed: longer than a tick of the clock that files are stamped with (10 ms
/// at most), so that a change after hashing gets another stamp.
const SETTLED: Duration = Duration::from_millis(20);

/// Told how many bytes more are hashed of which file.
pub(super) type OnProgress<'a> = dyn Fn(&Path, u64) + Sync + 'a;

/// Opens a regular file for reading. Never waits: what is a pipe by now is refused.
pub(super) fn open_regular(path: &Path) -> Result<(File, Stamp), Problem> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok((file, stamp_of(&metadata))),
        false => Err(special(metadata.file_type())),
    }
}

/// What hashing gave.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) tree: FileTree,
    pub(super) stamp: Stamp,
}

/// The record of a file with this tree.
pub(super) fn record_of(tree: &FileTree, kind: Kind) -> FileRecord {
    FileRecord {
        id: tree.id(),
        size: tree.size,
        root: tree.root,
        sha256: sum_of(tree.size, &tree.root).filter(|_| kind == Kind::File),
        kind,
    }
}

/// The plain SHA-256 of a file of at most one leaf: its root is nothing else.
pub(super) fn sum_of(size: u64, root: &Root) -> Option<Sha256> {
    (size <= LEAF_SIZE as u64).then_some(Sha256(root.0))
}

/// Told what came of a file, by its number and path.
pub(super) type OnDone<'a> = dyn Fn(usize, &Path, Result<Done, Problem>) + Sync + 'a;

/// Asked often whether to stop.
pub(super) type Cancelled<'a> = dyn Fn() -> bool + Sync + 'a;

/// Hashes one file.
///
/// # Errors
/// `FILE_CHANGED` where it changed meanwhile; `CANCELLED`; whatever keeps it from being read.
pub(super) fn hash_one(
    path: &Path,
    threads: usize,
    on_progress: &OnProgress<'_>,
    cancelled: &Cancelled<'_>,
) -> Result<Done, Problem> {
    let (file, mut stamp) = open_regular(path)?;
    if let Some(wait) = unsettled(&stamp) {
        std::thread::sleep(wait);
        stamp = stamp_of(&file.metadata().map_err(|error| unreadable(&error))?);
    }
    let tree = hash_file(&file, stamp.size, threads, &|bytes| {
        on_progress(path, bytes);
        match cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let tree = tree.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => changed(),
        io::ErrorKind::Interrupted => Problem::new(Reason::Cancelled, "hashing was stopped"),
        io::ErrorKind::FileTooLarge => Problem::new(Reason::OutOfRange, "it is too large to be shared"),
        _ => unreadable(&error),
    })?;
    let after = stamp_of(&file.metadata().map_err(|error| unreadable(&error))?);
    match after == stamp {
        true => Ok(Done { tree, stamp }),
        false => Err(changed()),
    }
}

/// The problem with a file that something writes to.
pub(super) fn changed() -> Problem {
    Problem::new(
        Reason::FileChanged,
        "it changed while it was being hashed: share it again when nothing writes to it",
    )
}

/// How long to wait until the stamp is old enough; a stamp from the future cannot be waited for.
fn unsettled(stamp: &Stamp) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let changed = Duration::from_nanos(u64::try_from(stamp.ctime.max(stamp.mtime)).ok()?);
    let age = now.checked_sub(changed)?;
    SETTLED.checked_sub(age).filter(|wait| !wait.is_zero())
}

/// Hashes so many files: the small ones side by side, each of the large ones with all threads. `file` tells where one is and how
/// large, and `on_done` what came of it, from any thread; false if `cancelled` said so before all were hashed.
pub(super) fn hash_many(
    count: usize,
    file: &(dyn Fn(usize) -> (PathBuf, u64) + Sync),
    threads: usize,
    on_progress: &OnProgress<'_>,
    cancelled: &Cancelled<'_>,
    on_done: &OnDone<'_>,
) -> bool {
    let all = AtomicBool::new(true);
    let hash =
        |index: usize, path: &Path, threads: usize| match hash_one(path, threads, on_progress, cancelled) {
            Err(problem) if problem.reason == Reason::Cancelled => all.store(false, Ordering::Relaxed),
            result => on_done(index, path, result),
        };
    let next = AtomicUsize::new(0);
    let large = Mutex::new(Vec::new());
    let small = || {
        while !cancelled() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let (path, size) = file(index);
            match size <= LARGE {
                true => hash(index, &path, 1),
                false => large.lock().unwrap_or_else(PoisonError::into_inner).push(index),
            }
        }
        all.store(false, Ordering::Relaxed);
    };
    let helpers = threads.min(count).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(small);
        }
        small();
    });
    for index in large.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match cancelled() {
            true => all.store(false, Ordering::Relaxed),
            false => hash(index, &file(index).0, threads),
        }
    }
    all.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_hashed_in_order_and_failures_stay_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for n in 0..20u64 {
            let path = dir.path().join(n.to_string());
            if n != 7 {
                std::fs::write(&path, vec![1; n as usize]).unwrap();
            }
            paths.push((path, n));
        }
        let results = Mutex::new(vec![None; paths.len()]);
        let file = |index: usize| paths[index].clone();
        let on_done = |index: usize, path: &Path, result| {
            assert_eq!(path, paths[index].0);
            results.lock().unwrap()[index] = Some(result);
        };
        assert!(hash_many(20, &file, 3, &|_, _| {}, &|| false, &on_done));
        for (n, result) in results.into_inner().unwrap().into_iter().enumerate() {
            match (n, result.unwrap()) {
                (7, result) => assert_eq!(result.unwrap_err().reason, Reason::NotFound),
                (n, result) => assert_eq!(result.unwrap().tree, potluck_core::hash::hash_bytes(&vec![1; n])),
            }
        }
        assert!(!hash_many(20, &file, 3, &|_, _| {}, &|| true, &|_, _, _| {}));
    }

    #[test]
    fn a_pipe_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert_eq!(open_regular(&path).unwrap_err().reason, Reason::UnsafePath);
    }

    #[test]
    fn a_fresh_file_settles_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fresh");
        std::fs::write(&path, "1").unwrap();
        let done = hash_one(&path, 1, &|_, _| {}, &|| false).unwrap();
        assert_eq!(unsettled(&done.stamp), None);
    }
}
