//! Puts the store's files on the disk itself, where a power cut leaves them.
//!
//! sled 0.34 ends a flush with `sync_file_range`. That leaves the file's length and the disk's own cache alone, so that a machine
//! which loses power can lose what sled calls flushed. Whoever acknowledges a change calls [`StoreFiles::sync`] first.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long sled may take to let go of what it had open.
pub(crate) const CLOSING: Duration = Duration::from_secs(2);

/// sled's log: every change is in it, but for pages that are too large for it.
const LOG: &str = "db";

/// sled's folder for pages that are too large for its log, one file each.
const BLOBS: &str = "blobs";

/// Name of the file that shows whether there is room again.
const PROBE: &str = "probe";

/// Bytes that must fit the disk before the store is opened again: two of sled's segments.
const PROBE_BYTES: usize = 1024 * 1024;

/// Bytes that are read and written back at once by [`rewrite`].
const REWRITE_BYTES: usize = 1024 * 1024;

/// The files of an open store.
#[derive(Debug)]
pub(crate) struct StoreFiles {
    blobs: PathBuf,
    /// Held open from before the first write on: the system reports a failed write to those who had the file open then.
    log: File,
    synced_blobs: HashSet<OsString>,
}

impl StoreFiles {
    /// The files of the store in `folder`, which sled has opened: all of them and their names are on the disk when this returns, and
    /// nobody but the owner may read them.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let mode = match entry.file_type()? {
                kind if kind.is_file() => 0o600,
                kind if kind.is_dir() => 0o700,
                _ => continue,
            };
            make_private(&entry.path(), mode);
            File::open(entry.path())?.sync_all()?;
        }
        make_private(folder, 0o700);
        sync_folder(folder)?;
        let mut files = Self {
            blobs: folder.join(BLOBS),
            log: File::open(folder.join(LOG))?,
            synced_blobs: HashSet::new(),
        };
        files.sync()?;
        Ok(files)
    }

    /// Puts everything that was written before this call on the disk.
    ///
    /// # Errors
    /// Those of the system. After one, nothing that was written since the last success is certain to be on the disk, and trying
    /// again does not make it so: the store has to be closed, [`rewrite`] called, and the store opened again.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let mut found = HashSet::new();
        let mut is_new = false;
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let name = entry.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(entry.path()) {
                    Ok(blob) => blob.sync_data()?,
                    // sled removes those that nothing refers to any more.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                is_new = true;
            }
            found.insert(name);
        }
        if is_new {
            sync_folder(&self.blobs)?;
        }
        self.synced_blobs = found;
        self.log.sync_data()
    }
}

/// Takes away what other users may do with a file or folder. Where the system does not allow it, the index works all the same.
fn make_private(path: &Path, mode: u32) {
    let is_private = |found: fs::Metadata| found.permissions().mode().trailing_zeros() >= 6;
    if path.metadata().is_ok_and(is_private) {
        return;
    }
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        tracing::warn!(path = %path.display(), %error, "other users may read what the index stores");
    }
}

/// Puts the names in a folder on the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // A file system that has no such thing, as some network file systems.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Fails where the disk has no room for more.
pub(crate) fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0x5a; PROBE_BYTES])?;
        file.sync_data()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Writes what the log of a closed store reads back over itself, and puts it on the disk.
///
/// After a failed write the system may keep the new bytes in memory and call them written: they read as if they were on the disk, and
/// a later sync does not write them. Writing them again makes the file on the disk what it reads as.
///
/// # Errors
/// Those of the system; the file still reads as before.
pub(crate) fn rewrite(folder: &Path) -> io::Result<()> {
    let mut log = match File::options().read(true).write(true).open(folder.join(LOG)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    lock_patiently(&log)?;
    let length = log.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; REWRITE_BYTES];
    let mut at = 0;
    while at < length {
        let count = log.read_at(&mut buffer, at)?;
        if count == 0 {
            break;
        }
        log.write_all_at(&buffer[..count], at)?;
        at += count as u64;
    }
    log.sync_all()
}

/// Waits until sled has let go of its log, which it locks while it has it open.
fn lock_patiently(log: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begun.elapsed() < CLOSING => thread::sleep(CLOSING / 100),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    ErrorKind::ResourceBusy,
                    "the failed store is not closed yet",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewriting_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        rewrite(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..REWRITE_BYTES + 77).map(|n| n as u8).collect();
        fs::write(dir.path().join(LOG), &bytes).unwrap();
        rewrite(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(LOG)).unwrap(), bytes);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
