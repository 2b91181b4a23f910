//! What the peer remembers over restarts: a redb database in the home. All use of redb lives here.
//!
//! Invariants: a batch of changes is taken whole or not at all and is on the disk when `Store::apply` returns; a database that
//! will not open is moved aside, never deleted, and a new one begun; a row that cannot be read is passed over, never trusted;
//! after a failure of the disk the database is opened anew, as redb asks for, so that a disk that was full is no reason to
//! start the peer again.
//!
//! Non-goals: knows nothing of what the rows mean. Calls block.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use potluck_core::{FileId, index_client::FileRecord, merkle::Hash};
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};

mod opening;
mod rows;

use crate::home::Home;
use opening::{Failure, aside, try_open};
pub use rows::Stamp;
pub(crate) use rows::{ItemRow, Stamps};
use rows::{
    bytes_of, decode_item, decode_record, decode_stamps, encode_item, encode_record, encode_stamps, path_of,
};

/// Items by number: how, where and what. See [`ItemRow`].
const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
/// A collection's stamps, in the order of its manifest's entries.
const MEMBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("members.v1");
/// Files by id: size, root, SHA-256.
const RECORDS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("records.v1");
/// Piece layers by id; apart from the records, which are all read at start.
const LAYERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("layers.v1");
/// Paths in the files folder that the owner does not want shared.
const HIDDEN: TableDefinition<'_, &[u8], ()> = TableDefinition::new("hidden.v1");
/// Transfers by number.
const TRANSFERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("transfers.v1");

/// Memory for pages, in bytes. redb's own default is 1 GiB; what is read often is kept elsewhere.
const CACHE_SIZE: usize = 8 * 1024 * 1024;

const FILE_NAME: &str = "potluck.redb";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or moved aside.
    #[error("cannot open the peer's database {path}: {source}")]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        source: redb::Error,
    },
    /// Reading or writing failed.
    #[error("the peer's database failed: {0}")]
    Database(#[from] redb::Error),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl StoreError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        let (Self::Database(error) | Self::Open { source: error, .. }) = self;
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(error, redb::Error::Io(error) if full.contains(&error.kind()))
    }
}

/// One change of a batch.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutItem(u64, ItemRow),
    RemoveItem(u64),
    PutRecord(FileRecord),
    PutLayer(FileId, Arc<[Hash]>),
    /// Record and layer.
    RemoveFile(FileId),
    Hide(PathBuf),
    Unhide(PathBuf),
}

/// Everything but the layers.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) items: Vec<(u64, ItemRow)>,
    pub(crate) records: Vec<FileRecord>,
    pub(crate) hidden: Vec<PathBuf>,
}

/// The peer's database. Calls block: use them off the async threads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// `None` after a failure of the disk, until it can be opened again.
    database: Arc<RwLock<Option<Database>>>,
    folder: Arc<Path>,
}

impl Store {
    /// Opens the database in the home. One that will not open is moved aside and a new one begun.
    ///
    /// # Errors
    /// Only where the operating system does not let it.
    pub fn open(home: &Home) -> Result<Self, StoreError> {
        Self::open_in(&home.state())
    }

    pub(crate) fn open_in(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        let failed = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let database = match try_open(&path) {
            Ok(database) => database,
            Err(Failure::System(error)) => return Err(failed(error)),
            Err(Failure::Damaged(why)) => {
                let aside = aside(&path);
                std::fs::rename(&path, &aside).map_err(|error| failed(redb::Error::Io(error)))?;
                tracing::error!(
                    path = %path.display(), moved_to = %aside.display(), %why,
                    "the peer's database would not open: it is moved aside and a new one begun; share again what was shared from outside the files folder"
                );
                try_open(&path).map_err(|failure| failed(failure.into_error()))?
            }
        };
        Ok(Self {
            database: Arc::new(RwLock::new(Some(database))),
            folder: folder.into(),
        })
    }

    /// Does something with the open database. Where that has failed before, it is opened anew and the work done again.
    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(StoreError::Database(redb::Error::PreviousIo)),
        };
        if !matches!(done, Err(StoreError::Database(redb::Error::PreviousIo))) {
            return done;
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed before it is opened: it cannot be open twice.
        drop(database.take());
        let path = self.folder.join(FILE_NAME);
        // Never moved aside here: what cannot be read now may be readable after a restart.
        let opened = try_open(&path).map_err(|failure| StoreError::Open {
            path,
            source: failure.into_error(),
        })?;
        tracing::info!("the peer's database is open again after a failure of the disk");
        work(database.insert(opened))
    }

    /// The folder that the database is in: the peer's own, never to be shared.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything that the library remembers but the piece layers.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        self.with(|database| load(&database.begin_read()?))
    }

    /// The piece layer of a file; `None` if it is not there or damaged.
    pub(crate) fn layer(&self, id: &FileId) -> Result<Option<Arc<[Hash]>>, StoreError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let layer = read.open_table(LAYERS)?.get(id.as_bytes())?;
            Ok(layer.and_then(|bytes| {
                let (hashes, rest) = bytes.value().as_chunks::<32>();
                rest.is_empty().then(|| hashes.into())
            }))
        })
    }

    /// Makes changes, all or none; on the disk when it returns.
    pub(crate) fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(|write| {
            let mut items = write.open_table(ITEMS)?;
            let mut members = write.open_table(MEMBERS)?;
            let mut records = write.open_table(RECORDS)?;
            let mut layers = write.open_table(LAYERS)?;
            let mut hidden = write.open_table(HIDDEN)?;
            for change in changes {
                match change {
                    Change::PutItem(number, row) => {
                        items.insert(number, &*encode_item(row))?;
                        match &row.stamps {
                            Stamps::Collection(stamps) => {
                                members.insert(number, &*encode_stamps(stamps))?;
                            }
                            Stamps::File(_) => drop(members.remove(number)?),
                        }
                    }
                    Change::RemoveItem(number) => {
                        items.remove(number)?;
                        members.remove(number)?;
                    }
                    Change::PutRecord(record) => {
                        records.insert(record.id.as_bytes(), &*encode_record(record))?;
                    }
                    Change::PutLayer(id, layer) => {
                        layers.insert(id.as_bytes(), layer.as_flattened())?;
                    }
                    Change::RemoveFile(id) => {
                        records.remove(id.as_bytes())?;
                        layers.remove(id.as_bytes())?;
                    }
                    Change::Hide(path) => drop(hidden.insert(bytes_of(path), ())?),
                    Change::Unhide(path) => drop(hidden.remove(bytes_of(path))?),
                }
            }
            Ok(())
        })
    }

    fn write(&self, change: impl Fn(&WriteTransaction) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        })
    }

    /// Remembers a transfer, replacing what was remembered under its number. On the disk when it returns.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn put_transfer(&self, id: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(TRANSFERS)?.insert(id, bytes)?;
            Ok(())
        })
    }

    /// Forgets a transfer.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn remove_transfer(&self, id: u64) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(TRANSFERS)?.remove(id)?;
            Ok(())
        })
    }

    /// The transfers remembered, by number.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn transfers(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let table = read.open_table(TRANSFERS)?;
            let rows = table.iter()?;
            rows.map(|row| {
                let (id, bytes) = row?;
                Ok((id.value(), bytes.value().to_vec()))
            })
            .collect()
        })
    }
}

fn load(read: &ReadTransaction) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded::default();
    let members = read.open_table(MEMBERS)?;
    for row in read.open_table(ITEMS)?.iter()? {
        let (number, bytes) = row?;
        let item = match decode_item(bytes.value()) {
            Some((path, id, Some(stamp))) => Some((path, id, Stamps::File(stamp))),
            Some((path, id, None)) => {
                let stamps = members.get(number.value())?;
                let stamps = stamps
                    .map(|stamps| decode_stamps(stamps.value()))
                    .unwrap_or_default();
                Some((path, id, Stamps::Collection(stamps)))
            }
            None => None,
        };
        match item {
            Some((path, id, stamps)) => {
                loaded.items.push((number.value(), ItemRow { path, id, stamps }));
            }
            None => tracing::warn!(
                item = number.value(),
                "a damaged row of the database is passed over"
            ),
        }
    }
    let records = read.open_table(RECORDS)?;
    loaded
        .records
        .reserve(usize::try_from(redb::ReadableTableMetadata::len(&records)?).unwrap_or(0));
    for row in records.iter()? {
        let (id, bytes) = row?;
        match decode_record(FileId(*id.value()), bytes.value()) {
            Some(record) => loaded.records.push(record),
            None => {
                tracing::warn!(id = %FileId(*id.value()), "a damaged row of the database is passed over")
            }
        }
    }
    for row in read.open_table(HIDDEN)?.iter()? {
        loaded.hidden.push(path_of(row?.0.value()));
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use potluck_core::{Root, Sha256, index_client::Kind};

    use super::*;

    fn record(n: u8) -> FileRecord {
        let root = Root([n; 32]);
        FileRecord {
            id: FileId::derive(u64::from(n), &root),
            size: n.into(),
            root,
            sha256: n.is_multiple_of(2).then_some(Sha256([n; 32])),
            kind: if n > 2 { Kind::Collection } else { Kind::File },
        }
    }

    fn stamp(n: u64) -> Stamp {
        Stamp {
            size: n,
            mtime: -(n as i64),
            inode: n + 1,
            ctime: i64::MAX - n as i64,
        }
    }

    #[test]
    fn what_is_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = ItemRow {
            path: "/a/b".into(),
            id: record(1).id,
            stamps: Stamps::File(stamp(7)),
        };
        let collection = ItemRow {
            path: path_of(b"/not utf-8 \xff"),
            id: record(3).id,
            stamps: Stamps::Collection(vec![stamp(1), stamp(2)]),
        };
        let layer: Arc<[Hash]> = Arc::from([[1; 32], [2; 32]]);
        {
            let store = Store::open_in(dir.path()).unwrap();
            store
                .apply(&[
                    Change::PutItem(1, file.clone()),
                    Change::PutItem(2, collection.clone()),
                    Change::PutItem(3, file.clone()),
                    Change::RemoveItem(3),
                    Change::PutRecord(record(1)),
                    Change::PutRecord(record(2)),
                    Change::PutRecord(record(3)),
                    Change::RemoveFile(record(2).id),
                    Change::PutLayer(record(3).id, layer.clone()),
                    Change::Hide("/a/hidden".into()),
                ])
                .unwrap();
            store.put_transfer(9, b"nine").unwrap();
        }
        let store = Store::open_in(dir.path()).unwrap();
        let mut loaded = store.load().unwrap();
        loaded.records.sort_by_key(|record| record.size);
        assert_eq!(loaded.items, [(1, file), (2, collection)]);
        assert_eq!(loaded.records, [record(1), record(3)]);
        assert_eq!(loaded.hidden, [PathBuf::from("/a/hidden")]);
        assert_eq!(store.layer(&record(3).id).unwrap(), Some(layer));
        assert_eq!(store.layer(&record(1).id).unwrap(), None);
        assert_eq!(store.transfers().unwrap(), [(9, b"nine".to_vec())]);
        store.remove_transfer(9).unwrap();
        assert_eq!(store.transfers().unwrap(), []);
    }

    #[test]
    fn a_damaged_database_is_moved_aside() {
        for damage in [
            &b"not a database at all, but long enough to be looked at"[..],
            b"x",
            &[0; 1 << 16],
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), damage).unwrap();
            let store = Store::open_in(dir.path()).unwrap();
            assert!(store.load().unwrap().items.is_empty());
            let aside = std::fs::read(dir.path().join("potluck.redb.damaged-1")).unwrap();
            assert_eq!(aside, damage);
        }
    }

    #[test]
    fn a_truncated_database_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        drop(Store::open_in(dir.path()).unwrap());
        let len = path.metadata().unwrap().len();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len / 2)
            .unwrap();
        let store = Store::open_in(dir.path()).unwrap();
        assert!(store.load().unwrap().items.is_empty());
    }

    #[test]
    fn a_record_whose_id_does_not_fit_is_not_trusted() {
        let bytes = encode_record(&record(1));
        assert_eq!(decode_record(record(1).id, &bytes), Some(record(1)));
        assert_eq!(decode_record(record(2).id, &bytes), None);
    }
}
