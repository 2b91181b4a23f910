//! The data folder: locks it for one process, and moves a store aside that cannot be read.
//!
//! Invariant: a store is moved aside only if its own data is damaged. If the folder is in use, a
//! permission is missing or the disk is full, opening fails with that cause.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use potluck_core::{durable, generation::GenerationFile, model::ClusterId};

use crate::store::{
    StoreError,
    durable::{probe, rewrite, sync_folder},
};

/// Locked while a process uses the folder; contains its process id for error messages.
const LOCK: &str = "index.lock";

/// The folder of the store in the data folder.
const STORE: &str = "sled";

/// The file with the number of the last acknowledged change, next to the store's folder.
const GENERATION: &str = "sled.generation";

/// The file with the identity of the store, next to the store's folder.
const CLUSTER_ID: &str = "cluster-id";

/// The path of the file with the number of the last acknowledged change of the store in this
/// folder.
pub(crate) fn generation_path(store: &Path) -> PathBuf {
    store.with_file_name(GENERATION)
}

/// The reason why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another index uses the folder.
    #[error(
        "the data folder {} is in use by {process}: stop that process, or give another --data-dir",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process that uses it.
        process: String,
    },
    /// The system returned an error.
    #[error("cannot use the data folder: {}: {source}", path.display())]
    System {
        /// The folder or file with the error.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A later version wrote the store.
    #[error(
        "the registrations in {} have the layout {layout}, which a later version of potluck wrote: run \
         that version", path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// The layout.
        layout: String,
    },
    /// Even an empty store in a new folder cannot be opened.
    #[error("an empty store in {} cannot be opened: {reason}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// The error message.
        reason: String,
    },
}

/// A data folder, locked against other processes until dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    cluster_id: ClusterId,
    _lock: FolderLock,
}

/// The lock of a folder. Dropping it unlocks the file explicitly, because a child process that is
/// starting at that moment keeps the file open for a little longer.
#[derive(Debug)]
struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // On failure, closing the last handle releases the lock.
        let _ = self.0.unlock();
    }
}

/// Opens the store in a data folder, which is created if missing, accessible only to its owner. A
/// damaged store is moved aside, and an empty one opened instead.
pub(crate) fn open<T>(
    data_dir: &Path,
    open: impl Fn(&Path) -> Result<T, StoreError>,
) -> Result<(T, DataFolder), FolderError> {
    let system = |path: &Path| {
        let path = path.to_owned();
        move |source| FolderError::System { path, source }
    };
    let folder = lock(data_dir)?;
    let store = folder.store();
    check_permissions(&store)?;
    let reason = match try_open(&store, &open) {
        Ok(value) => {
            sync_folder(data_dir).map_err(system(data_dir))?;
            return Ok((value, folder));
        }
        Err(StoreError::Io(source)) => return Err(FolderError::System { path: store, source }),
        Err(StoreError::Newer(layout)) => return Err(FolderError::Newer { path: store, layout }),
        Err(StoreError::Damaged(reason) | StoreError::Partly { reason, .. }) => reason,
    };
    folder.move_aside(&reason).map_err(system(&store))?;
    match try_open(&store, &open) {
        Ok(value) => {
            sync_folder(data_dir).map_err(system(data_dir))?;
            Ok((value, folder))
        }
        Err(StoreError::Io(source)) => Err(FolderError::System { path: store, source }),
        Err(StoreError::Newer(layout)) => Err(FolderError::Newer { path: store, layout }),
        Err(StoreError::Damaged(reason) | StoreError::Partly { reason, .. }) => {
            Err(FolderError::Unusable { path: store, reason })
        }
    }
}

/// The folder of the store in a data folder.
pub(crate) fn store_path(data_dir: &Path) -> PathBuf {
    data_dir.join(STORE)
}

/// Opens the store in a data folder to look after it; `None` if there is none. Nothing is created or
/// moved aside.
///
/// # Errors
/// [`FolderError`]; [`FolderError::Unusable`] for a damaged store.
pub(crate) fn inspect<T>(
    data_dir: &Path,
    open: impl Fn(&Path) -> Result<T, StoreError>,
) -> Result<Option<(T, DataFolder)>, FolderError> {
    let store = store_path(data_dir);
    let system = |source| FolderError::System {
        path: store.clone(),
        source,
    };
    if !store.try_exists().map_err(system)? {
        return Ok(None);
    }
    let folder = lock(data_dir)?;
    check_permissions(&store)?;
    match try_open(&store, &open) {
        Ok(value) => Ok(Some((value, folder))),
        Err(StoreError::Io(source)) => Err(system(source)),
        Err(StoreError::Newer(layout)) => Err(FolderError::Newer { path: store, layout }),
        Err(StoreError::Damaged(reason) | StoreError::Partly { reason, .. }) => {
            Err(FolderError::Unusable { path: store, reason })
        }
    }
}

/// Locks a data folder, which is created if missing.
///
/// # Errors
/// [`FolderError`].
pub(crate) fn lock(data_dir: &Path) -> Result<DataFolder, FolderError> {
    let system = |path: &Path| {
        let path = path.to_owned();
        move |source| FolderError::System { path, source }
    };
    create_private(data_dir).map_err(system(data_dir))?;
    let lock = lock_folder(data_dir)?;
    Ok(DataFolder {
        path: data_dir.to_owned(),
        cluster_id: cluster_id(data_dir).map_err(system(&data_dir.join(CLUSTER_ID)))?,
        _lock: lock,
    })
}

/// The number of the last acknowledged change of the store in a data folder.
pub(crate) fn acknowledged(data_dir: &Path) -> io::Result<Option<u64>> {
    Ok(GenerationFile::open(&data_dir.join(GENERATION))?.acknowledged())
}

/// A name for a store that is no longer used, with the time.
pub(crate) fn unused_name(data_dir: &Path, word: &str) -> io::Result<PathBuf> {
    let time = humantime::format_rfc3339_seconds(SystemTime::now())
        .to_string()
        .replace(':', "-");
    let mut name = data_dir.join(format!("{STORE}.{word}-{time}"));
    let mut count = 1;
    while name.try_exists()? {
        count += 1;
        name = data_dir.join(format!("{STORE}.{word}-{time}-{count}"));
    }
    Ok(name)
}

impl DataFolder {
    /// The identity of the store, also after it was moved aside.
    pub(crate) const fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    fn store(&self) -> PathBuf {
        store_path(&self.path)
    }

    /// Opens the store again after it failed and was closed.
    ///
    /// # Errors
    /// - [`StoreError::Io`] if the system does not allow it now.
    /// - [`StoreError::Damaged`] if the store could not be read and was moved aside: the next call
    ///   opens an empty one.
    pub(crate) fn reopen<T>(
        &self,
        open: impl Fn(&Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let store = self.store();
        probe(&self.path).map_err(StoreError::Io)?;
        rewrite(&store).map_err(StoreError::Io)?;
        match try_open(&store, open) {
            Ok(value) => {
                sync_folder(&self.path).map_err(StoreError::Io)?;
                Ok(value)
            }
            Err(StoreError::Damaged(reason)) => {
                self.move_aside(&reason).map_err(StoreError::Io)?;
                Err(StoreError::Damaged(reason))
            }
            Err(error) => Err(error),
        }
    }

    /// Renames the store and makes the new name durable.
    fn move_aside(&self, reason: &str) -> io::Result<()> {
        let aside = move_aside(&self.store())?;
        sync_folder(&self.path)?;
        tracing::warn!(
            folder = %aside.display(),
            %reason,
            "the stored registrations cannot be read and were moved aside; the index starts with \
             an empty store, which fills as peers renew"
        );
        Ok(())
    }
}

/// Reads the identity of the store in a data folder. Generates one if there is none, or none that can
/// be read: only indexes that share a store compare it, and these keep it in the store.
fn cluster_id(data_dir: &Path) -> io::Result<ClusterId> {
    let path = data_dir.join(CLUSTER_ID);
    match fs::read(&path) {
        Ok(text) => {
            let text = str::from_utf8(&text).unwrap_or_default();
            if let Some(id) = ClusterId::from_hex(text.trim()) {
                return Ok(id);
            }
            tracing::warn!(file = %path.display(), "the id of the store is damaged: it gets another");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = ClusterId::generate();
    durable::write(&path, format!("{id}\n").as_bytes(), 0o600)?;
    Ok(id)
}

/// Creates a folder with its missing parents, accessible only to its owner. Existing folders keep
/// their mode.
fn create_private(folder: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for path in missing {
        let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
        sync_folder(parent.unwrap_or_else(|| Path::new(".")))?;
    }
    Ok(())
}

/// Whether an error comes from the system and says nothing about the stored data.
pub(crate) fn is_system_error(error: &io::Error) -> bool {
    /// EIO, ENFILE, EMFILE: a failing disk and too many open files, which have no [`ErrorKind`].
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

fn try_open<T>(
    store: &Path,
    open: impl Fn(&Path) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    // sled panics on some damage. The panicked state is dropped, and the caller moves the folder
    // aside.
    catch_unwind(AssertUnwindSafe(|| {
        create_private(store).map_err(|error| match is_system_error(&error) {
            true => StoreError::Io(error),
            // For example a file instead of the folder.
            false => StoreError::Damaged(error.to_string()),
        })?;
        open(store)
    }))
    .unwrap_or_else(|_| {
        Err(StoreError::Damaged(
            "the store panicked when it was opened".to_owned(),
        ))
    })
}

fn lock_folder(data_dir: &Path) -> Result<FolderLock, FolderError> {
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
        .mode(0o600)
        .open(&path)
        .map_err(system)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(system)?;
            writeln!(file, "{}", std::process::id()).map_err(system)?;
            Ok(FolderLock(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Only for the error message, so a read error is ignored.
            let _ = file.take(20).read_to_string(&mut text);
            let process = match text.trim().parse::<u32>() {
                Ok(pid) => format!("another index (process {pid})"),
                Err(_) => "another index".to_owned(),
            };
            Err(FolderError::InUse {
                path: data_dir.to_owned(),
                process,
            })
        }
        Err(TryLockError::Error(source)) => Err(system(source)),
    }
}

/// Detects files of the store without permission to read and write, on which sled would panic.
fn check_permissions(store: &Path) -> Result<(), FolderError> {
    let system = |path: &Path, source| {
        Err(FolderError::System {
            path: path.to_owned(),
            source,
        })
    };
    let entries = match fs::read_dir(store) {
        Ok(entries) => entries,
        Err(error) if is_system_error(&error) => return system(store, error),
        // Missing or not a folder: sled creates it or reports damage.
        Err(_) => return Ok(()),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let opened = match entry.file_type() {
            Ok(kind) if kind.is_file() => {
                File::options().read(true).write(true).open(&path).map(drop)
            }
            Ok(kind) if kind.is_dir() => fs::read_dir(&path).map(drop),
            _ => Ok(()),
        };
        if let Err(error) = opened
            && is_system_error(&error)
        {
            return system(&path, error);
        }
    }
    Ok(())
}

fn move_aside(store: &Path) -> io::Result<PathBuf> {
    let aside = unused_name(store.parent().unwrap_or_else(|| Path::new(".")), "damaged")?;
    fs::rename(store, &aside)?;
    // The new store starts to count again. After a crash before this line, the next start moves an
    // empty store aside.
    match fs::remove_file(generation_path(store)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Change, IndexStore as _, SledStore, StoredPeer,
        contract::{peer, registration},
    };

    fn open_sled(dir: &Path) -> Result<(SledStore, Vec<StoredPeer>), FolderError> {
        SledStore::open(dir)
    }

    fn filled_folder() -> tempfile::TempDir {
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

    /// Opens sled itself, as soon as the threads of the closed store have unlocked it.
    fn open_raw(dir: &Path) -> ::sled::Db {
        loop {
            match ::sled::open(dir.join(STORE)) {
                Err(::sled::Error::Io(error)) if error.to_string().contains("lock") => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn count_moved_aside(dir: &Path) -> usize {
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("sled.damaged-")).count()
    }

    #[test]
    fn a_second_index_is_refused_and_nothing_is_moved_aside() {
        let dir = filled_folder();
        let (store, _) = open_sled(dir.path()).unwrap();
        let refused = open_sled(dir.path()).unwrap_err();
        assert!(matches!(refused, FolderError::InUse { .. }), "{refused}");
        assert!(
            refused
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        assert_eq!(count_moved_aside(dir.path()), 0);
        drop(store);
        assert_eq!(open_sled(dir.path()).unwrap().1[0].files.len(), 500);
    }

    #[test]
    fn a_damaged_store_is_moved_aside() {
        let dir = filled_folder();
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
        assert_eq!(count_moved_aside(dir.path()), 2);
        assert_eq!(open_sled(dir.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn foreign_entries_are_damage() {
        let dir = filled_folder();
        let db = open_raw(dir.path());
        db.open_tree("registrations.v1")
            .unwrap()
            .insert("unknown", "entry")
            .unwrap();
        db.flush().unwrap();
        drop(db);
        assert!(open_sled(dir.path()).unwrap().1.is_empty());
        assert_eq!(count_moved_aside(dir.path()), 1);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = open_sled(&file.join("index")).unwrap_err();
        assert!(matches!(refused, FolderError::System { .. }), "{refused}");
    }

    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::PermissionsExt as _;
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_may_read_the_store() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("parent").join("index");
        drop(open_sled(&index).unwrap());
        for folder in ["", "../../parent", "sled", "sled/blobs"] {
            assert_eq!(mode(&index.join(folder)), 0o700, "{folder}");
        }
        for file in ["index.lock", "sled/db", "sled/conf"] {
            assert_eq!(mode(&index.join(file)), 0o600, "{file}");
        }
        // Opening repairs permissions that earlier versions left too wide.
        for (path, open) in [("sled", 0o755), ("sled/db", 0o644)] {
            fs::set_permissions(index.join(path), fs::Permissions::from_mode(open)).unwrap();
        }
        drop(open_sled(&index).unwrap());
        assert_eq!(
            (mode(&index.join("sled")), mode(&index.join("sled/db"))),
            (0o700, 0o600)
        );
    }

    #[test]
    fn a_store_with_random_damage_opens_or_is_moved_aside() {
        use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
        let dir = filled_folder();
        let intact: Vec<(PathBuf, Vec<u8>)> = ["db", "conf"]
            .map(|file| dir.path().join(STORE).join(file))
            .into_iter()
            .chain(
                fs::read_dir(dir.path().join(STORE))
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap")),
            )
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        let mut opened = [0, 0];
        for seed in 0..60 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let index = tempfile::tempdir().unwrap();
            let store = index.path().join(STORE);
            fs::create_dir_all(store.join("blobs")).unwrap();
            fs::copy(dir.path().join(GENERATION), index.path().join(GENERATION)).unwrap();
            let damaged = rng.random_range(0..intact.len());
            for (at, (path, bytes)) in intact.iter().enumerate() {
                let mut bytes = bytes.clone();
                if at == damaged {
                    let from = rng.random_range(0..bytes.len());
                    let to = rng.random_range(from..=bytes.len());
                    match rng.random_range(0..4) {
                        0 => bytes.truncate(from),
                        1 => bytes[from..to].fill(0),
                        2 => bytes[from..to].fill_with(|| rng.random()),
                        _ => bytes[from] ^= 1 << rng.random_range(0..8),
                    }
                }
                fs::write(store.join(path.file_name().unwrap()), bytes).unwrap();
            }
            let (mut store, peers) = open_sled(index.path()).unwrap();
            opened[count_moved_aside(index.path())] += 1;
            let files: usize = peers.iter().map(|peer| peer.files.len()).sum();
            let expected = if count_moved_aside(index.path()) == 0 {
                500
            } else {
                0
            };
            assert_eq!(files, expected, "seed {seed}");
            let more = Change::Register {
                peer: peer(2),
                files: vec![registration(1, "b.bin")],
                new: 1,
                replace: false,
            };
            store.apply(&[more]).unwrap();
        }
        assert!(opened.iter().all(|count| *count > 0), "{opened:?}");
    }

    #[test]
    fn an_older_copy_of_the_store_is_moved_aside() {
        let dir = filled_folder();
        let store = dir.path().join(STORE);
        let older = fs::read(store.join("db")).unwrap();
        let forget = Change::Unregister {
            peer: peer(1).id,
            files: vec![registration(7, "a.bin").file.id],
        };
        open_sled(dir.path()).unwrap().0.apply(&[forget]).unwrap();
        // Without the snapshot, sled reads the log alone.
        for entry in fs::read_dir(&store).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("snap") {
                fs::remove_file(path).unwrap();
            }
        }
        fs::write(store.join("db"), older).unwrap();
        assert!(open_sled(dir.path()).unwrap().1.is_empty());
        assert_eq!(count_moved_aside(dir.path()), 1);
        // The new store counts its own changes.
        assert!(open_sled(dir.path()).unwrap().1.is_empty());
        assert_eq!(count_moved_aside(dir.path()), 1);
    }

    #[test]
    fn a_log_that_would_lose_the_next_change_is_moved_aside_before_it() {
        let dir = filled_folder();
        // From here on, sled needs the log only for its pages.
        assert_eq!(open_sled(dir.path()).unwrap().1[0].files.len(), 500);
        let log = dir.path().join(STORE).join("db");
        let mut bytes = fs::read(&log).unwrap();
        bytes[0] ^= 8;
        fs::write(&log, bytes).unwrap();
        let mut stored = Vec::new();
        for n in 0..3 {
            let (mut store, peers) = open_sled(dir.path()).unwrap();
            stored.push(peers.iter().map(|peer| peer.files.len()).sum::<usize>());
            let change = Change::Register {
                peer: peer(1),
                files: vec![registration(1000 + n, "b.bin")],
                new: 1,
                replace: false,
            };
            store.apply(&[change]).unwrap();
        }
        assert_eq!(stored, [0, 1, 2]);
        assert_eq!(count_moved_aside(dir.path()), 1);
    }

    #[test]
    fn a_lost_store_is_noticed() {
        let dir = filled_folder();
        fs::remove_dir_all(dir.path().join(STORE)).unwrap();
        assert!(open_sled(dir.path()).unwrap().1.is_empty());
        assert_eq!(count_moved_aside(dir.path()), 1);
    }

    #[test]
    fn a_store_of_an_earlier_version_gets_a_summary() {
        let dir = filled_folder();
        let db = open_raw(dir.path());
        db.open_tree("registrations.v1")
            .unwrap()
            .remove("summary")
            .unwrap();
        db.insert("potluck.begun", "0.1.0").unwrap();
        db.flush().unwrap();
        drop(db);
        fs::remove_file(dir.path().join(GENERATION)).unwrap();
        for files in [500, 501] {
            let (mut store, peers) = open_sled(dir.path()).unwrap();
            assert_eq!(peers[0].files.len(), files);
            let change = Change::Register {
                peer: peer(1),
                files: vec![registration(1000, "b.bin")],
                new: 1,
                replace: false,
            };
            store.apply(&[change]).unwrap();
        }
        assert_eq!(count_moved_aside(dir.path()), 0);
    }

    #[test]
    fn a_reopened_store_contains_all_acknowledged_changes() {
        let dir = filled_folder();
        let (mut store, _) = open_sled(dir.path()).unwrap();
        for n in 0..3 {
            let files = vec![registration(1000 + n, "later.bin")];
            store
                .apply(&[Change::Register {
                    peer: peer(1),
                    files,
                    new: 1,
                    replace: false,
                }])
                .unwrap();
            let mut count = 0;
            store.reopen(&mut |peer| count += peer.files.len()).unwrap();
            assert_eq!(count as u64, 501 + n);
        }
        // A damaged store is moved aside, and the call reports it.
        fs::write(dir.path().join(STORE).join("conf"), vec![0xa5; 70_000]).unwrap();
        let refused = store.reopen(&mut |_| {}).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
        assert_eq!(count_moved_aside(dir.path()), 1);
        let mut count = 0;
        store.reopen(&mut |_| count += 1).unwrap();
        assert_eq!(count, 0);
    }
}
