//! What the peer remembers over restarts: a redb database in the home. All use of redb lives here.
//!
//! Invariants: a batch of changes is taken whole or not at all and is on the disk when [`Store::apply`] returns; a database that
//! will not open is moved aside, never deleted, and a new one begun; a row that cannot be read is passed over, never trusted.
//!
//! Non-goals: knows nothing of what the rows mean. Calls block.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Root, Sha256,
    index_client::{FileRecord, Kind},
    merkle::Hash,
};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, WriteTransaction,
};

use crate::home::Home;

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
        source: Box<dyn std::error::Error + Send + Sync>,
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
        matches!(self, Self::Database(redb::Error::Io(error)) if error.kind() == io::ErrorKind::StorageFull)
    }
}

/// What a file's `stat` says: any change of its bytes shows in at least one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of its bytes, in nanoseconds since 1970; the owner can set it.
    pub mtime: i64,
    /// Its number in the file system.
    pub inode: u64,
    /// Time of the last change of anything, in nanoseconds since 1970; nobody can set it.
    pub ctime: i64,
}

/// Length of a stamp on disk, in bytes.
const STAMP_LEN: usize = 32;

impl Stamp {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.inode.to_le_bytes());
        out.extend_from_slice(&self.ctime.to_le_bytes());
    }

    fn read(bytes: &[u8; STAMP_LEN]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self {
            size: u64::from_le_bytes(words[0]),
            mtime: i64::from_le_bytes(words[1]),
            inode: u64::from_le_bytes(words[2]),
            ctime: i64::from_le_bytes(words[3]),
        }
    }
}

/// Something that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ItemRow {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its id: the file's, or the manifest's.
    pub(crate) id: FileId,
    /// A file's stamp, or those of a collection's entries in the manifest's order.
    pub(crate) stamps: Stamps,
}

/// The stamps of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stamps {
    /// A file's.
    File(Stamp),
    /// A collection's entries', in order.
    Collection(Vec<Stamp>),
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
    database: Arc<Database>,
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
                std::fs::rename(&path, &aside).map_err(|error| failed(error.into()))?;
                tracing::error!(
                    path = %path.display(), moved_to = %aside.display(), %why,
                    "the peer's database would not open: it is moved aside and a new one begun; share again what was shared from outside the files folder"
                );
                try_open(&path).map_err(|failure| match failure {
                    Failure::System(error) => failed(error),
                    Failure::Damaged(why) => failed(why.into()),
                })?
            }
        };
        Ok(Self {
            database: Arc::new(database),
            folder: folder.into(),
        })
    }

    /// The folder that the database is in: the peer's own, never to be shared.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Everything that the library remembers but the piece layers.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let read = self.database.begin_read()?;
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

    /// The piece layer of a file; `None` if it is not there or damaged.
    pub(crate) fn layer(&self, id: &FileId) -> Result<Option<Arc<[Hash]>>, StoreError> {
        let read = self.database.begin_read()?;
        let layer = read.open_table(LAYERS)?.get(id.as_bytes())?;
        Ok(layer.and_then(|bytes| {
            let (hashes, rest) = bytes.value().as_chunks::<32>();
            rest.is_empty().then(|| hashes.into())
        }))
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

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        change(&transaction)?;
        transaction.commit()?;
        Ok(())
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
        let read = self.database.begin_read()?;
        let table = read.open_table(TRANSFERS)?;
        let rows = table.iter()?;
        rows.map(|row| {
            let (id, bytes) = row?;
            Ok((id.value(), bytes.value().to_vec()))
        })
        .collect()
    }
}

/// Why a database did not open.
enum Failure {
    /// The operating system: permission, no room. Another database would fare no better.
    System(Box<dyn std::error::Error + Send + Sync>),
    /// The file itself.
    Damaged(String),
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        match &error {
            redb::Error::Io(io)
                if !matches!(
                    io.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::System(error.into())
            }
            redb::Error::DatabaseAlreadyOpen => Self::System(error.into()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Opens or makes a database with all its tables.
fn try_open(path: &Path) -> Result<Database, Failure> {
    let open = || -> Result<Database, redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_SIZE).create(path)?;
        let write = database.begin_write()?;
        write.open_table(ITEMS)?;
        write.open_table(MEMBERS)?;
        write.open_table(RECORDS)?;
        write.open_table(LAYERS)?;
        write.open_table(HIDDEN)?;
        write.open_table(TRANSFERS)?;
        write.commit()?;
        Ok(database)
    };
    // A damaged file can trip redb's own checks: that is a file that will not open, no reason to end the peer.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(Failure::from),
        Err(_) => Err(Failure::Damaged(
            StorageError::Corrupted("redb gave up".into()).to_string(),
        )),
    }
}

/// A free name beside a damaged database.
fn aside(path: &Path) -> PathBuf {
    (1..=u32::MAX)
        .map(|number| path.with_extension(format!("redb.damaged-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| path.with_extension("redb.damaged"))
}

fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// `0`, id, stamp, path for a file; `1`, id, path for a collection.
fn encode_item(row: &ItemRow) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 32 + STAMP_LEN + row.path.as_os_str().len());
    out.push(u8::from(matches!(row.stamps, Stamps::Collection(_))));
    out.extend_from_slice(row.id.as_bytes());
    if let Stamps::File(stamp) = &row.stamps {
        stamp.write(&mut out);
    }
    out.extend_from_slice(bytes_of(&row.path));
    out
}

fn decode_item(bytes: &[u8]) -> Option<(PathBuf, FileId, Option<Stamp>)> {
    let (&kind, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_first_chunk::<32>()?;
    let (stamp, rest) = match kind {
        0 => {
            let (stamp, rest) = rest.split_first_chunk::<STAMP_LEN>()?;
            (Some(Stamp::read(stamp)), rest)
        }
        1 => (None, rest),
        _ => return None,
    };
    let path = path_of(rest);
    path.is_absolute().then_some((path, FileId(*id), stamp))
}

fn encode_stamps(stamps: &[Stamp]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stamps.len() * STAMP_LEN);
    for stamp in stamps {
        stamp.write(&mut out);
    }
    out
}

fn decode_stamps(bytes: &[u8]) -> Vec<Stamp> {
    bytes.as_chunks::<STAMP_LEN>().0.iter().map(Stamp::read).collect()
}

/// Size, root, kind, and the SHA-256 where it is known.
fn encode_record(record: &FileRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + 32 + 1 + 32);
    out.extend_from_slice(&record.size.to_le_bytes());
    out.extend_from_slice(record.root.as_bytes());
    out.push(u8::from(record.kind == Kind::Collection));
    if let Some(sha256) = &record.sha256 {
        out.extend_from_slice(sha256.as_bytes());
    }
    out
}

fn decode_record(id: FileId, bytes: &[u8]) -> Option<FileRecord> {
    let (size, rest) = bytes.split_first_chunk::<8>()?;
    let (root, rest) = rest.split_first_chunk::<32>()?;
    let (&kind, rest) = rest.split_first()?;
    let (size, root) = (u64::from_le_bytes(*size), Root(*root));
    // What an id commits to is checked wherever it comes from.
    if FileId::derive(size, &root) != id {
        return None;
    }
    Some(FileRecord {
        id,
        size,
        root,
        sha256: Sha256::try_from(rest).ok(),
        kind: if kind == 1 { Kind::Collection } else { Kind::File },
    })
}

#[cfg(test)]
mod tests {
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
