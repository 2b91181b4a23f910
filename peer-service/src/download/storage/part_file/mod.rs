//! The data of a running download on disk: a `.part` file or folder, and the resume state next to
//! it.
//!
//! Invariants:
//!
//! - Only verified units are written.
//! - The resume state lists only units whose data was flushed.
//! - After a failed flush, no later flush succeeds.
//! - A lock gives the part to one process at a time.
//!
//! | module | purpose |
//! |---|---|
//! | `part_storage` | the file or folder that holds the data |
//! | `holes` | runs of zeros, which take no space on the disk |
//! | `removal` | the lock on a part, and the removal of parts |
//!
//! All calls block, so they run on blocking threads. Non-goals: the meaning of the data, its
//! origin, and its final name ([`crate::download::storage::finalize`]).

mod holes;
mod part_storage;
mod removal;
#[cfg(test)]
pub(super) mod tests;

use std::{
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    os::{
        fd::BorrowedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem, Reason,
    bitfield::Bitfield,
    collection::{manifest::Manifest, plan::Plan},
    read_buffer::ReadBuffer,
};
use rustix::{
    fs::{FallocateFlags, FlockOperation},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use crate::{
    download::{
        engine::chunk_list::ChunkList,
        storage::{
            collection_tree::CollectionTree,
            part_file::{part_storage::open_file, removal::try_lock},
            resume_state::ResumeState,
            target::{self, DownloadTarget},
        },
    },
    fs::{durable, page_cache},
};

use self::holes::Piece;
pub(crate) use self::{part_storage::PartStorage, removal::remove};

/// Bytes left free on the disk, because a full disk harms every other program.
const RESERVE: u64 = 16 * 1024 * 1024;

/// Bytes allocated per call: some file systems write zeros, and a unit waits at most for one such
/// call.
const PREALLOCATE: u64 = 4 * 1024 * 1024;

/// An open part. Shared through an `Arc`.
#[derive(Debug)]
pub(crate) struct PartFile {
    id: FileId,
    target: DownloadTarget,
    plan: Arc<Plan>,
    storage: PartStorage,
    /// Whether the part is a file that supports reads without waiting for a disk or another
    /// machine.
    never_waits: bool,
    /// The device number of the file system.
    device: u64,
    /// The units that the resume state never lists, because the download needs only some of their
    /// files: another download to the same target may need the others.
    unlisted: Option<Bitfield>,
    /// Whether the resume state on disk can be trusted on the next open.
    has_valid_resume_state: AtomicBool,
    /// Whether the file is allocated ahead. Locked while that happens, so that no hole is filled.
    preallocates: Mutex<bool>,
    /// The first flush error.
    sync_error: OnceLock<io::Error>,
}

/// The state of the path when the part was opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FoundPart {
    /// Nothing; the part was created.
    Created,
    /// Data with a resume state that lists the units; verify a sample before trusting it.
    Resume(Bitfield),
    /// Data without a usable resume state; verify every unit.
    Unverified,
}

impl PartFile {
    /// Opens the part of this target, or creates it. `manifest` has the entries of a collection that
    /// the download needs; `plan` leaves out the content of the others.
    ///
    /// # Errors
    /// - [`Reason::TargetExists`] if the part belongs to another download or another process has it
    ///   open.
    /// - [`Reason::DiskFull`] if the missing data does not fit on the disk.
    /// - [`Reason::TargetUnsuitable`] if the file system cannot hold the collection.
    /// - [`Reason::TargetNotWritable`] for other file system errors.
    /// - [`Reason::Cancelled`] if `stop` is cancelled.
    pub(crate) fn open(
        id: FileId,
        target: DownloadTarget,
        plan: Arc<Plan>,
        manifest: Option<Arc<Manifest>>,
        stop: &CancellationToken,
    ) -> Result<(Self, FoundPart), Problem> {
        let path = target.part();
        let failed = |error: io::Error| target::target_problem(&path, &error);
        durable::create_folders(target.parent(), 0o777)
            .map_err(|error| target::target_problem(target.parent(), &error))?;
        let mut before = fs::symlink_metadata(&path).ok();
        let unreadable = |error: io::Error| match error.kind() {
            // A pipe, a folder or a link: not created by a download.
            ErrorKind::InvalidInput => in_use(&target.state()),
            _ => target::target_problem(&target.state(), &error),
        };
        let mut state = ResumeState::load(&target.state()).map_err(unreadable)?;
        // Left from a run that took this collection for a plain file.
        let is_file = before.as_ref().is_some_and(Metadata::is_file);
        if manifest.is_some() && is_file && state.as_ref().is_some_and(|state| state.id == id) {
            remove(id, &target).map_err(failed)?;
            before = fs::symlink_metadata(&path).ok();
            state = None;
        }
        let ours = state
            .as_ref()
            .is_some_and(|state| state.id == id && state.have.len() == plan.unit_count());
        let fits = before.as_ref().is_none_or(|before| match manifest {
            // Files in the folder get overwritten, so a state file must show that it belongs to a
            // download, even if that state is damaged or of another folder.
            Some(_) => before.is_dir() && (target.state().is_file() || is_empty(&path)),
            // An empty file is what remains if space for it could not be allocated.
            None => before.is_file() && (ours || before.len() == plan.total() || before.len() == 0),
        });
        if !fits || (before.is_some() && state.as_ref().is_some_and(|state| state.id != id)) {
            return Err(in_use(&path));
        }
        let storage = match manifest {
            Some(manifest) => PartStorage::Tree(
                CollectionTree::open(&path, manifest, Arc::clone(&plan)).map_err(failed)?,
            ),
            None => {
                PartStorage::File(Arc::new(open_file(&path, before.is_some()).map_err(failed)?))
            }
        };
        let device = storage.device().map_err(failed)?;
        let mut part = Self {
            id,
            target,
            unlisted: plan.incomplete_units(),
            plan,
            never_waits: storage.never_waits(),
            storage,
            device,
            has_valid_resume_state: AtomicBool::new(false),
            preallocates: Mutex::new(false),
            sync_error: OnceLock::new(),
        };
        part.lock(&path)?;
        let is_new = before.is_none();
        let found = match (before, state) {
            (None, _) => FoundPart::Created,
            (Some(before), Some(state)) if ours && part.matches_state(&before, &state) => {
                FoundPart::Resume(state.have)
            }
            (Some(before), _) if before.is_file() && before.len() == 0 => FoundPart::Created,
            (Some(_), _) => FoundPart::Unverified,
        };
        if let (FoundPart::Resume(have), Some(unlisted)) = (&found, &mut part.unlisted) {
            // A unit that an earlier download completed stays complete.
            for unit in have.ones() {
                unlisted.set(unit, false);
            }
        }
        match part.initialize(&found, ours, stop) {
            Ok(()) => Ok((part, found)),
            Err(problem) => {
                // A new part holds no data, so it is removed instead of occupying space.
                if is_new {
                    part.remove_empty(&path);
                    let _ = fs::remove_file(part.target.state());
                }
                Err(problem)
            }
        }
    }

    /// A part without a name in this folder: nothing remains of it once it is closed. It has no
    /// resume state.
    ///
    /// # Errors
    /// As [`PartFile::open`].
    pub(crate) fn temporary(id: FileId, folder: &Path, plan: Arc<Plan>) -> Result<Self, Problem> {
        let failed = |error: io::Error| target::target_problem(folder, &error);
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        file.set_len(plan.total()).map_err(failed)?;
        let storage = PartStorage::File(Arc::new(file));
        Ok(Self {
            id,
            target: DownloadTarget {
                path: folder.to_owned(),
            },
            plan,
            unlisted: None,
            never_waits: storage.never_waits(),
            device: storage.device().map_err(failed)?,
            storage,
            has_valid_resume_state: AtomicBool::new(false),
            // Units are released soon, so only their own space is needed.
            preallocates: Mutex::new(false),
            sync_error: OnceLock::new(),
        })
    }

    /// Frees the disk space of a unit of a plain file that is no longer needed. Without support of
    /// the file system, the space stays in use until the part is closed.
    #[cfg(target_os = "linux")]
    pub(crate) fn release(&self, unit: u32) {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for span in self.plan.spans(unit) {
            if let Ok(file) = self.file(span.file) {
                let _ = rustix::fs::fallocate(file, punch, span.offset, span.len);
            }
        }
    }

    /// Does nothing: this system cannot free part of a file.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn release(&self, _unit: u32) {}

    /// Whether the part can be the one that the state describes: not a copy, which may be
    /// truncated, and not shorter or incomplete.
    fn matches_state(&self, before: &Metadata, state: &ResumeState) -> bool {
        before.ino() == state.inode
            && match &self.storage {
                PartStorage::File(_) => before.len() >= self.plan.total(),
                PartStorage::Tree(tree) => tree.holds_units(&state.have),
            }
    }

    /// Reserves space and records that a new part has no units. Invalidates a state that is `ours`
    /// but not trusted, because reserving space can remove the evidence that it is wrong.
    fn initialize(
        &self,
        found: &FoundPart,
        ours: bool,
        stop: &CancellationToken,
    ) -> Result<(), Problem> {
        let nothing = Bitfield::new(self.plan.unit_count());
        match found {
            FoundPart::Unverified if ours => self.invalidate_resume_state()?,
            FoundPart::Resume(_) => self.has_valid_resume_state.store(true, Ordering::Relaxed),
            FoundPart::Created | FoundPart::Unverified => {}
        }
        self.reserve_space(found)
            .map_err(|error| target::target_problem(&self.target.path, &error))?;
        if *found == FoundPart::Created {
            self.write_state(&nothing)?;
        }
        match &self.storage {
            // After the state is written, so that a half-created folder is known to belong to this
            // download.
            PartStorage::Tree(tree) => tree.prepare(&self.target.part(), stop),
            PartStorage::File(_) => Ok(()),
        }
    }

    fn remove_empty(&self, path: &Path) {
        if let Err(error) = self.storage.remove(path) {
            tracing::debug!(path = %path.display(), %error, "could not remove an empty part");
        }
    }

    fn lock(&self, path: &Path) -> Result<(), Problem> {
        match try_lock(self.handle()) {
            // Without lock support, two downloads to one target write the same verified bytes.
            true => Ok(()),
            false => Err(Problem::new(
                Reason::TargetExists,
                format!(
                    "another download is writing {}: wait for it or choose another target",
                    path.display()
                ),
            )
            .field("target")),
        }
    }

    /// Releases the lock. Nothing is written after this, but uploads may still read.
    pub(crate) fn unlock(&self) {
        // If unlocking fails, locking failed as well.
        let _ = rustix::fs::flock(self.handle(), FlockOperation::NonBlockingUnlock);
    }

    /// Whether the path still refers to this part; a user may have removed or replaced it.
    pub(crate) fn is_at_path(&self) -> bool {
        let path = self.target.part();
        let of = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let (at_path, open) = (rustix::fs::lstat(&path), rustix::fs::fstat(self.handle()));
        matches!((at_path.map(of), open.map(of)), (Ok(at_path), Ok(open)) if at_path == open)
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.storage.handle()
    }

    /// Checks that the missing data fits on the disk, and sets the length of a plain file.
    fn reserve_space(&self, found: &FoundPart) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(self.handle())?;
        let missing = match (&self.storage, found) {
            // `st_blocks` counts 512-byte blocks on every file system.
            (PartStorage::File(file), found) => {
                let unallocated = self.plan.total().saturating_sub(file.metadata()?.blocks() * 512);
                match found {
                    // A unit may have holes.
                    FoundPart::Resume(have) => unallocated.min(self.missing_bytes(have)),
                    FoundPart::Created | FoundPart::Unverified => unallocated,
                }
            }
            (PartStorage::Tree(tree), FoundPart::Resume(have)) => {
                tree.room_needed(Some(have), disk.f_frsize)
            }
            (PartStorage::Tree(tree), FoundPart::Created) => tree.room_needed(None, disk.f_frsize),
            (PartStorage::Tree(tree), FoundPart::Unverified) => {
                let all = Bitfield::full(self.plan.unit_count());
                tree.room_needed(Some(&all), disk.f_frsize)
            }
        };
        if missing > 0
            && missing.saturating_add(RESERVE) > disk.f_bavail.saturating_mul(disk.f_frsize)
        {
            return Err(ErrorKind::StorageFull.into());
        }
        // An older part may have holes, which must not be filled.
        *self.preallocates.lock() = *found == FoundPart::Created;
        match &self.storage {
            PartStorage::File(file) => file.set_len(self.plan.total()),
            PartStorage::Tree(_) => Ok(()),
        }
    }

    /// Allocates the whole file, if the file system supports that, while `is_wanted` holds and no
    /// unit has a hole: a sparse file would take the space of a full one. Units may be written
    /// concurrently. Skipped for a resumed part, and for files in memory: filling those with zeros
    /// costs half as much as the download.
    ///
    /// # Errors
    /// The file system's error; the rest stays unallocated.
    pub(crate) fn preallocate(&self, is_wanted: impl Fn() -> bool) -> io::Result<()> {
        let PartStorage::File(file) = &self.storage else {
            return Ok(());
        };
        if page_cache::is_in_memory(file) {
            return Ok(());
        }
        let total = self.plan.total();
        for offset in (0..total).step_by(PREALLOCATE as usize) {
            let preallocates = self.preallocates.lock();
            if !*preallocates || !is_wanted() {
                return Ok(());
            }
            let len = PREALLOCATE.min(total - offset);
            match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the disk has room for the missing units, or at least for several of them.
    pub(crate) fn has_room(&self, have: &Bitfield) -> bool {
        let missing = self.missing_bytes(have);
        rustix::fs::fstatvfs(self.handle()).is_ok_and(|disk| {
            disk.f_bavail.saturating_mul(disk.f_frsize) >= missing.min(RESERVE) + RESERVE
        })
    }

    /// Whether units may be in the part although its resume state does not list them.
    pub(crate) fn may_have_unlisted(&self) -> bool {
        self.unlisted
            .as_ref()
            .is_some_and(|unlisted| unlisted.count() > 0)
    }

    /// The size of the units that are not in `have`, in bytes.
    pub(crate) fn missing_bytes(&self, have: &Bitfield) -> u64 {
        (0..have.len())
            .filter(|&unit| !have.get(unit))
            .map(|unit| self.plan.unit_len(unit))
            .sum()
    }

    /// The final path of the content.
    pub(crate) fn target_path(&self) -> &Path {
        &self.target.path
    }

    /// The plan of the download.
    pub(crate) const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The final path and its companion paths.
    pub(crate) const fn target(&self) -> &DownloadTarget {
        &self.target
    }

    /// Whether the part is a file that supports reads without waiting for a disk or another
    /// machine.
    pub(crate) const fn never_waits(&self) -> bool {
        self.never_waits
    }

    /// The device number of the file system.
    pub(crate) const fn device(&self) -> u64 {
        self.device
    }

    /// Bytes copied of content with several paths.
    pub(crate) fn copied(&self) -> u64 {
        match &self.storage {
            PartStorage::Tree(tree) => tree.copied(),
            PartStorage::File(_) => 0,
        }
    }

    /// Properties that the file system could not preserve, one sentence each; complete once
    /// finished.
    pub(crate) fn not_kept(&self) -> Vec<String> {
        match &self.storage {
            PartStorage::Tree(tree) => tree.not_kept(),
            PartStorage::File(_) => Vec::new(),
        }
    }

    /// The file or folder that holds the data.
    pub(crate) const fn storage(&self) -> &PartStorage {
        &self.storage
    }

    /// The file at this index of the plan.
    pub(crate) fn file(&self, index: usize) -> io::Result<Arc<File>> {
        self.storage.file(index)
    }

    /// Writes a verified unit.
    ///
    /// # Errors
    /// The file system's error; the unit does not count as written.
    pub(crate) fn write(&self, unit: u32, data: &ChunkList) -> io::Result<()> {
        let mut at = 0;
        for span in self.plan.spans(unit) {
            let file = self.storage.file_to_write(span.file)?;
            let slices = data.slices(at..at + span.len as usize);
            holes::split(slices, span.offset, |piece| match piece {
                Piece::Data(offset, bytes) => file.write_all_at(bytes, offset),
                Piece::Hole(range) => {
                    *self.preallocates.lock() = false;
                    holes::punch(&file, range)
                }
            })?;
            at += span.len as usize;
        }
        Ok(())
    }

    /// Reads a unit, verified or not.
    ///
    /// # Errors
    /// The file system's error; `UnexpectedEof` if the unit is incomplete.
    pub(crate) fn read(&self, unit: u32) -> io::Result<ChunkList> {
        let mut data = ReadBuffer::new(self.plan.unit_len(unit) as usize);
        let mut rest = &mut data[..];
        for span in self.plan.spans(unit) {
            let (bytes, after) = rest.split_at_mut(span.len as usize);
            self.file(span.file)?.read_exact_at(bytes, span.offset)?;
            rest = after;
        }
        Ok(Bytes::from_owner(data).into())
    }

    /// Flushes all data, then writes a resume state with the units in `have`. The caller must have
    /// read `have` before the call.
    ///
    /// # Errors
    /// The file system's error; the previous state remains valid. After a failed flush, every later
    /// checkpoint fails.
    pub(crate) fn checkpoint(&self, have: &Bitfield) -> Result<(), Problem> {
        self.sync()
            .map_err(|error| target::target_problem(&self.target.part(), &error))?;
        self.write_state(have)
    }

    /// Flushes all data. The operating system reports data that it could not write once and then
    /// drops it, so a second attempt would succeed without writing it. Therefore the first error is
    /// permanent, and units outside the last state must be downloaded again.
    ///
    /// # Errors
    /// The file system's error of this or an earlier flush.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if let Some(error) = self.sync_error.get() {
            return Err(sync_failure(error));
        }
        self.storage.sync().map_err(|error| {
            let first = self.sync_error.get_or_init(|| error);
            // Without a trusted state, the next run would verify the data by reading it, and the
            // page cache may still show data that the disk lost. Hence writes an empty state.
            if !self.has_valid_resume_state()
                && let Err(problem) = self.write_state(&Bitfield::new(self.plan.unit_count()))
            {
                tracing::warn!(%problem, "could not write the resume state");
            }
            sync_failure(first)
        })
    }

    /// Whether a flush failed. Later writes are then unreliable; only a reopened part can continue,
    /// with the units of its resume state.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_error.get().is_some()
    }

    /// Whether the resume state on disk can be trusted on the next open.
    pub(crate) fn has_valid_resume_state(&self) -> bool {
        self.has_valid_resume_state.load(Ordering::Relaxed)
    }

    /// Writes a resume state that is never trusted, so the next run verifies every unit.
    pub(crate) fn invalidate_resume_state(&self) -> Result<(), Problem> {
        self.has_valid_resume_state.store(false, Ordering::Relaxed);
        self.write_state_of(&Bitfield::new(self.plan.unit_count()), 0)
    }

    fn write_state(&self, have: &Bitfield) -> Result<(), Problem> {
        let stat = rustix::fs::fstat(self.handle());
        let stat =
            stat.map_err(|error| target::target_problem(&self.target.part(), &error.into()))?;
        self.write_state_of(have, stat.st_ino)?;
        self.has_valid_resume_state.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write_state_of(&self, have: &Bitfield, inode: u64) -> Result<(), Problem> {
        let mut have = have.clone();
        for unit in self.unlisted.iter().flat_map(Bitfield::ones) {
            have.set(unit, false);
        }
        let state = ResumeState {
            id: self.id,
            size: self.plan.total(),
            inode,
            have,
        };
        let path = self.target.state();
        state
            .store(&path)
            .map_err(|error| target::target_problem(&path, &error))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // Explicit, because a child process that is being started may briefly keep the file open.
        self.unlock();
    }
}

/// Keeps the error kind, because a new part can succeed once a full disk has space.
fn sync_failure(error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "some of the written data did not reach the disk ({error}); check the disk and resume"
        ),
    )
}

fn in_use(part: &Path) -> Problem {
    Problem::new(
        Reason::TargetExists,
        format!(
            "{} exists and does not belong to this download; it may belong to another unfinished \
             download: cancel that one, move it away, or choose another target",
            part.display()
        ),
    )
    .field("target")
}

/// Whether a folder is empty.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
