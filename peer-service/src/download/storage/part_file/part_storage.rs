//! The file or folder that holds the data of a part: hides which of the two it is.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    sync::Arc,
};

use rustix::fs::OFlags;

use crate::{download::storage::collection_tree::CollectionTree, fs::page_cache};

/// The file or folder that holds the data of a part.
#[derive(Debug)]
pub(crate) enum PartStorage {
    /// A plain file.
    File(Arc<File>),
    /// The folder of a collection.
    Tree(CollectionTree),
}

impl PartStorage {
    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Tree(tree) => tree.dir().as_fd(),
        }
    }

    /// The device number of the file system.
    #[allow(
        clippy::unnecessary_cast,
        reason = "`st_dev` is of another type on other systems"
    )]
    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(self.handle())?.st_dev as u64)
    }

    /// Whether this is a file that supports reads without waiting for a disk or another machine.
    pub(super) fn never_waits(&self) -> bool {
        matches!(self, Self::File(file) if page_cache::never_waits(file))
    }

    /// The file at this index of the plan.
    pub(super) fn file(&self, index: usize) -> io::Result<Arc<File>> {
        match self {
            Self::File(file) => Ok(Arc::clone(file)),
            Self::Tree(tree) => tree.file(index),
        }
    }

    /// The file at this index of the plan, for writing; created if it does not exist.
    pub(super) fn file_to_write(&self, index: usize) -> io::Result<Arc<File>> {
        match self {
            Self::File(file) => Ok(Arc::clone(file)),
            Self::Tree(tree) => tree.new_file(index),
        }
    }

    /// Flushes all data.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_data(),
            Self::Tree(tree) => sync_tree(tree),
        }
    }

    /// Removes the file or folder at `path`, which is this one.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::File(_) => fs::remove_file(path),
            Self::Tree(_) => fs::remove_dir_all(path),
        }
    }
}

/// Opens an existing part file, or creates it exclusively so that a file created meanwhile is not
/// used.
pub(super) fn open_file(path: &Path, exists: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(!exists)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("something other than a file is there")),
    }
}

#[cfg(target_os = "linux")]
fn sync_tree(tree: &CollectionTree) -> io::Result<()> {
    // One call instead of one for each of thousands of files.
    Ok(rustix::fs::syncfs(tree.dir())?)
}

#[cfg(not(target_os = "linux"))]
fn sync_tree(_tree: &CollectionTree) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}
