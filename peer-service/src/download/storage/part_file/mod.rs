//! The bytes of a transfer on disk while it runs: a `.part` file or folder and the resume state beside it.
//!
//! Invariants: only verified units are written; the resume state speaks only of units whose data was flushed; after a flush that
//! failed none succeeds; one process at a time has the part (a lock on it). All calls block: they are for the blocking threads. Non-goals: what the bytes mean, who
//! sent them, and where they go in the end ([`crate::download::storage::finalize`]).

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use potluck_core::{
    FileId, Problem, Reason,
    bitfield::Bitfield,
    collection::{manifest::Manifest, plan::Plan},
    read_buffer::ReadBuffer,
};
use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use crate::{
    download::{
        engine::chunk_list::ChunkList,
        storage::{
            collection_tree::CollectionTree,
            resume_state::ResumeState,
            target::{self, DownloadTarget},
        },
    },
    durable,
    fs::page_cache,
};

/// Room left free on the disk, in bytes: a disk filled to the last byte hurts every other program.
const RESERVE: u64 = 16 * 1024 * 1024;

/// Room taken in one call, in bytes: where the file system fills it with zeros, a unit waits for that no longer than this takes.
const PREALLOCATE: u64 = 4 * 1024 * 1024;

/// A part that is open. Cheap to clone through an `Arc`.
#[derive(Debug)]
pub(crate) struct PartFile {
    id: FileId,
    target: DownloadTarget,
    plan: Arc<Plan>,
    storage: PartStorage,
    /// Whether it is a file that can be read without ever waiting for a disk or another machine unless it is to.
    never_waits: bool,
    /// The file system's number.
    device: u64,
    /// Whether a state is on the disk that is to be believed when the part is opened again.
    has_valid_resume_state: AtomicBool,
    /// The first flush that failed.
    sync_error: OnceLock<io::Error>,
}

/// What was found when a part was opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FoundPart {
    /// Nothing: it was made.
    Created,
    /// Data with a state that says which units are there; trust it after a sample.
    Resume(Bitfield),
    /// Data without a usable state: any unit may be there, verify each.
    Unverified,
}

impl PartFile {
    /// Opens the part of this target, or makes it.
    ///
    /// # Errors
    /// [`Reason::TargetExists`] where another download's part is there or another process has it; [`Reason::DiskFull`] where what
    /// is missing does not fit on the disk; [`Reason::TargetUnsuitable`] where the file system cannot hold it;
    /// [`Reason::TargetNotWritable`]; [`Reason::Cancelled`] once `stop` is.
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
            // A pipe, a folder or a link: nothing that a download makes.
            ErrorKind::InvalidInput => in_use(&target.state()),
            _ => target::target_problem(&target.state(), &error),
        };
        let mut state = ResumeState::load(&target.state()).map_err(unreadable)?;
        // Of when this folder was taken for a plain file.
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
            // Files in it are written to: only where a state shows that they are this download's, be it damaged or of another folder.
            Some(_) => before.is_dir() && (target.state().is_file() || is_empty(&path)),
            // One without bytes is what is left where the room for them could not be had.
            None => before.is_file() && (ours || before.len() == plan.total() || before.len() == 0),
        });
        if !fits || (before.is_some() && state.as_ref().is_some_and(|state| state.id != id)) {
            return Err(in_use(&path));
        }
        let body = match manifest {
            Some(manifest) => {
                PartStorage::Tree(CollectionTree::open(&path, manifest, Arc::clone(&plan)).map_err(failed)?)
            }
            None => PartStorage::File(Arc::new(open_file(&path, before.is_some()).map_err(failed)?)),
        };
        let device = body.device().map_err(failed)?;
        let part = Self {
            id,
            target,
            plan,
            never_waits: matches!(&body, PartStorage::File(file) if page_cache::never_waits(file)),
            storage: body,
            device,
            has_valid_resume_state: AtomicBool::new(false),
            sync_error: OnceLock::new(),
        };
        part.lock(&path)?;
        let made = before.is_none();
        let found = match (before, state) {
            (None, _) => FoundPart::Created,
            (Some(before), Some(state)) if ours && part.matches_state(&before, &state) => {
                FoundPart::Resume(state.have)
            }
            (Some(before), _) if before.is_file() && before.len() == 0 => FoundPart::Created,
            (Some(_), _) => FoundPart::Unverified,
        };
        match part.initialize(&found, ours, stop) {
            Ok(()) => Ok((part, found)),
            Err(problem) => {
                // What was made a moment ago holds nothing, and half of the room taken helps nobody.
                if made {
                    part.remove_empty(&path);
                    let _ = fs::remove_file(part.target.state());
                }
                Err(problem)
            }
        }
    }

    /// Whether what is there can be what this state was written of: no copy, which may have been cut short, and nothing shorter or gone.
    fn matches_state(&self, before: &Metadata, state: &ResumeState) -> bool {
        before.ino() == state.inode
            && match &self.storage {
                PartStorage::File(_) => before.len() >= self.plan.total(),
                PartStorage::Tree(tree) => tree.holds_units(&state.have),
            }
    }

    /// Takes the room, and says that a new part has nothing. A state that is `ours` and not believed is made such that nobody ever does:
    /// what shows that it is wrong is gone once there is room.
    fn initialize(&self, found: &FoundPart, ours: bool, stop: &CancellationToken) -> Result<(), Problem> {
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
            // After the state: a folder that is found half made is known to be this download's.
            PartStorage::Tree(tree) => tree.prepare(&self.target.part(), stop),
            PartStorage::File(_) => Ok(()),
        }
    }

    fn remove_empty(&self, path: &Path) {
        let removed = match &self.storage {
            PartStorage::File(_) => fs::remove_file(path),
            PartStorage::Tree(_) => fs::remove_dir_all(path),
        };
        if let Err(error) = removed {
            tracing::debug!(path = %path.display(), %error, "an empty part could not be removed");
        }
    }

    fn lock(&self, path: &Path) -> Result<(), Problem> {
        match try_lock(self.handle()) {
            // Without locks two downloads to one target write the same verified bytes.
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

    /// Gives up the lock: nothing is written any more, though whoever is being served may still read.
    pub(crate) fn unlock(&self) {
        // Where it cannot be unlocked it could not be locked.
        let _ = rustix::fs::flock(self.handle(), FlockOperation::NonBlockingUnlock);
    }

    /// Whether it still stands under its name: somebody may have removed it, or put something else there.
    pub(crate) fn is_at_path(&self) -> bool {
        let path = self.target.part();
        let of = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let (named, held) = (rustix::fs::lstat(&path), rustix::fs::fstat(self.handle()));
        matches!((named.map(of), held.map(of)), (Ok(named), Ok(held)) if named == held)
    }

    fn handle(&self) -> BorrowedFd<'_> {
        self.storage.handle()
    }

    /// Checks that what is missing fits on the disk, and takes the room for it.
    fn reserve_space(&self, found: &FoundPart) -> io::Result<()> {
        let disk = rustix::fs::fstatvfs(self.handle())?;
        let missing = match (&self.storage, found) {
            // Blocks of 512 bytes, whatever the file system's own.
            (PartStorage::File(file), _) => self.plan.total().saturating_sub(file.metadata()?.blocks() * 512),
            (PartStorage::Tree(tree), FoundPart::Resume(have)) => tree.room_needed(Some(have), disk.f_frsize),
            (PartStorage::Tree(tree), FoundPart::Created) => tree.room_needed(None, disk.f_frsize),
            (PartStorage::Tree(tree), FoundPart::Unverified) => {
                let all = Bitfield::full(self.plan.unit_count());
                tree.room_needed(Some(&all), disk.f_frsize)
            }
        };
        if missing > 0 && missing.saturating_add(RESERVE) > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(ErrorKind::StorageFull.into());
        }
        match &self.storage {
            PartStorage::File(file) => file.set_len(self.plan.total()),
            PartStorage::Tree(_) => Ok(()),
        }
    }

    /// Takes the room for the whole file, where the file system can, as long as it is `wanted`. Units may be written meanwhile. Not in
    /// memory: that would be filled with zeros first, which is half the work of the download itself.
    ///
    /// # Errors
    /// Whatever the file system says: the rest of the room is not taken.
    pub(crate) fn preallocate(&self, is_wanted: impl Fn() -> bool) -> io::Result<()> {
        let PartStorage::File(file) = &self.storage else {
            return Ok(());
        };
        if page_cache::is_in_memory(file) {
            return Ok(());
        }
        let total = self.plan.total();
        for offset in (0..total).step_by(PREALLOCATE as usize) {
            if !is_wanted() {
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

    /// Whether the disk has room for what is missing, or at least for more than a few units of it.
    pub(crate) fn has_room(&self, have: &Bitfield) -> bool {
        let missing = (0..have.len())
            .filter(|&unit| !have.get(unit))
            .map(|unit| self.plan.unit_len(unit))
            .sum::<u64>();
        rustix::fs::fstatvfs(self.handle())
            .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= missing.min(RESERVE) + RESERVE)
    }

    /// What is being fetched.
    pub(crate) const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Where it is written to and will be.
    pub(crate) const fn target(&self) -> &DownloadTarget {
        &self.target
    }

    /// Whether it is a file that can be read without ever waiting for a disk or another machine unless it is to.
    pub(crate) const fn never_waits(&self) -> bool {
        self.never_waits
    }

    /// The number of the file system that it is on.
    pub(crate) const fn device(&self) -> u64 {
        self.device
    }

    /// Bytes of copies that were made of content that several paths have.
    pub(crate) fn copied(&self) -> u64 {
        match &self.storage {
            PartStorage::Tree(tree) => tree.copied(),
            PartStorage::File(_) => 0,
        }
    }

    /// What the file system could not keep, a sentence each; known once it is finished.
    pub(crate) fn not_kept(&self) -> Vec<String> {
        match &self.storage {
            PartStorage::Tree(tree) => tree.not_kept(),
            PartStorage::File(_) => Vec::new(),
        }
    }

    /// Where the bytes are.
    pub(crate) const fn storage(&self) -> &PartStorage {
        &self.storage
    }

    /// The file with this content, by its place in the plan.
    pub(crate) fn file(&self, index: usize) -> io::Result<Arc<File>> {
        match &self.storage {
            PartStorage::File(file) => Ok(Arc::clone(file)),
            PartStorage::Tree(tree) => tree.file(index),
        }
    }

    /// Writes a verified unit.
    ///
    /// # Errors
    /// Whatever the file system says; the unit is then not there.
    pub(crate) fn write(&self, unit: u32, data: &ChunkList) -> io::Result<()> {
        let mut at = 0;
        for span in self.plan.spans(unit) {
            let file = match &self.storage {
                PartStorage::Tree(tree) => tree.new_file(span.file)?,
                PartStorage::File(file) => Arc::clone(file),
            };
            let mut offset = span.offset;
            for bytes in data.slices(at..at + span.len as usize) {
                file.write_all_at(bytes, offset)?;
                offset += bytes.len() as u64;
            }
            at += span.len as usize;
        }
        Ok(())
    }

    /// Reads a unit back, verified or not.
    ///
    /// # Errors
    /// Whatever the file system says; `UnexpectedEof` where it is not all there.
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

    /// Flushes all data, then records which units it holds. `have` must have been read before the call.
    ///
    /// # Errors
    /// As of the file system; the state before still stands and is still true, and where the flush failed none follows.
    pub(crate) fn checkpoint(&self, have: &Bitfield) -> Result<(), Problem> {
        self.sync()
            .map_err(|error| target::target_problem(&self.target.part(), &error))?;
        self.write_state(have)
    }

    /// Flushes all data. The system tells of data that it could not write once and drops it: another try would succeed and prove
    /// nothing. So the first error is the answer from then on, and what the last state does not speak of has to be fetched again.
    ///
    /// # Errors
    /// Whatever the file system says, or said once.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if let Some(error) = self.sync_error.get() {
            return Err(sync_failure(error));
        }
        let flushed = match &self.storage {
            PartStorage::File(file) => file.sync_data(),
            PartStorage::Tree(tree) => sync_tree(tree),
        };
        flushed.map_err(|error| {
            let first = self.sync_error.get_or_init(|| error);
            // Without a state that is believed it would be read to find what is there, and memory may still show what the disk lost.
            if !self.has_valid_resume_state()
                && let Err(problem) = self.write_state(&Bitfield::new(self.plan.unit_count()))
            {
                tracing::warn!(%problem, "the resume state could not be written");
            }
            sync_failure(first)
        })
    }

    /// Whether a flush failed: nothing that is written from then on can be relied on. Only a part that is opened anew can go on, with
    /// what its state speaks of.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_error.get().is_some()
    }

    /// Whether a state is on the disk that is to be believed when the part is opened again.
    pub(crate) fn has_valid_resume_state(&self) -> bool {
        self.has_valid_resume_state.load(Ordering::Relaxed)
    }

    /// Makes the state on the disk such that nobody ever believes it: what is there has to be verified.
    pub(crate) fn invalidate_resume_state(&self) -> Result<(), Problem> {
        self.has_valid_resume_state.store(false, Ordering::Relaxed);
        self.write_state_of(&Bitfield::new(self.plan.unit_count()), 0)
    }

    fn write_state(&self, have: &Bitfield) -> Result<(), Problem> {
        let stat = rustix::fs::fstat(self.handle());
        let stat = stat.map_err(|error| target::target_problem(&self.target.part(), &error.into()))?;
        self.write_state_of(have, stat.st_ino)?;
        self.has_valid_resume_state.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write_state_of(&self, have: &Bitfield, inode: u64) -> Result<(), Problem> {
        let state = ResumeState {
            id: self.id,
            size: self.plan.total(),
            inode,
            have: have.clone(),
        };
        let path = self.target.state();
        state
            .store(&path)
            .map_err(|error| target::target_problem(&path, &error))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // By name: a program that is started at that moment has the open file a little longer than this one.
        self.unlock();
    }
}

/// Takes the lock on a part; false where somebody else has it. A file system without locks gives it to everybody.
fn try_lock(part: impl AsFd) -> bool {
    rustix::fs::flock(part, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

/// Removes an unfinished download of this id, if there is one and nobody is writing it.
///
/// # Errors
/// As of the file system.
pub(crate) fn remove(id: FileId, target: &DownloadTarget) -> io::Result<()> {
    let state = target.state();
    // Only what a state of this very download speaks of is ours to remove.
    if ResumeState::load(&state)?.is_none_or(|state| state.id != id) {
        return Ok(());
    }
    let part = target.part();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let held = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&part)
    {
        Ok(held) => held,
        Err(error) if error.kind() == ErrorKind::NotFound => return fs::remove_file(state),
        Err(error) => return Err(error),
    };
    // It may be another transfer's to the same target, which is at work.
    if !try_lock(&held) {
        tracing::info!(part = %part.display(), "another download is writing it: nothing was removed");
        return Ok(());
    }
    let held = held.metadata()?;
    match held.is_dir() {
        true => fs::remove_dir_all(&part)?,
        false if held.is_file() => fs::remove_file(&part)?,
        // Nothing that a download makes.
        false => return Ok(()),
    }
    fs::remove_file(state)
}

/// Of the same kind: where there was no room, a new part may find some.
fn sync_failure(error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("some of what was written did not reach the disk ({error}); see that it works and resume"),
    )
}

fn in_use(part: &Path) -> Problem {
    Problem::new(
        Reason::TargetExists,
        format!(
            "{} is there already and is no part of this: it may be another download that has not ended; \
             cancel that, move it away, or choose another target",
            part.display()
        ),
    )
    .field("target")
}

/// Whether nothing is in a folder.
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Opens a part that was there and is a file, or makes it: exclusively, so that nothing that came there meanwhile is taken for it.
fn open_file(path: &Path, is_there: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(!is_there)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("something that is no file is there")),
    }
}

#[cfg(target_os = "linux")]
fn sync_tree(tree: &CollectionTree) -> io::Result<()> {
    // One call instead of one for each of thousands of files.
    Ok(rustix::fs::syncfs(tree.dir())?)
}

#[cfg(not(target_os = "linux"))]
fn flush_tree(_tree: &CollectionTree) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

/// See the module.
#[derive(Debug)]
pub(crate) enum PartStorage {
    /// A plain file.
    File(Arc<File>),
    /// A collection's folder.
    Tree(CollectionTree),
}

impl PartStorage {
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Tree(tree) => tree.dir().as_fd(),
        }
    }

    /// The number of the file system that it is on.
    #[allow(
        clippy::unnecessary_cast,
        reason = "`st_dev` is of another type on other systems"
    )]
    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(self.handle())?.st_dev as u64)
    }
}
