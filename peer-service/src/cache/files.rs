//! The files of an entry.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::download::storage::target::DownloadTarget;

/// The end of the name of an entry that is being removed.
const LEAVING: &str = ".leaving";

/// The name of an entry while it is removed.
pub(super) fn leaving_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LEAVING);
    name.into()
}

/// The unfinished download of an entry.
pub(super) fn part_of(path: &Path) -> PathBuf {
    let path = path.to_owned();
    DownloadTarget { path }.part()
}

/// The resume state of the unfinished download of an entry.
pub(super) fn state_of(path: &Path) -> PathBuf {
    let path = path.to_owned();
    DownloadTarget { path }.state()
}

/// Deletes a file or a folder; it may be missing. Follows no links.
pub(super) fn delete(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    match metadata.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}
