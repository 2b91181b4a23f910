//! Makes the store's files durable, so that they survive a power failure.
//!
//! sled 0.34 ends a flush with `sync_file_range`, which writes neither the file's length nor the
//! disk's own cache. A machine that loses power can therefore lose data that sled calls flushed.
//! Call [`StoreFiles::sync`] before a change is acknowledged.

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

/// How long sled may take to close its files.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// sled's log: contains every change except pages that are too large for it.
const LOG: &str = "db";

/// sled's folder for pages that are too large for the log, one file each.
const BLOBS: &str = "blobs";

/// File that [`probe`] writes to find out whether the disk has room.
const PROBE: &str = "probe";

/// Free bytes needed before the store is reopened: two of sled's own segments.
const PROBE_BYTES: usize = 1024 * 1024;

/// Buffer size of [`rewrite`], in bytes.
const REWRITE_BYTES: usize = 1024 * 1024;

/// The files of an open store.
#[derive(Debug)]
pub(crate) struct StoreFiles {
    blobs: PathBuf,
    /// Open since before the first write: the system reports a write error only to files that were
    /// open at that time.
    log: File,
    synced_blobs: HashSet<OsString>,
}

impl StoreFiles {
    /// Opens the files of a store in `folder` that sled has opened already. Makes all of them
    /// durable, including their names, and readable only by their owner.
    ///
    /// # Errors
    /// Any I/O error.
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

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// Any I/O error. After one, no write since the last success is certain to be durable, and
    /// calling this again does not help: close the store, call [`rewrite`] and open the store
    /// again.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let mut blobs = HashSet::new();
        let mut has_new = false;
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let name = entry.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(entry.path()) {
                    Ok(blob) => blob.sync_data()?,
                    // sled removes blobs that are no longer referenced.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                has_new = true;
            }
            blobs.insert(name);
        }
        if has_new {
            sync_folder(&self.blobs)?;
        }
        self.synced_blobs = blobs;
        self.log.sync_data()
    }
}

/// Removes other users' permissions on a file or folder. A failure is only logged.
fn make_private(path: &Path, mode: u32) {
    let is_private = |metadata: fs::Metadata| metadata.permissions().mode().trailing_zeros() >= 6;
    if path.metadata().is_ok_and(is_private) {
        return;
    }
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        tracing::warn!(
            path = %path.display(),
            %error,
            "other users may be able to read the stored registrations"
        );
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems, such as some network file systems, cannot sync folders.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Fails if the disk has too little room.
pub(crate) fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0x5a; PROBE_BYTES])?;
        file.sync_data()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Reads the log of a closed store, writes the same bytes back, and syncs them.
///
/// After a failed write, the system may keep the new bytes in memory but mark them as written. They
/// can be read, but a later sync does not write them. Writing them again makes the bytes on disk
/// equal to the bytes that were read.
///
/// # Errors
/// Any I/O error; the readable content of the file is unchanged.
pub(crate) fn rewrite(folder: &Path) -> io::Result<()> {
    let mut log = match File::options().read(true).write(true).open(folder.join(LOG)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    lock_with_retry(&log)?;
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

/// Waits until sled has closed its log, which it locks while open.
fn lock_with_retry(log: &File) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if started.elapsed() < CLOSE_TIMEOUT => {
                thread::sleep(CLOSE_TIMEOUT / 100)
            }
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
    fn rewriting_leaves_the_content_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        rewrite(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..REWRITE_BYTES + 77).map(|n| n as u8).collect();
        fs::write(dir.path().join(LOG), &bytes).unwrap();
        rewrite(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join(LOG)).unwrap(), bytes);
    }

    #[test]
    fn a_probe_removes_its_file() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
