//! Work on the stored registrations while no index uses them: check, compact, back up, restore,
//! export.
//!
//! Everything happens under the lock of the data folder. A new store is built in a folder next to the
//! old one and takes its place with one exchange of names, so that after a crash at any moment there
//! is the whole old store or the whole new one.
//!
//! Invariant: a damaged store is reported, and neither changed nor moved aside.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, ErrorKind},
    path::{Path, PathBuf},
};

use potluck_core::{FileId, PeerId, model::ClusterId};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::store::{
    Change, IndexStore as _, StoreError, StoredPeer,
    backup_file::{self, BackupError, BackupWriter},
    folder::{self, FolderError},
    size::size_of,
    sled::SledStore,
};

/// The folder in which a new store is built.
const BUILDING: &str = "building";

/// Registrations that are written with one flush.
const MAX_BATCH: usize = 20_000;

/// The reason why the work was not done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There are no stored registrations.
    #[error("no registrations are stored in {}: correct --data-dir", .0.display())]
    Empty(PathBuf),
    /// The stored data is damaged.
    #[error(
        "the registrations in {} are damaged: {reason}. Restore a backup, or start the index, which \
         moves them aside and fills again as peers renew", folder.display()
    )]
    Damaged {
        /// The data folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds registrations that a backup would replace.
    #[error(
        "{} holds registrations already: restore into another folder, or give --replace, which \
         keeps the old ones beside the new", .0.display()
    )]
    Exists(PathBuf),
    /// The file for a backup exists.
    #[error("{} exists: give another name", .0.display())]
    FileExists(PathBuf),
    /// The backup cannot be used.
    #[error("the backup {} cannot be used: {source}", file.display())]
    Backup {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: BackupError,
    },
    /// The system returned an error.
    #[error("{}: {source}", path.display())]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSummary {
    /// The identity of the store.
    pub cluster_id: ClusterId,
    /// Number of peers.
    pub peers: u64,
    /// Number of registrations: pairs of peer and file.
    pub registrations: u64,
    /// Size of the store's files, in bytes.
    pub bytes: u64,
}

/// One registration, for other programs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExportedRegistration {
    /// The peer.
    pub peer: PeerId,
    /// The peer's address, as `HOST:PORT`.
    pub address: String,
    /// The file.
    pub id: FileId,
    /// Size in bytes.
    pub size: u64,
    /// The file's root.
    pub root: potluck_core::Root,
    /// The claimed SHA-256 of the file.
    pub sha256: Option<potluck_core::Sha256>,
    /// `file`, `collection`, or `provisional` for content whose root is not known yet.
    pub kind: &'static str,
    /// The names.
    pub names: Vec<String>,
    /// Whether the peer has the whole file.
    pub complete: bool,
}

/// The stored registrations of a data folder that no index uses.
#[derive(Debug)]
pub struct StoredRegistrations {
    folder: PathBuf,
    /// Dropped before the folder is unlocked.
    store: Option<SledStore>,
    peers: u64,
    registrations: u64,
}

impl StoredRegistrations {
    /// Opens the store and reads all of it, which checks it.
    ///
    /// # Errors
    /// [`MaintenanceError`]; a damaged store stays as it is.
    pub fn open(folder: &Path) -> Result<Self, MaintenanceError> {
        let (mut peers, mut registrations) = (0, 0);
        let store = SledStore::inspect(folder, |peer| {
            peers += 1;
            registrations += peer.files.len() as u64;
        });
        let store = match store {
            Ok(Some(store)) => store,
            Ok(None) => return Err(MaintenanceError::Empty(folder.to_owned())),
            Err(FolderError::Unusable { reason, .. }) => {
                return Err(MaintenanceError::Damaged {
                    folder: folder.to_owned(),
                    reason,
                });
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            folder: folder.to_owned(),
            store: Some(store),
            peers,
            registrations,
        })
    }

    /// What is stored.
    pub fn summary(&self) -> StoreSummary {
        StoreSummary {
            cluster_id: self.store().cluster_id(),
            peers: self.peers,
            registrations: self.registrations,
            bytes: size_of(&folder::store_path(&self.folder)),
        }
    }

    /// Writes the registrations into a new store without what the old one no longer needs, and
    /// replaces the old one.
    ///
    /// # Errors
    /// [`MaintenanceError`]; the old store is then unchanged.
    pub fn compact(mut self) -> Result<StoreSummary, MaintenanceError> {
        let building = self.folder.join(BUILDING);
        let generation = self.store().generation();
        let mut new = NewStore::create(&building, generation)?;
        self.for_each(|peer| new.add(peer))?;
        new.finish()?;
        self.store = Some(put_in_place(self.store.take(), &self.folder, &building)?);
        Ok(self.summary())
    }

    /// Writes a backup to a new file, which appears under its name only when it is whole.
    ///
    /// # Errors
    /// [`MaintenanceError`].
    pub fn back_up(&mut self, file: &Path) -> Result<StoreSummary, MaintenanceError> {
        if file.try_exists().map_err(io_error(file))? {
            return Err(MaintenanceError::FileExists(file.to_owned()));
        }
        let mut temporary = file.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let failed = io_error(&temporary);
        let out = File::create(&temporary).map_err(&failed)?;
        let cluster_id = self.store().cluster_id();
        let mut writer = BackupWriter::new(BufWriter::new(out), cluster_id).map_err(&failed)?;
        self.for_each(|peer| writer.add(&peer).map_err(io_error(&temporary)))?;
        let (out, ..) = writer.finish().map_err(&failed)?;
        out.get_ref().sync_all().map_err(&failed)?;
        match renameat_with(CWD, &temporary, CWD, file, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                return Err(MaintenanceError::FileExists(file.to_owned()));
            }
            Err(error) => return Err(io_error(file)(error.into())),
        }
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        crate::store::durable::sync_folder(parent.unwrap_or_else(|| Path::new(".")))
            .map_err(io_error(file))?;
        Ok(self.summary())
    }

    /// Passes each registration to `each`.
    ///
    /// # Errors
    /// [`MaintenanceError`]; the error of `each` as one of the system.
    pub fn export(
        &mut self,
        mut each: impl FnMut(ExportedRegistration) -> io::Result<()>,
    ) -> Result<(), MaintenanceError> {
        let output = PathBuf::from("standard output");
        self.for_each(|StoredPeer { record, files }| {
            let address = record.address.to_string();
            for file in files {
                let kind = match file.file.kind {
                    potluck_core::model::FileKind::File => "file",
                    potluck_core::model::FileKind::Collection => "collection",
                    potluck_core::model::FileKind::Provisional => "provisional",
                };
                each(ExportedRegistration {
                    peer: record.id,
                    address: address.clone(),
                    id: file.file.id,
                    size: file.file.size,
                    root: file.file.root,
                    sha256: file.file.sha256,
                    kind,
                    names: file.names,
                    complete: file.is_complete,
                })
                .map_err(io_error(&output))?;
            }
            Ok(())
        })
    }

    const fn store(&self) -> &SledStore {
        self.store
            .as_ref()
            .expect("only `compact` takes it, and puts another in its place")
    }

    /// Passes each peer to `each`, until an error.
    fn for_each(
        &mut self,
        mut each: impl FnMut(StoredPeer) -> Result<(), MaintenanceError>,
    ) -> Result<(), MaintenanceError> {
        let folder = &self.folder;
        let store = self.store.as_mut().expect("as in `store`");
        let mut failed = None;
        store
            .load(&mut |peer| {
                if failed.is_none() {
                    failed = each(peer).err();
                }
            })
            .map_err(|error| store_failed(folder, error))?;
        failed.map_or(Ok(()), Err)
    }
}

/// Fills a data folder with a backup. With `replace`, stored registrations that are there already are
/// kept under another name. Returns what is stored now, and where the old registrations are.
///
/// # Errors
/// [`MaintenanceError`]; the folder's registrations are then unchanged.
pub fn restore(
    folder: &Path,
    file: &Path,
    replace: bool,
) -> Result<(StoreSummary, Option<PathBuf>), MaintenanceError> {
    let open = || File::open(file).map(BufReader::new).map_err(io_error(file));
    let bad = |source: BackupError| MaintenanceError::Backup {
        file: file.to_owned(),
        source,
    };
    // Nothing is changed before the whole backup has been checked.
    backup_file::read(open()?, |_| Ok::<_, BackupError>(())).map_err(bad)?;
    let locked = folder::lock(folder)?;
    let store = folder::store_path(folder);
    let has_store = store.try_exists().map_err(io_error(&store))?;
    if has_store && !replace {
        return Err(MaintenanceError::Exists(folder.to_owned()));
    }
    let building = folder.join(BUILDING);
    // Later than all changes of the old store, which must not look newer.
    let acknowledged = folder::acknowledged(folder).map_err(io_error(folder))?;
    let mut new = NewStore::create(&building, acknowledged.unwrap_or(0))?;
    backup_file::read(open()?, |peer| new.add(peer).map_err(Restoring::Store)).map_err(
        |error| match error {
            Restoring::Store(error) => error,
            Restoring::Backup(source) => bad(source),
        },
    )?;
    new.finish()?;
    let aside = match has_store {
        false => {
            fs::rename(folder::store_path(&building), &store).map_err(io_error(&store))?;
            None
        }
        true => {
            exchange(&folder::store_path(&building), &store)?;
            let aside = folder::unused_name(folder, "replaced").map_err(io_error(folder))?;
            fs::rename(folder::store_path(&building), &aside).map_err(io_error(&aside))?;
            Some(aside)
        }
    };
    crate::store::durable::sync_folder(folder).map_err(io_error(folder))?;
    fs::remove_dir_all(&building).map_err(io_error(&building))?;
    drop(locked);
    Ok((StoredRegistrations::open(folder)?.summary(), aside))
}

/// The error of a restoration.
enum Restoring {
    Store(MaintenanceError),
    Backup(BackupError),
}

impl From<BackupError> for Restoring {
    fn from(error: BackupError) -> Self {
        Self::Backup(error)
    }
}

/// A store that is being built in a folder of its own.
struct NewStore {
    folder: PathBuf,
    store: SledStore,
    batch: Vec<Change>,
    files: usize,
}

impl NewStore {
    /// Removes what an interrupted attempt left, and begins with the number `generation` for the last
    /// change.
    fn create(folder: &Path, generation: u64) -> Result<Self, MaintenanceError> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error(folder)(error));
            }
            _ => {}
        }
        let (mut store, _) = SledStore::open(folder)?;
        store.continue_after(generation);
        Ok(Self {
            folder: folder.to_owned(),
            store,
            batch: Vec::new(),
            files: 0,
        })
    }

    fn add(&mut self, StoredPeer { record, files }: StoredPeer) -> Result<(), MaintenanceError> {
        self.files += files.len();
        self.batch.push(Change::Register {
            peer: record,
            new: files.len(),
            files,
            replace: false,
        });
        match self.files >= MAX_BATCH || self.batch.len() >= MAX_BATCH {
            true => self.write(),
            false => Ok(()),
        }
    }

    fn write(&mut self) -> Result<(), MaintenanceError> {
        self.files = 0;
        let batch = std::mem::take(&mut self.batch);
        let applied = self.store.apply(&batch);
        applied.map_err(|error| store_failed(&self.folder, error))
    }

    fn finish(mut self) -> Result<(), MaintenanceError> {
        self.write()
    }
}

/// Closes the old store, exchanges it for the new one, and opens that.
fn put_in_place(
    old: Option<SledStore>,
    folder: &Path,
    building: &Path,
) -> Result<SledStore, MaintenanceError> {
    // Keeps the folder locked.
    let locked = old.map(SledStore::close);
    exchange(&folder::store_path(building), &folder::store_path(folder))?;
    crate::store::durable::sync_folder(folder).map_err(io_error(folder))?;
    fs::remove_dir_all(building).map_err(io_error(building))?;
    drop(locked);
    let store = SledStore::inspect(folder, |_| ())?;
    store.ok_or_else(|| MaintenanceError::Empty(folder.to_owned()))
}

fn exchange(one: &Path, other: &Path) -> Result<(), MaintenanceError> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| io_error(other)(error.into()))
}

fn store_failed(folder: &Path, error: StoreError) -> MaintenanceError {
    match error {
        StoreError::Io(source) => io_error(folder)(source),
        error => MaintenanceError::Damaged {
            folder: folder.to_owned(),
            reason: error.to_string(),
        },
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> MaintenanceError + use<> {
    let path = path.to_owned();
    move |source| MaintenanceError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
#[path = "maintenance_tests.rs"]
mod tests;
