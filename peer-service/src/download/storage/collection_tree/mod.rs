//! The folder that a collection is written into while it is downloaded.
//!
//! Invariants:
//!
//! - Every path is opened relative to the folder's handle and never through a link. Neither a
//!   hostile manifest nor a link planted in the folder can redirect a write out of it.
//! - Every file is created exclusively, so no two entries share a file. An existing file is written
//!   only if an earlier run of this download created it.
//! - Links are created last, by [`CollectionTree::finish`], which also checks that the folder
//!   contains every entry once and nothing else.
//!
//! | module | purpose |
//! |---|---|
//! | `probe` | tests which names the target's file system accepts and distinguishes |
//! | `finish` | creates entries that no unit contains, and checks the folder |
//! | `block_clone` | copies a file by sharing its blocks |

mod block_clone;
mod finish;
mod probe;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind},
    num::NonZeroUsize,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    Problem, Reason,
    bitfield::Bitfield,
    collection::{
        manifest::{EntryContent, Manifest, fold},
        plan::Plan,
    },
};
use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use crate::download::storage::target::{self, AtEntry, NameClash};

/// Maximum large files kept open: pieces of only a few files arrive at a time, and file descriptors
/// are scarce.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// Number of locks for file creation: enough that two concurrent writers rarely contend for one.
const CREATION_LOCKS: u32 = 64;

/// Maximum path length of the operating system, in bytes: `PATH_MAX` without the final zero.
const MAX_SYSTEM_PATH: usize = if cfg!(target_os = "linux") { 4095 } else { 1023 };

/// The folder of a collection that is being downloaded.
#[derive(Debug)]
pub(crate) struct CollectionTree {
    dir: Dir,
    /// The entries that the download needs: all of the collection, or some.
    manifest: Arc<Manifest>,
    plan: Arc<Plan>,
    /// Whether this run created the folder: then its files were written here and have the right
    /// length.
    is_new: bool,
    /// Open handles of large files by their index in the plan.
    open_files: Mutex<LruCache<usize, Arc<File>>>,
    /// For a new folder: the entries whose files were created. With `n` locks, entry `i` is bit `i
    /// / n` of bitfield `i % n`.
    created_entries: Vec<Mutex<Bitfield>>,
    /// Bytes that [`CollectionTree::finish`] has copied.
    copied: AtomicU64,
    /// Notes for the user on properties that the file system cannot preserve.
    not_kept: Mutex<Vec<String>>,
    /// Whether [`CollectionTree::finish`] found entries of the collection that this download does
    /// not need: they are from another download to the same target.
    has_other_entries: AtomicBool,
}

/// Whether opening a file creates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CreateMode {
    /// The file must exist.
    Never,
    /// Created if it does not exist.
    IfMissing,
    /// The file must not exist.
    Exclusive,
}

impl CollectionTree {
    /// Opens the folder at `path` and creates it if needed. The caller must then call
    /// [`CollectionTree::prepare`].
    pub(crate) fn open(path: &Path, manifest: Arc<Manifest>, plan: Arc<Plan>) -> io::Result<Self> {
        let created = match std::fs::create_dir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            created => created.is_ok(),
        };
        // This handle can be locked and flushed, unlike one that cap-std opens.
        let handle = File::options()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
            .open(path)?;
        // The cast fits: a manifest has at most 2^20 entries.
        let entries = manifest.len() as u32;
        let bits = || Mutex::new(Bitfield::new(entries / CREATION_LOCKS + 1));
        Ok(Self {
            dir: Dir::from_std_file(handle),
            created_entries: std::iter::repeat_with(bits)
                .take(CREATION_LOCKS as usize)
                .collect(),
            manifest,
            plan,
            is_new: created,
            open_files: Mutex::new(LruCache::new(OPEN_FILES)),
            copied: AtomicU64::new(0),
            not_kept: Mutex::default(),
            has_other_entries: AtomicBool::new(false),
        })
    }

    /// The entries that the download needs.
    pub(crate) const fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Whether the download needs all entries of the collection, and the folder has no others.
    pub(crate) fn is_whole_collection(&self) -> bool {
        let all = self.plan.manifest();
        all.is_some_and(|all| all.len() == self.manifest.len())
    }

    /// Whether the folder has entries of another download to the same target. Known after
    /// [`CollectionTree::finish`].
    pub(crate) fn has_other_entries(&self) -> bool {
        self.has_other_entries.load(Ordering::Relaxed)
    }

    /// The entry that holds the content of the file at this index of the plan: the first one that
    /// the download needs.
    fn entry_of(&self, index: usize) -> Option<u32> {
        if self.is_whole_collection() {
            return self.plan.first_entry(index);
        }
        self.manifest.with_id(&self.plan.file(index)?.id).first().copied()
    }

    /// The handle of the folder.
    pub(crate) const fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Rejects a collection that the file system cannot hold, before any data is downloaded, and
    /// creates the subfolders. `path` is the folder's path.
    ///
    /// # Errors
    /// [`Reason::TargetUnsuitable`] if two names collide, a name is not allowed, or a path is too
    /// long; [`Reason::Cancelled`] if `stop` is cancelled; otherwise the file system's error.
    pub(crate) fn prepare(&self, path: &Path, stop: &CancellationToken) -> Result<(), Problem> {
        self.check_lengths(path)?;
        probe::check_names(&self.dir, path, &self.manifest, stop)?;
        for folder in self.manifest.folders() {
            if stop.is_cancelled() {
                return Err(target::stopped());
            }
            match self.dir.create_dir(folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && !self.is_new => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(self.clash(folder).problem(path));
                }
                Err(error) => return Err(target::target_problem(&path.join(folder), &error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Rejects a collection with paths longer than the system allows, because no process could open
    /// them.
    fn check_lengths(&self, path: &Path) -> Result<(), Problem> {
        let longest = self.manifest.entries().map(|entry| entry.path.as_str());
        let Some(longest) = longest.max_by_key(|path| path.len()) else {
            return Ok(());
        };
        let base = path.as_os_str().len();
        let len = base + 1 + longest.len();
        if len <= MAX_SYSTEM_PATH {
            return Ok(());
        }
        Err(Problem::new(
            Reason::TargetUnsuitable,
            format!(
                "a path in the collection has {} bytes, and below {} it would have {len}, but this \
                 system supports {MAX_SYSTEM_PATH}: choose a target whose path is at least {} \
                 bytes shorter",
                longest.len(),
                path.display(),
                len - MAX_SYSTEM_PATH
            ),
        )
        .field("target"))
    }

    /// The entry whose name is taken, and the entry that most likely took it.
    fn clash(&self, path: &str) -> NameClash {
        let folded = |path: &str| path.split('/').map(fold).collect::<Vec<_>>().join("/");
        let wanted = folded(path);
        let paths = || self.manifest.entries().map(|entry| entry.path.as_str());
        let mut others = self.manifest.folders().chain(paths());
        let other = others.find(|other| *other != path && folded(other) == wanted);
        NameClash {
            first: other.unwrap_or("another name").to_owned(),
            second: path.to_owned(),
        }
    }

    /// Free bytes needed to complete the folder if the units `have` are present: missing data plus
    /// copies of content with several paths, rounded up to blocks of this size. Copies that share
    /// blocks need none.
    pub(crate) fn room_needed(&self, have: Option<&Bitfield>, block: u64) -> u64 {
        let blocks = |size: u64| size.div_ceil(block.max(1)).saturating_mul(block.max(1));
        let mut distinct = 0_u64;
        let mut copies = 0_u64;
        for entries in self.manifest.contents() {
            let Some(EntryContent::File { size, .. }) = self.manifest.content(entries[0]) else {
                continue;
            };
            let is_missing = |entry: &&u32| {
                let path = self.manifest.get(**entry).map(|entry| entry.path.as_str());
                let there = path.and_then(|path| self.dir.symlink_metadata(path).ok());
                there.is_none_or(|there| there.len() < size)
            };
            let others = match self.is_new || size == 0 {
                true => entries.len() - 1,
                // Some copies may exist from a run that later ran out of space.
                false => entries[1..].iter().filter(is_missing).count(),
            };
            distinct = distinct.saturating_add(blocks(size));
            copies = copies.saturating_add(blocks(size).saturating_mul(others as u64));
        }
        if copies > 0 && probe::can_clone(&self.dir, &self.manifest) {
            copies = 0;
        }
        let missing = match have {
            // Existing parts of a file occupy their blocks, so only whole missing units count.
            Some(have) => (0..have.len())
                .filter(|&unit| !have.get(unit))
                .map(|unit| self.plan.unit_len(unit))
                .sum(),
            None => distinct,
        };
        missing.saturating_add(copies)
    }

    /// Opens the file at this index of the plan for writing, and creates it if needed.
    pub(crate) fn new_file(&self, index: usize) -> io::Result<Arc<File>> {
        if self.plan.is_large(index) {
            return self.handle(index, |entry| self.open_to_write(entry));
        }
        let first = self.entry_of(index).ok_or(ErrorKind::InvalidInput)?;
        Ok(Arc::new(self.open_to_write(first)?.0))
    }

    /// Opens the file at this index of the plan for reading, without creating it. Otherwise an
    /// upload could recreate a file that the user has removed from the finished folder.
    pub(crate) fn file(&self, index: usize) -> io::Result<Arc<File>> {
        self.handle(index, |entry| self.open_entry(entry, CreateMode::Never))
    }

    fn handle(
        &self,
        index: usize,
        open: impl FnOnce(u32) -> io::Result<(File, u64)>,
    ) -> io::Result<Arc<File>> {
        if let Some(file) = self.handles().get(&index) {
            return Ok(Arc::clone(file));
        }
        let first = self.entry_of(index).ok_or(ErrorKind::InvalidInput)?;
        let file = Arc::new(open(first)?.0);
        if self.plan.is_large(index) {
            self.handles().put(index, Arc::clone(&file));
        }
        Ok(file)
    }

    fn handles(&self) -> MutexGuard<'_, LruCache<usize, Arc<File>>> {
        self.open_files.lock()
    }

    /// Opens an entry's file for writing. In a new folder the first open creates it exclusively; if
    /// the name exists, it belongs to another entry.
    fn open_to_write(&self, entry: u32) -> io::Result<(File, u64)> {
        if !self.is_new {
            return self.open_entry(entry, CreateMode::IfMissing);
        }
        let created = &self.created_entries[(entry % CREATION_LOCKS) as usize];
        let bit = entry / CREATION_LOCKS;
        // Held during creation, so that the next writer sees the file.
        let mut created = created.lock();
        if created.get(bit) {
            drop(created);
            return self.open_entry(entry, CreateMode::Never);
        }
        match self.open_entry(entry, CreateMode::Exclusive) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let path = self.manifest.get(entry).map_or("", |entry| entry.path.as_str());
                Err(io::Error::other(self.clash(path)))
            }
            opened => {
                created.set(bit, opened.is_ok());
                opened
            }
        }
    }

    /// Opens an entry's file; returns it with its expected size.
    fn open_entry(&self, entry: u32, make: CreateMode) -> io::Result<(File, u64)> {
        let entry = self.manifest.get(entry).ok_or(ErrorKind::InvalidInput)?;
        let EntryContent::File { size, executable, .. } = entry.content else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let path = entry.path.as_str();
        let failed = |error| AtEntry::wrap(path, error);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(make == CreateMode::IfMissing)
            .create_new(make == CreateMode::Exclusive)
            .mode(if executable { 0o777 } else { 0o666 })
            // Does not follow a planted link or block on a planted pipe.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
        let file = self.dir.open_with(path, &options).map_err(failed)?.into_std();
        // An exclusively created file needs no check of its type.
        match make == CreateMode::Exclusive || file.metadata().map_err(failed)?.is_file() {
            true => Ok((file, size)),
            false => Err(failed(io::Error::new(
                ErrorKind::AlreadyExists,
                "something other than a file is there",
            ))),
        }
    }

    /// Whether the files of these units exist and are long enough to contain them.
    pub(crate) fn holds_units(&self, have: &Bitfield) -> bool {
        let mut min: HashMap<usize, u64> = HashMap::new();
        for span in have.ones().flat_map(|unit| self.plan.spans(unit)) {
            let min = min.entry(span.file).or_default();
            *min = (span.offset + span.len).max(*min);
        }
        min.into_iter().all(|(file, min)| {
            let first = self.entry_of(file);
            let path = first.and_then(|first| Some(self.manifest.get(first)?.path));
            let there = path.and_then(|path| self.dir.symlink_metadata(path.as_str()).ok());
            there.is_some_and(|there| there.is_file() && there.len() >= min)
        })
    }

    /// Bytes copied so far.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Properties that the file system could not preserve, one sentence each; complete after
    /// [`CollectionTree::finish`].
    pub(crate) fn not_kept(&self) -> Vec<String> {
        self.not_kept.lock().clone()
    }
}
