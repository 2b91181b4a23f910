//! The data folder: one process at a time, and a store that cannot be read is moved aside.
//!
//! Invariant: nothing is moved aside for a fault that is not the store's: a folder in use, a missing permission and a full disk are
//! refused with their cause.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::StoreError;

/// Held while a process uses the folder; holds its process id for people.
const LOCK: &str = "index.lock";

/// The store within the folder.
const STORE: &str = "sled";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another index uses it.
    #[error("the data folder {} is in use by {holder}: stop it, or give another --data-dir", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who uses it.
        holder: String,
    },
    /// The system does not allow it.
    #[error("cannot use the data folder: {}: {source}", path.display())]
    System {
        /// The folder or the file at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An empty store in a new folder is damaged as well.
    #[error("an empty store in {} cannot be opened: {why}", path.display())]
    Hopeless {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The right to use a folder, until it is dropped. Given up by name: where a program is started at that moment, it has the open file a
/// little longer than this one.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // With the last that has it open it goes in any case.
        let _ = self.0.unlock();
    }
}

/// Opens what is in a folder, which is made if missing. What cannot be read is moved aside, and an empty one opened.
pub(super) fn open<T>(
    data_dir: &Path,
    open: impl Fn(&Path) -> Result<T, StoreError>,
) -> Result<(T, Lock), FolderError> {
    let system = |path: &Path| {
        let path = path.to_owned();
        move |source| FolderError::System { path, source }
    };
    fs::create_dir_all(data_dir).map_err(system(data_dir))?;
    let lock = lock(data_dir)?;
    let store = data_dir.join(STORE);
    check_permissions(&store)?;
    let why = match attempt(&store, &open) {
        Ok(value) => return Ok((value, lock)),
        Err(StoreError::Io(source)) => return Err(FolderError::System { path: store, source }),
        Err(StoreError::Damaged(why)) => why,
    };
    let aside = move_aside(&store).map_err(system(&store))?;
    tracing::warn!(
        folder = %aside.display(),
        reason = %why,
        "the stored registrations cannot be read and were moved aside; the index starts empty and fills as peers renew"
    );
    match attempt(&store, &open) {
        Ok(value) => Ok((value, lock)),
        Err(StoreError::Io(source)) => Err(FolderError::System { path: store, source }),
        Err(StoreError::Damaged(why)) => Err(FolderError::Hopeless { path: store, why }),
    }
}

/// Whether an error is the system's, and says nothing of what is in the store.
pub(super) fn is_the_systems(error: &io::Error) -> bool {
    /// EIO, ENFILE, EMFILE: a failing disk and too many open files, which have no kind of their own.
    const RAW: [i32; 3] = [5, 23, 24];
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::OutOfMemory
            | ErrorKind::ResourceBusy
    ) || error.raw_os_error().is_some_and(|raw| RAW.contains(&raw))
}

fn attempt<T>(store: &Path, open: impl Fn(&Path) -> Result<T, StoreError>) -> Result<T, StoreError> {
    // sled panics on some damage. What it leaves behind is dropped, and the folder moved aside.
    catch_unwind(AssertUnwindSafe(|| open(store))).unwrap_or_else(|_| {
        Err(StoreError::Damaged(
            "the store panicked when it was opened".to_owned(),
        ))
    })
}

fn lock(data_dir: &Path) -> Result<Lock, FolderError> {
    let path = data_dir.join(LOCK);
    let system = |source| FolderError::System {
        path: path.clone(),
        source,
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(system)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(system)?;
            writeln!(file, "{}", std::process::id()).map_err(system)?;
            Ok(Lock(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // For people only: whatever cannot be read is left out.
            let _ = file.take(20).read_to_string(&mut text);
            let holder = match text.trim().parse::<u32>() {
                Ok(pid) => format!("another index (process {pid})"),
                Err(_) => "another index".to_owned(),
            };
            Err(FolderError::InUse {
                path: data_dir.to_owned(),
                holder,
            })
        }
        Err(TryLockError::Error(source)) => Err(system(source)),
    }
}

/// Finds files of the store that may not be read and written, before sled makes a panic of it.
fn check_permissions(store: &Path) -> Result<(), FolderError> {
    let system = |path: &Path, source| {
        Err(FolderError::System {
            path: path.to_owned(),
            source,
        })
    };
    let entries = match fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) if is_the_systems(&error) => return system(store, error),
        // Missing, or no folder at all: for sled to make, or to find damaged.
        Err(_) => return Ok(()),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let tried = match entry.file_type() {
            Ok(kind) if kind.is_file() => File::options().read(true).write(true).open(&path).map(drop),
            Ok(kind) if kind.is_dir() => fs::read_dir(&path).map(drop),
            _ => Ok(()),
        };
        if let Err(error) = tried
            && is_the_systems(&error)
        {
            return system(&path, error);
        }
    }
    Ok(())
}

fn move_aside(store: &Path) -> io::Result<PathBuf> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now())
        .to_string()
        .replace(':', "-");
    let mut aside = store.with_file_name(format!("{STORE}.damaged-{time}"));
    let mut count = 1;
    while aside.try_exists()? {
        count += 1;
        aside = store.with_file_name(format!("{STORE}.damaged-{time}-{count}"));
    }
    fs::rename(store, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Change, IndexStore as _, SledStore, StoredPeer,
        contract::{peer, registration},
    };

    fn open_sled(dir: &Path) -> Result<(SledStore, Vec<StoredPeer>), FolderError> {
        SledStore::open(dir, |all: &mut Vec<StoredPeer>, peer| all.push(peer))
    }

    fn filled() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = open_sled(dir.path()).unwrap();
        let files = (0..500).map(|n| registration(n, "a.bin")).collect();
        store
            .apply(&[Change::Register {
                peer: peer(1),
                files,
                new: 0,
                replace: false,
            }])
            .unwrap();
        dir
    }

    fn aside(dir: &Path) -> usize {
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("sled.damaged-")).count()
    }

    #[test]
    fn a_second_index_is_refused_and_nothing_is_moved() {
        let dir = filled();
        let (store, _) = open_sled(dir.path()).unwrap();
        let refused = open_sled(dir.path()).unwrap_err();
        assert!(matches!(refused, FolderError::InUse { .. }), "{refused}");
        assert!(
            refused
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        assert_eq!(aside(dir.path()), 0);
        drop(store);
        assert_eq!(open_sled(dir.path()).unwrap().1[0].files.len(), 500);
    }

    #[test]
    fn a_damaged_store_is_moved_aside() {
        let dir = filled();
        for file in ["db", "conf"] {
            fs::write(dir.path().join(STORE).join(file), vec![0xa5; 70_000]).unwrap();
            let (mut store, peers) = open_sled(dir.path()).unwrap();
            assert!(peers.is_empty());
            let files = vec![registration(1, "a.bin")];
            store
                .apply(&[Change::Register {
                    peer: peer(2),
                    files,
                    new: 0,
                    replace: false,
                }])
                .unwrap();
        }
        assert_eq!(aside(dir.path()), 2);
        assert_eq!(open_sled(dir.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn foreign_entries_are_damage() {
        let dir = filled();
        let db = ::sled::open(dir.path().join(STORE)).unwrap();
        db.open_tree("registrations.v1")
            .unwrap()
            .insert("what", "ever")
            .unwrap();
        db.flush().unwrap();
        drop(db);
        assert!(open_sled(dir.path()).unwrap().1.is_empty());
        assert_eq!(aside(dir.path()), 1);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = open_sled(&file.join("index")).unwrap_err();
        assert!(matches!(refused, FolderError::System { .. }), "{refused}");
    }
}
