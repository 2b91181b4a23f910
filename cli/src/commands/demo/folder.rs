//! The demo's temporary folder: locked while the demo runs, and removed at its end or, if the demo
//! was killed, by the next one.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use potluck_core::Reason;
use tempfile::TempDir;

use crate::{error::CommandError, output::text};

/// Start of the folder's name; a random part follows.
const PREFIX: &str = "potluck-demo-";

/// Name of the locked file in the folder.
const LOCK: &str = "lock";

/// Room for databases, in bytes, besides the files.
const SPARE: u64 = 16 * 1024 * 1024;

/// A temporary folder that belongs to this process.
#[derive(Debug)]
pub(crate) struct DemoFolder {
    folder: TempDir,
    _lock: File,
}

impl DemoFolder {
    /// Removes the folders of demos that were killed, and creates a folder on a disk with room for
    /// `bytes`.
    pub(crate) fn create(bytes: u64) -> Result<Self, CommandError> {
        let parent = std::env::temp_dir();
        remove_stale(&parent);
        let failed = |error: io::Error| CommandError::io("create a folder in", &parent, &error);
        let disk = rustix::fs::statvfs(&parent).map_err(|error| failed(error.into()))?;
        let room = disk.f_bavail.saturating_mul(disk.f_frsize);
        let needed = bytes.saturating_add(SPARE);
        if room < needed {
            return Err(CommandError::new(
                Reason::DiskFull,
                format!(
                    "the demo needs {} in {}, which has {}",
                    text::size(needed),
                    parent.display(),
                    text::size(room)
                ),
            )
            .hint("free some space, or set TMPDIR to a folder on another disk"));
        }
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .map_err(failed)?;
        let lock = File::create_new(folder.path().join(LOCK)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it with everything in it.
    pub(crate) fn remove(self) -> io::Result<()> {
        self.folder.close()
    }
}

/// Removes demo folders that no process has locked. Skips those that cannot be removed: they are
/// another user's.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let is_demo = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // A symbolic link is no folder here: it is not followed.
        if !is_demo || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        // A folder without the file was just created: its demo is about to lock it.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        match lock.try_lock() {
            Ok(()) => {
                if let Err(error) = fs::remove_dir_all(entry.path()) {
                    tracing::debug!(%error, path = %entry.path().display(), "an old demo folder stays");
                }
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_only_folders_that_nobody_has_locked() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for name in ["potluck-demo-a", "potluck-demo-b", "potluck-demo-new", "other"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in ["potluck-demo-a", "potluck-demo-b", "other"] {
            File::create(at(name).join(LOCK)).unwrap();
        }
        let running = File::open(at("potluck-demo-b").join(LOCK)).unwrap();
        running.lock().unwrap();
        remove_stale(parent.path());
        let left = ["potluck-demo-a", "potluck-demo-b", "potluck-demo-new", "other"];
        assert_eq!(left.map(|name| at(name).exists()), [false, true, true, true]);
    }
}
