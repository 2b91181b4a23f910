//! Moves the downloaded entries of a collection into its folder, which has other entries already.
//!
//! Invariants:
//!
//! - Nothing in the folder is replaced, and nothing is written through a link out of it.
//! - Each file that appears in the folder is verified and complete. If the move is interrupted, the
//!   next run finds the moved files in the folder and the others in the part.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use cap_std::fs::Dir;
use potluck_core::{
    Problem,
    collection::manifest::{EntryContent, Manifest},
};
use rustix::{
    fs::{OFlags, RenameFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use crate::{
    download::storage::{
        collection_tree::CollectionTree,
        part_file::PartFile,
        target::{self, AtEntry},
    },
    fs::durable,
};

/// Moves the entries of a finished part, and removes the part if it is empty then. All changes are
/// on disk when this returns.
///
/// # Errors
/// `TARGET_EXISTS` if the folder has something else in place of an entry; `CANCELLED` if `stop` is
/// cancelled; otherwise the file system's error. The remaining entries stay in the part.
pub(super) fn move_into_target(
    part: &PartFile,
    tree: &CollectionTree,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let target = part.target();
    let failed = |error: io::Error| target::target_problem(&target.path, &error);
    let failed_at = |path: &str, error: io::Error| match error.kind() {
        ErrorKind::AlreadyExists => target::target_exists(&target.path.join(path)),
        _ => failed(AtEntry::wrap(path, error)),
    };
    let folder = open_folder(&target.path).map_err(failed)?;
    let manifest = tree.manifest();
    for path in manifest.folders() {
        match folder.create_dir(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => created.map_err(|error| failed_at(path, error))?,
        }
    }
    for entry in manifest.entries() {
        if stop.is_cancelled() {
            return Err(target::stopped());
        }
        let path = entry.path.as_str();
        if matches!(entry.content, EntryContent::EmptyDirectory) {
            continue;
        }
        match move_entry(tree.dir(), &folder, path) {
            // A link that the file system does not support was not created.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && matches!(entry.content, EntryContent::Link { .. }) => {}
            moved => moved.map_err(|error| failed_at(path, error))?,
        }
    }
    let is_empty = remove_folders(tree.dir(), part.plan().manifest().unwrap_or(manifest));
    part.sync().map_err(failed)?;
    if is_empty && std::fs::remove_dir(target.part()).is_ok() {
        let _ = std::fs::remove_file(target.state());
    }
    durable::sync_folder(target.parent()).map_err(failed)
}

/// Opens the folder, which is created if it does not exist; never follows a link.
fn open_folder(path: &Path) -> io::Result<Dir> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let handle = File::options()
        .read(true)
        .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
        .open(path)?;
    Ok(Dir::from_std_file(handle))
}

/// Moves a file or link without overwriting.
fn move_entry(from: &Dir, to: &Dir, path: &str) -> io::Result<()> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    // Neither is followed out of its folder.
    let (from, to) = (from.open_dir(folder)?, to.open_dir(folder)?);
    match rustix::fs::renameat_with(&from, name, &to, name, RenameFlags::NOREPLACE) {
        // The file system cannot rename without overwriting: the check and the rename are not
        // atomic.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if to.symlink_metadata(name).is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            from.rename(name, &to, name)
        }
        renamed => Ok(renamed?),
    }
}

/// Removes the empty folders of the collection; whether none remains.
fn remove_folders(dir: &Dir, manifest: &Manifest) -> bool {
    let mut folders: Vec<&str> = manifest.folders().collect();
    // Each folder follows its parent.
    folders.reverse();
    for folder in folders {
        // A folder that is not empty stays.
        let _ = dir.remove_dir(folder);
    }
    dir.entries().is_ok_and(|mut entries| entries.next().is_none())
}
