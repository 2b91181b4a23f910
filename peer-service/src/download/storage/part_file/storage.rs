//! Where the bytes of a part go.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use crate::download::storage::collection_tree::CollectionTree;

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
