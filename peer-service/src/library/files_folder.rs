//! The location of the files folder, and the rules that depend on it.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::library::problems::is_gone;

/// The folder whose content is shared automatically. An absolute path without links.
#[derive(Debug, Clone)]
pub(crate) struct FilesFolder(PathBuf);

impl FilesFolder {
    /// Creates the folder if it is missing.
    ///
    /// # Errors
    /// It can be neither found nor created.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        path.canonicalize().map(Self)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the path is at the top level of the folder, where each path is an item.
    pub(crate) fn has_item_at(&self, path: &Path) -> bool {
        path.parent() == Some(&self.0)
    }

    /// Whether an item at this path stays in the library if the path does not exist. In the files
    /// folder, removing a path unshares it. A download that its owner did not share does not stay
    /// either.
    pub(crate) fn survives_offline(&self, path: &Path, is_unrequested: bool) -> bool {
        !is_unrequested && !path.starts_with(&self.0)
    }

    /// Whether the path does not exist now and its item stays. Reads the disk.
    pub(crate) fn is_offline(&self, path: &Path, is_unrequested: bool) -> bool {
        self.survives_offline(path, is_unrequested)
            && path.metadata().is_err_and(|error| is_gone(&error))
    }
}
