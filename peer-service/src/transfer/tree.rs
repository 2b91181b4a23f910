//! The folder that a collection is written into while it is fetched.
//!
//! Invariant: every path is opened beneath the folder's handle and never through a link, so that neither a hostile manifest nor
//! somebody who plants links in the folder can lead a write out of it. Links are made last, by [`Tree::complete`].

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, ErrorKind, Seek as _},
    num::NonZeroUsize,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use lru::LruCache;
use potluck_core::{
    manifest::{Content, Manifest},
    merkle::EMPTY_FILE,
    path::RelPath,
    plan::{BUNDLE_SIZE, Plan},
};
use rustix::fs::OFlags;

use crate::bits::Bits;

/// Large files kept open at once: the pieces of a few files arrive at a time, and file handles are scarce.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// See the module.
#[derive(Debug)]
pub(crate) struct Tree {
    dir: Dir,
    manifest: Arc<Manifest>,
    plan: Arc<Plan>,
    /// Whether the folder was made just now: whatever is in it was written here, and no longer than it should be.
    made: bool,
    /// Handles of large files by their place in the plan.
    open: Mutex<LruCache<usize, Arc<File>>>,
}

/// Whether a file is made where it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    /// It has to be there.
    No,
    /// If it is not there.
    Missing,
    /// It must not be there.
    New,
}

impl Tree {
    /// Opens the folder at `path`, made if it is not there, and makes the folders inside it.
    pub(crate) fn open(path: &Path, manifest: Arc<Manifest>, plan: Arc<Plan>) -> io::Result<Self> {
        let made = match std::fs::create_dir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            made => made.is_ok(),
        };
        // A handle that can be locked and flushed, which the one that cap-std opens by itself cannot.
        let handle = File::options()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
            .open(path)?;
        let tree = Self {
            dir: Dir::from_std_file(handle),
            manifest,
            plan,
            made,
            open: Mutex::new(LruCache::new(OPEN_FILES)),
        };
        for folder in tree.folders() {
            tree.dir.create_dir_all(folder)?;
        }
        Ok(tree)
    }

    /// The folder's handle.
    pub(crate) const fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Every folder that holds something, each parent before what is in it.
    fn folders(&self) -> BTreeSet<&str> {
        self.manifest
            .entries()
            .filter_map(|entry| match entry.content {
                Content::EmptyDirectory => Some(entry.path.as_str()),
                _ => entry.path.parent(),
            })
            .collect()
    }

    /// The file with this content, by its place in the plan, to be written: made if it is not there, as it most likely is not yet.
    pub(crate) fn new_file(&self, index: usize) -> io::Result<Arc<File>> {
        let small = self.plan.file(index).is_some_and(|file| file.size <= BUNDLE_SIZE);
        let first = self.plan.first_entry(index).filter(|_| small && self.made);
        match first.map(|first| self.open_entry(first, Make::New)) {
            Some(Ok((file, _))) => Ok(Arc::new(file)),
            Some(Err(error)) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => self.handle(index, Make::Missing),
        }
    }

    /// The same, to be read. Never made: whoever is served from the folder when it has its name already would make there again what its
    /// owner removed.
    pub(crate) fn file(&self, index: usize) -> io::Result<Arc<File>> {
        self.handle(index, Make::No)
    }

    fn handle(&self, index: usize, make: Make) -> io::Result<Arc<File>> {
        if let Some(file) = self.handles().get(&index) {
            return Ok(Arc::clone(file));
        }
        let first = self.plan.first_entry(index).ok_or(ErrorKind::InvalidInput)?;
        let (file, size) = self.open_entry(first, make)?;
        let file = Arc::new(file);
        if size > BUNDLE_SIZE {
            self.handles().put(index, Arc::clone(&file));
        }
        Ok(file)
    }

    fn handles(&self) -> std::sync::MutexGuard<'_, LruCache<usize, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry's file, and the size that it is to have.
    fn open_entry(&self, entry: u32, make: Make) -> io::Result<(File, u64)> {
        let entry = self.manifest.get(entry).ok_or(ErrorKind::InvalidInput)?;
        let Content::File { size, executable, .. } = entry.content else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(make == Make::Missing)
            .create_new(make == Make::New)
            .mode(if executable { 0o777 } else { 0o666 })
            // Not through a link, and not stuck on a pipe, whoever put it there.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
        let file = self.dir.open_with(entry.path.as_str(), &options)?.into_std();
        // What was made just now is nothing else.
        match make == Make::New || file.metadata()?.is_file() {
            true => Ok((file, size)),
            false => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// Whether each file that these units are of is there, and long enough to hold them.
    pub(crate) fn holds(&self, have: &Bits) -> bool {
        let mut least: HashMap<usize, u64> = HashMap::new();
        for span in have.ones().flat_map(|unit| self.plan.spans(unit)) {
            let least = least.entry(span.file).or_default();
            *least = (span.offset + span.len).max(*least);
        }
        least.into_iter().all(|(file, least)| {
            let first = self.plan.first_entry(file);
            let path = first.and_then(|first| Some(self.manifest.get(first)?.path));
            let there = path.and_then(|path| self.dir.symlink_metadata(path.as_str()).ok());
            there.is_some_and(|there| there.is_file() && there.len() >= least)
        })
    }

    /// Makes what no unit brings: empty files, copies of content that several paths have, and the links. Fails where something is in the
    /// folder that the manifest does not list, and where something is gone that was fetched.
    pub(crate) fn complete(&self) -> io::Result<()> {
        self.handles().clear();
        for entries in self.manifest.contents() {
            let id = self.manifest.id(entries[0]);
            if self.made && entries.len() == 1 && id != Some(EMPTY_FILE) {
                continue;
            }
            let make = match id == Some(EMPTY_FILE) {
                true => Make::Missing,
                false => Make::No,
            };
            let (first, size) = self.open_entry(entries[0], make)?;
            let len = first.metadata()?.len();
            if len < size {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            // It may have been longer before.
            if len > size {
                first.set_len(size)?;
            }
            for &entry in &entries[1..] {
                let (mut copy, _) = self.open_entry(entry, Make::Missing)?;
                copy.set_len(0)?;
                let mut source = first.try_clone()?;
                source.rewind()?;
                // Shares the blocks where the file system can.
                io::copy(&mut source, &mut copy)?;
            }
        }
        for entry in self.manifest.entries() {
            if let Content::Link { target } = entry.content {
                self.link(entry.path, target)?;
            }
        }
        self.refuse_strangers(Path::new("."))
    }

    fn link(&self, path: RelPath<'_>, target: &str) -> io::Result<()> {
        match self.dir.read_link_contents(path.as_str()) {
            Ok(there) if there == Path::new(target) => return Ok(()),
            Ok(_) => self.dir.remove_file(path.as_str())?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.dir.symlink(target, path.as_str())
    }

    /// Fails where something is in the folder that the manifest neither lists nor implies.
    fn refuse_strangers(&self, folder: &Path) -> io::Result<()> {
        let known = |path: &str| self.manifest.find(path).is_some() || self.manifest.is_above(path);
        for entry in self.dir.read_dir(folder)? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let relative = path.strip_prefix(".").unwrap_or(&path);
            if !relative.to_str().is_some_and(known) {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    format!(
                        "{} is in the folder and does not belong to it",
                        relative.display()
                    ),
                ));
            }
            if entry.file_type()?.is_dir() {
                self.refuse_strangers(&path)?;
            }
        }
        Ok(())
    }
}
