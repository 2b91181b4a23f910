//! Hashing of files on disk, with the proof that each was one thing while it was read.
//!
//! Invariant: a result's stamp was the file's before the first byte was read and after the last, and is old enough that a later
//! change must show in it.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::{ControlFlow, Range},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use potluck_core::{
    Problem, Reason, Root, Sha256,
    hash::{READ_SIZE, hash_file, hash_together},
    index_client::{FileRecord, Kind},
    merkle::{FileTree, LEAF_SIZE},
};
use rustix::{fs::OFlags, io::Errno};

use super::walk::{Seen, special, stamp_of, unreadable};
use crate::store::Stamp;

/// Files above this are hashed one at a time with all threads, those below many at a time with one each, in bytes.
const LARGE: u64 = 16 * 1024 * 1024;

/// How old a file's last change must be before it is hashed: longer than a tick of the clock that files are stamped with (10 ms
/// at most), so that a change after hashing gets another stamp.
const SETTLED: Duration = Duration::from_millis(20);

/// Told how many bytes more are hashed of which file.
pub(super) type OnProgress<'a> = dyn Fn(&Path, u64) + Sync + 'a;

/// Opens whatever is there for reading, without waiting for another end of it; what is a link by now only where links are `followed`.
fn open_any(path: &Path, followed: bool) -> io::Result<File> {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    flags.set(OFlags::NOFOLLOW, !followed);
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens a regular file for reading. Never waits: what is a pipe by now is refused.
pub(super) fn open_regular(path: &Path) -> Result<(File, Stamp), Problem> {
    let file = open_any(path, true).map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok((file, stamp_of(&metadata))),
        false => Err(special(metadata.file_type())),
    }
}

/// Opens what was listed as a regular file, and asks what it is like. A link that took its place is not followed.
fn open_listed(path: &Path) -> Result<(File, Seen), Problem> {
    let file = open_any(path, false).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => changed(),
        _ => unreadable(&error),
    })?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok((file, Seen::of(&metadata))),
        false => Err(changed()),
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
    let (file, stamp) = open_settled(path)?;
    let tree = hash_file(&file, stamp.size, threads, &|bytes| {
        on_progress(path, bytes);
        match cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let tree = tree.map_err(|error| not_hashed(&error))?;
    is_still(&file, &stamp).map(|()| Done { tree, stamp })
}

/// Opens a file whose stamp is old enough.
fn open_settled(path: &Path) -> Result<(File, Stamp), Problem> {
    let (file, mut stamp) = open_regular(path)?;
    if let Some(wait) = unsettled(&stamp) {
        std::thread::sleep(wait);
        stamp = stamp_of(&file.metadata().map_err(|error| unreadable(&error))?);
    }
    Ok((file, stamp))
}

fn is_still(file: &File, stamp: &Stamp) -> Result<(), Problem> {
    match stamp_of(&file.metadata().map_err(|error| unreadable(&error))?) == *stamp {
        true => Ok(()),
        false => Err(changed()),
    }
}

/// The problem with a file that could not be read to its end.
fn not_hashed(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => changed(),
        io::ErrorKind::Interrupted => Problem::new(Reason::Cancelled, "hashing was stopped"),
        io::ErrorKind::FileTooLarge => Problem::new(Reason::OutOfRange, "it is too large to be shared"),
        _ => unreadable(error),
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
/// it was found, if somebody asked; else `is_wanted` is told once it is open, and says whether to hash it. `on_done` is told what came of
/// it. All from any thread; false if `cancelled` said so before all were hashed.
pub(super) fn hash_many(
    count: usize,
    file: &(dyn Fn(usize) -> (PathBuf, Option<Stamp>) + Sync),
    is_wanted: &(dyn Fn(usize, &Path, Seen) -> bool + Sync),
    threads: usize,
    on_progress: &OnProgress<'_>,
    cancelled: &Cancelled<'_>,
    on_done: &OnDone<'_>,
) -> bool {
    let all = AtomicBool::new(true);
    let done = |index: usize, path: &Path, result: Result<Done, Problem>| match result {
        Err(problem) if problem.reason == Reason::Cancelled => all.store(false, Ordering::Relaxed),
        result => on_done(index, path, result),
    };
    let hash = |index: usize, path: &Path, threads: usize| {
        done(index, path, hash_one(path, threads, on_progress, cancelled));
    };
    let next = AtomicUsize::new(0);
    let large = Mutex::new(Vec::new());
    let small = || {
        let mut together = Together::default();
        while !cancelled() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return together.hash(&done);
            }
            let (path, found) = file(index);
            let (open, stamp) = match found.map_or_else(|| open_listed(&path).map(Some), |_| Ok(None)) {
                Ok(Some((_, seen))) if !is_wanted(index, &path, seen) => continue,
                Ok(Some((file, seen))) => (Some(file), seen.stamp),
                Ok(None) => (None, found.unwrap_or_default()),
                Err(problem) => {
                    done(index, &path, Err(problem));
                    continue;
                }
            };
            if stamp.size > LARGE {
                large.lock().unwrap_or_else(PoisonError::into_inner).push(index);
            } else if stamp.size > READ_SIZE as u64 {
                hash(index, &path, 1);
            } else {
                if !together.has_room(stamp.size) {
                    together.hash(&done);
                }
                // What is not as it was found, or has a problem to be told, is looked at alone.
                if let Err(path) = together.read(index, path, open, stamp, on_progress) {
                    hash(index, &path, 1);
                }
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

/// Small files, read one after the other into one buffer, to be hashed together.
#[derive(Default)]
struct Together {
    buffer: Vec<u8>,
    used: usize,
    files: Vec<(usize, PathBuf, Range<usize>, Stamp)>,
}

impl Together {
    /// Whether a file of so many bytes can be taken before what is there is hashed. Counted in whole leaves: more than are hashed in
    /// step are no gain.
    fn has_room(&self, size: u64) -> bool {
        self.used + (size as usize).next_multiple_of(LEAF_SIZE).max(LEAF_SIZE) <= READ_SIZE
    }

    /// Reads a file, if it is not open yet opened here, that had this stamp before and still has it after, so that it need not stay open.
    ///
    /// # Errors
    /// Its path, where it is not what was found or cannot be read.
    fn read(
        &mut self,
        index: usize,
        path: PathBuf,
        open: Option<File>,
        stamp: Stamp,
        on_progress: &OnProgress<'_>,
    ) -> Result<(), PathBuf> {
        self.buffer.resize(READ_SIZE, 0);
        if let Some(wait) = unsettled(&stamp) {
            std::thread::sleep(wait);
        }
        let range = self.used..self.used + stamp.size as usize;
        let file = open.map_or_else(|| open_any(&path, true), Ok);
        let is_read = file.is_ok_and(|file| {
            file.read_exact_at(&mut self.buffer[range.clone()], 0).is_ok() && is_still(&file, &stamp).is_ok()
        });
        if !is_read {
            return Err(path);
        }
        on_progress(&path, stamp.size);
        self.used += range.len().next_multiple_of(LEAF_SIZE).max(LEAF_SIZE);
        self.files.push((index, path, range, stamp));
        Ok(())
    }

    /// Hashes what was read.
    fn hash(&mut self, done: &OnDone<'_>) {
        let slices: Vec<&[u8]> = self
            .files
            .iter()
            .map(|(_, _, range, _)| &self.buffer[range.clone()])
            .collect();
        let trees = hash_together(&slices);
        self.used = 0;
        for ((index, path, _, stamp), tree) in self.files.drain(..).zip(trees) {
            done(index, &path, Ok(Done { tree, stamp }));
        }
    }
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
            let stamp = path.symlink_metadata().map(|metadata| stamp_of(&metadata));
            paths.push((path, stamp.ok()));
        }
        let results = Mutex::new(vec![None; paths.len()]);
        let file = |index: usize| paths[index].clone();
        let on_done = |index: usize, path: &Path, result| {
            assert_eq!(path, paths[index].0);
            results.lock().unwrap()[index] = Some(result);
        };
        assert!(hash_many(
            20,
            &file,
            &|_, _, _| true,
            3,
            &|_, _| {},
            &|| false,
            &on_done
        ));
        for (n, result) in results.into_inner().unwrap().into_iter().enumerate() {
            match (n, result.unwrap()) {
                (7, result) => assert_eq!(result.unwrap_err().reason, Reason::NotFound),
                (n, result) => assert_eq!(result.unwrap().tree, potluck_core::hash::hash_bytes(&vec![1; n])),
            }
        }
        let stopped = hash_many(20, &file, &|_, _, _| true, 3, &|_, _| {}, &|| true, &|_, _, _| {});
        assert!(!stopped);
    }

    #[test]
    fn files_of_any_size_come_out_as_they_are_alone() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = LEAF_SIZE as u64;
        let sizes = [
            0,
            1,
            leaf,
            leaf + 1,
            3,
            15 * leaf,
            16 * leaf,
            16 * leaf + 1,
            131_073,
            0,
            7 * leaf + 5,
            2,
        ];
        let path = |index: usize| dir.path().join(index.to_string());
        for (index, &size) in sizes.iter().enumerate() {
            let size = if index == 11 { 40 * leaf } else { size };
            std::fs::write(path(index), vec![index as u8; size as usize]).unwrap();
        }
        // The last was found when it was smaller, and one when it was another file of that size.
        let told = |index: usize| {
            let stamp = stamp_of(&path(index).symlink_metadata().unwrap());
            match index {
                11 => Stamp { size: 1, ..stamp },
                4 => Stamp { inode: 0, ..stamp },
                _ => stamp,
            }
        };
        let (done, told_of) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        let on_progress = |_: &Path, bytes: u64| {
            told_of.fetch_add(bytes as usize, Ordering::Relaxed);
        };
        let on_done = |index: usize, path: &Path, result: Result<Done, Problem>| {
            let alone = hash_one(path, 1, &|_, _| {}, &|| false).unwrap();
            let result = result.unwrap();
            assert_eq!(
                (result.tree, result.stamp),
                (alone.tree, alone.stamp),
                "file {index}"
            );
            done.lock().unwrap().push(index);
        };
        // Of some nobody asked; some are not wanted.
        let (count, unwanted) = (sizes.len() + 2, AtomicUsize::new(0));
        std::fs::write(path(12), "12").unwrap();
        std::fs::write(path(13), "13").unwrap();
        let file = |index: usize| (path(index), (index % 3 != 0 && index < 12).then(|| told(index)));
        let is_wanted = |index: usize, _: &Path, seen: Seen| {
            assert_eq!(seen.stamp, stamp_of(&path(index).metadata().unwrap()));
            unwanted.fetch_add(usize::from(index > 11), Ordering::Relaxed);
            index < 12
        };
        assert!(hash_many(
            count,
            &file,
            &is_wanted,
            1,
            &on_progress,
            &|| false,
            &on_done
        ));
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..sizes.len()).collect::<Vec<_>>());
        let all: u64 = sizes[..11].iter().sum::<u64>() + 40 * leaf;
        assert_eq!(told_of.into_inner() as u64, all);
        assert_eq!(unwanted.into_inner(), 2);
    }

    #[test]
    fn what_is_no_file_any_more_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&path, "1").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert!(open_listed(&path).is_ok());
        for gone in [&link, &dir.path().to_owned()] {
            assert_eq!(open_listed(gone).unwrap_err().reason, Reason::FileChanged);
        }
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
