//! The peer's persistent state: a redb database in the home. Only this module uses redb.
//!
//! Invariants:
//!
//! - A batch of changes is atomic, and durable when `Store::apply` returns: redb commits with
//!   `Durability::Immediate`, which ends in `fdatasync`.
//! - A damaged database is moved aside, never deleted, and a new one is created. Damage never ends
//!   the peer.
//! - A row that cannot be decoded is skipped, never trusted.
//! - After a disk failure, the database is reopened, as redb requires. So a peer survives a disk
//!   that was full for a while.
//!
//! Non-goals: the meaning of the rows. All calls block.

use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use potluck_core::{FileId, Reason, Sha256, identity::merkle::Hash};
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};

mod opening;
mod rows;

use crate::home::Home;
pub use crate::store::rows::Stamp;
pub(crate) use crate::store::rows::{EntryIndex, ItemRow, Members, RowBody, WHOLE_ITEM};
use opening::{OpenFailure, caught, is_damage, mark_suspect, move_aside, try_open};
use rows::{bytes_of, decode_item, encode_item, path_of};

/// Items by number; see [`ItemRow`].
const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v2");
/// Stamps and roots of a collection's entries, by item number and row number; each row has several
/// entries.
const MEMBERS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("members.v2");
/// SHA-256 hashes that do not follow from the root, by item number and [`EntryIndex`].
const SHA256S: TableDefinition<'_, (u64, EntryIndex), &[u8; 32]> = TableDefinition::new("sums.v2");
/// Piece layers by id. Separate from the items, because all items are read at startup.
const LAYERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("layers.v1");
/// Paths in the files folder that the owner does not want shared.
const TOMBSTONES: TableDefinition<'_, &[u8], ()> = TableDefinition::new("hidden.v1");
/// Entries of items whose bytes differ from what was hashed although their stamps did not change,
/// by item number and [`EntryIndex`].
const DAMAGED: TableDefinition<'_, (u64, EntryIndex), ()> = TableDefinition::new("damaged.v1");
/// Downloads by number.
const TRANSFERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("transfers.v1");

/// Page cache, in bytes. redb's default is 1 GiB; frequently read data is cached elsewhere.
const CACHE_SIZE: usize = 4 * 1024 * 1024;

const FILE_NAME: &str = "potluck.redb";

/// What is lost with a database, and what the user can do.
const LOST: &str = "what is in the files folder is shared again by itself; share again what is \
                    elsewhere, and get again what was being fetched: it goes on where it was";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or moved aside.
    #[error("cannot open the peer's database {path}: {source}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// The cause.
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
    /// Whether the database file is damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        let (Self::Database(error) | Self::Open { source: error, .. }) = self;
        is_damage(error)
    }

    /// Whether the disk was full.
    pub fn is_full(&self) -> bool {
        self.exhaustion() == Some(Reason::DiskFull)
    }

    /// The exhausted resource of this machine, if that is the cause.
    pub(crate) fn exhaustion(&self) -> Option<Reason> {
        let (Self::Database(error) | Self::Open { source: error, .. }) = self;
        match error {
            redb::Error::Io(error) => Reason::of_exhaustion(error),
            _ => None,
        }
    }
}

/// A change within a batch.
#[derive(Debug, Clone)]
pub(crate) enum StoreChange {
    PutItem(u64, ItemRow),
    RemoveItem(u64),
    /// SHA-256 hashes of an existing item.
    PutSha256s(u64, EntrySha256s),
    /// A damaged entry of an existing item; removed when the item is put again or removed.
    PutDamaged(u64, EntryIndex),
    /// Removes all damaged entries of an item.
    RemoveDamaged(u64),
    PutLayer(FileId, Arc<[Hash]>),
    RemoveLayer(FileId),
    AddTombstone(PathBuf),
    RemoveTombstone(PathBuf),
}

/// SHA-256 hashes of entries of an item.
pub(crate) type EntrySha256s = Vec<(EntryIndex, Sha256)>;

/// An item with its number and its known SHA-256 hashes.
pub(crate) type StoredItem = (u64, ItemRow, EntrySha256s);

/// The peer's database. Calls block, so do not use it on async threads. Cheap to clone; all clones
/// use the same database.
#[derive(Debug, Clone)]
pub struct Store {
    /// `None` after a disk failure, until it can be reopened.
    database: Arc<RwLock<Option<Database>>>,
    folder: Arc<Path>,
    /// Where a damaged database was moved to since the start.
    moved_aside: Arc<Mutex<Option<PathBuf>>>,
    /// Whether the open database was found damaged.
    is_suspect: Arc<AtomicBool>,
}

impl Store {
    /// Opens the database in the home. A damaged one is moved aside, and a new one is created.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the operating system does not allow it.
    pub fn open(home: &Home) -> Result<Self, StoreError> {
        Self::open_in(&home.state())
    }

    pub(crate) fn open_in(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE_NAME);
        let store = Self {
            database: Arc::default(),
            folder: folder.into(),
            moved_aside: Arc::default(),
            is_suspect: Arc::default(),
        };
        let database = match try_open(&path) {
            Ok(database) => database,
            Err(OpenFailure::System(source)) => return Err(StoreError::Open { path, source }),
            Err(OpenFailure::Damaged(why)) => store.begin_anew(&why)?,
        };
        *store.database.write() = Some(database);
        Ok(store)
    }

    /// Moves the damaged database aside and creates a new, empty one.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the operating system does not allow it.
    pub(crate) fn replace_damaged(&self, damage: &StoreError) -> Result<(), StoreError> {
        let mut database = self.database.write();
        close(database.take());
        *database = Some(self.begin_anew(&damage.to_string())?);
        self.is_suspect.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn begin_anew(&self, why: &str) -> Result<Database, StoreError> {
        let path = self.folder.join(FILE_NAME);
        let failed = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let aside = move_aside(&path).map_err(|error| failed(redb::Error::Io(error)))?;
        tracing::error!(
            path = %path.display(), moved_to = %aside.display(), %why,
            "the peer's database is damaged: it is kept under another name, and a new one is begun; \
             {}", LOST
        );
        let database = try_open(&path).map_err(|failure| failed(failure.into_error()))?;
        *self.moved_aside.lock() = Some(aside);
        Ok(database)
    }

    /// A warning for the user if a database was lost since the start, with what to do.
    pub(crate) fn warning(&self) -> Option<String> {
        let aside = self.moved_aside.lock();
        aside.as_ref().map(|aside| {
            format!(
                "the peer's database was damaged and is kept as {}: {LOST}",
                aside.display()
            )
        })
    }

    /// Runs `work` with the open database. After a disk failure, reopens the database and runs
    /// `work` again.
    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = match &*self.database.read() {
            Some(database) => caught(|| work(database)),
            None => Err(StoreError::Database(redb::Error::PreviousIo)),
        };
        let done = done.inspect_err(|error| self.note(error));
        if !matches!(done, Err(StoreError::Database(redb::Error::PreviousIo))) {
            return done;
        }
        let mut database = self.database.write();
        // Close it first: redb cannot open a database twice.
        close(database.take());
        let path = self.folder.join(FILE_NAME);
        // Never moved aside here: data that cannot be read now may be readable after a restart.
        let opened = try_open(&path).map_err(|failure| StoreError::Open {
            path,
            source: failure.into_error(),
        })?;
        tracing::info!("the peer's database is open again after a failure of the disk");
        let database = database.insert(opened);
        caught(|| work(database)).inspect_err(|error| self.note(error))
    }

    /// Closes the database, as after a disk failure; the next call reopens it.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        close(self.database.write().take());
    }

    /// If the error shows damage, schedules an integrity check for the next time that the database
    /// is opened.
    fn note(&self, error: &StoreError) {
        if error.is_damaged() && !self.is_suspect.swap(true, Ordering::Relaxed) {
            let path = self.folder.join(FILE_NAME);
            tracing::error!(
                path = %path.display(), %error,
                "the peer's database is damaged: start the peer again, which keeps the file under \
                 another name and begins a new one"
            );
            mark_suspect(&path);
        }
    }

    /// The folder of the database. It must never be shared.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The first `max` items with a number above `after`, in order; empty if there are no more.
    pub(crate) fn items(&self, after: Option<u64>, max: usize) -> Result<Vec<StoredItem>, StoreError> {
        self.with(|database| items(&database.begin_read()?, after, max))
    }

    /// The paths that the owner does not want shared.
    pub(crate) fn tombstones(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let table = read.open_table(TOMBSTONES)?;
            let rows = table.iter()?;
            rows.map(|row| Ok(path_of(row?.0.value()))).collect()
        })
    }

    /// The damaged entries, by item number.
    pub(crate) fn damaged(&self) -> Result<Vec<(u64, EntryIndex)>, StoreError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let table = read.open_table(DAMAGED)?;
            let rows = table.iter()?;
            rows.map(|row| Ok(row?.0.value())).collect()
        })
    }

    /// The piece layer of a file; `None` if it is missing or damaged.
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

    /// Applies changes atomically; they are durable when this returns.
    pub(crate) fn apply(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(|write| {
            let mut items = write.open_table(ITEMS)?;
            let mut members = write.open_table(MEMBERS)?;
            let mut sha256s = write.open_table(SHA256S)?;
            let mut layers = write.open_table(LAYERS)?;
            let mut tombstones = write.open_table(TOMBSTONES)?;
            let mut damaged = write.open_table(DAMAGED)?;
            for change in changes {
                if let StoreChange::PutItem(number, _) | StoreChange::RemoveItem(number) = change {
                    let all = (*number, 0)..=(*number, u32::MAX);
                    items.remove(number)?;
                    members.retain_in(all.clone(), |_, _| false)?;
                    sha256s.retain_in(all.clone(), |_, _| false)?;
                    damaged.retain_in(all, |_, ()| false)?;
                }
                match change {
                    StoreChange::PutItem(number, row) => {
                        items.insert(number, &*encode_item(row))?;
                        if let RowBody::Collection(all) = &row.body {
                            for (run, row) in (0..).zip(all.rows()) {
                                members.insert((*number, run), &*row)?;
                            }
                        }
                    }
                    StoreChange::RemoveItem(_) => {}
                    StoreChange::PutSha256s(number, all) => {
                        for (part, sum) in all {
                            sha256s.insert((*number, *part), sum.as_bytes())?;
                        }
                    }
                    StoreChange::PutDamaged(number, part) => drop(damaged.insert((*number, *part), ())?),
                    StoreChange::RemoveDamaged(number) => {
                        damaged.retain_in((*number, 0)..=(*number, u32::MAX), |_, ()| false)?;
                    }
                    StoreChange::PutLayer(id, layer) => {
                        layers.insert(id.as_bytes(), layer.as_flattened())?;
                    }
                    StoreChange::RemoveLayer(id) => drop(layers.remove(id.as_bytes())?),
                    StoreChange::AddTombstone(path) => drop(tombstones.insert(bytes_of(path), ())?),
                    StoreChange::RemoveTombstone(path) => drop(tombstones.remove(bytes_of(path))?),
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

    /// Stores downloads under their numbers, and removes those without bytes. Atomic, and durable
    /// when this returns.
    ///
    /// # Errors
    /// Fails if the database cannot be written.
    pub fn write_transfers(&self, changes: &[(u64, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        self.write(|write| {
            let mut table = write.open_table(TRANSFERS)?;
            for (id, bytes) in changes {
                match bytes {
                    Some(bytes) => drop(table.insert(id, &**bytes)?),
                    None => drop(table.remove(id)?),
                }
            }
            Ok(())
        })
    }

    /// The stored downloads, in order of their numbers.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn transfers(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.with(|database| {
            let read = database.begin_read()?;
            let table = read.open_table(TRANSFERS)?;
            let (mut rows, mut last) = (Vec::new(), None);
            for row in table.iter()? {
                let (id, bytes) = row?;
                check_ascends(&mut last, id.value())?;
                rows.push((id.value(), bytes.value().to_vec()));
            }
            Ok(rows)
        })
    }
}

/// Closes a database. A damaged one may trip redb's own checks.
fn close(database: Option<Database>) {
    let closed: Result<(), StoreError> = caught(|| {
        drop(database);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::debug!(%error, "closing the database failed");
    }
}

/// Checks that keys ascend. In a damaged tree they may loop, and reading would never end.
fn check_ascends<K: Ord + Copy>(last: &mut Option<K>, key: K) -> Result<(), StoreError> {
    if last.replace(key).is_some_and(|last| last >= key) {
        let why = "its keys are out of order";
        return Err(redb::StorageError::Corrupted(why.into()).into());
    }
    Ok(())
}

fn items(read: &ReadTransaction, after: Option<u64>, max: usize) -> Result<Vec<StoredItem>, StoreError> {
    let mut found = Vec::new();
    let (members, sha256s) = (read.open_table(MEMBERS)?, read.open_table(SHA256S)?);
    let mut last = after;
    let after = after.map_or(Bound::Unbounded, Bound::Excluded);
    for row in read.open_table(ITEMS)?.range((after, Bound::Unbounded))? {
        if found.len() == max {
            break;
        }
        let (number, bytes) = row?;
        let number = number.value();
        check_ascends(&mut last, number)?;
        let all = (number, 0)..=(number, u32::MAX);
        let Some(mut item) = decode_item(bytes.value()) else {
            tracing::warn!(item = number, "a damaged row of the database is passed over");
            continue;
        };
        if let RowBody::Collection(known) = &mut item.body {
            let (mut found, mut last) = (Members::default(), None);
            for row in members.range(all.clone())? {
                let (key, row) = row?;
                check_ascends(&mut last, key.value())?;
                // The caller detects missing entries when it compares them with the manifest.
                let _ = found.add(row.value());
            }
            *known = Arc::new(found);
        }
        let (mut known, mut last) = (Vec::new(), None);
        for row in sha256s.range(all)? {
            let (key, sum) = row?;
            check_ascends(&mut last, key.value())?;
            known.push((key.value().1, Sha256(*sum.value())));
        }
        found.push((number, item, known));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use potluck_core::{Root, collection::path::Label};
    use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

    use super::*;

    /// Number of random damages to try.
    const DAMAGES: u64 = 250;

    fn id(n: u8) -> FileId {
        FileId([n; 32])
    }

    fn stamp(n: u64) -> Stamp {
        Stamp {
            size: n,
            mtime: -(n as i64),
            inode: n + 1,
            ctime: i64::MAX - n as i64,
        }
    }

    fn file(path: &[u8], n: u8) -> ItemRow {
        ItemRow {
            path: path_of(path).into(),
            downloaded: false,
            label: None,
            id: id(n),
            root: Root([n + 100; 32]),
            body: RowBody::File(stamp(n.into())),
        }
    }

    fn collection(path: &[u8], n: u8, entries: usize) -> ItemRow {
        let members = Members {
            stamps: (0..entries as u64).map(stamp).collect(),
            roots: (0..entries).map(|n| Root([n as u8; 32])).collect(),
        };
        ItemRow {
            body: RowBody::Collection(Arc::new(members)),
            ..file(path, n)
        }
    }

    fn all(store: &Store) -> Vec<StoredItem> {
        store.items(None, usize::MAX).unwrap()
    }

    #[test]
    fn what_is_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let layer: Arc<[Hash]> = Arc::from([[1; 32], [2; 32]]);
        let long = collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW + 1);
        let odd = ItemRow {
            label: Some(Label::parse("what others say").unwrap()),
            downloaded: true,
            ..collection(b"/not utf-8 \xff", 3, 2)
        };
        let sum = |n: u8| Sha256([n; 32]);
        {
            let store = Store::open_in(dir.path()).unwrap();
            store
                .apply(&[
                    StoreChange::PutItem(1, file(b"/a/b", 1)),
                    StoreChange::PutItem(2, odd.clone()),
                    StoreChange::PutItem(3, file(b"/a/b", 1)),
                    StoreChange::PutSha256s(3, vec![(WHOLE_ITEM, sum(9))]),
                    StoreChange::RemoveItem(3),
                    StoreChange::PutItem(4, long.clone()),
                    StoreChange::PutSha256s(4, vec![(2000, sum(1)), (7, sum(2))]),
                    StoreChange::PutSha256s(1, vec![(WHOLE_ITEM, sum(3))]),
                    StoreChange::PutItem(5, long),
                    StoreChange::PutSha256s(5, vec![(0, sum(4))]),
                    StoreChange::PutItem(5, odd.clone()),
                    StoreChange::PutLayer(id(3), layer.clone()),
                    StoreChange::PutLayer(id(2), layer.clone()),
                    StoreChange::RemoveLayer(id(2)),
                    StoreChange::AddTombstone("/a/hidden".into()),
                ])
                .unwrap();
            store.write_transfers(&[(9, Some(b"nine".to_vec()))]).unwrap();
        }
        let store = Store::open_in(dir.path()).unwrap();
        let long = collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW + 1);
        let expected = [
            (1, file(b"/a/b", 1), vec![(WHOLE_ITEM, sum(3))]),
            (2, odd.clone(), vec![]),
            (4, long, vec![(7, sum(2)), (2000, sum(1))]),
            (5, odd, vec![]),
        ];
        assert_eq!(all(&store), expected);
        assert_eq!(store.items(None, 3).unwrap(), expected[..3]);
        assert_eq!(store.items(Some(2), 1).unwrap(), expected[2..3]);
        assert_eq!(store.items(Some(4), 3).unwrap(), expected[3..]);
        assert_eq!(store.items(Some(5), 3).unwrap(), []);
        assert_eq!(store.tombstones().unwrap(), [PathBuf::from("/a/hidden")]);
        assert_eq!(store.layer(&id(3)).unwrap(), Some(layer));
        assert_eq!(store.layer(&id(2)).unwrap(), None);
        assert_eq!(store.transfers().unwrap(), [(9, b"nine".to_vec())]);
        store.write_transfers(&[(9, None)]).unwrap();
        assert_eq!(store.transfers().unwrap(), []);
    }

    #[test]
    fn what_the_first_version_shared_is_still_known() {
        let dir = tempfile::tempdir().unwrap();
        {
            let database = Database::create(dir.path().join(FILE_NAME)).unwrap();
            let write = database.begin_write().unwrap();
            let items: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
            let row = [&[1][..], &[7; 32], b"/folder"].concat();
            write.open_table(items).unwrap().insert(3, &*row).unwrap();
            write.commit().unwrap();
        }
        let store = Store::open_in(dir.path()).unwrap();
        let [(number, row, _)] = &all(&store)[..] else {
            panic!("one item")
        };
        assert_eq!((*number, row.id, &*row.path), (3, id(7), Path::new("/folder")));
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
            assert!(all(&store).is_empty());
            let aside = std::fs::read(dir.path().join("potluck.redb.damaged-1")).unwrap();
            assert_eq!(aside, damage);
        }
    }

    #[test]
    fn keys_that_lead_back_are_damage() {
        let mut last = Some(3);
        assert!(check_ascends(&mut last, 4).is_ok());
        for back in [4, 2] {
            let error = check_ascends(&mut Some(4), back).unwrap_err();
            assert!(error.is_damaged(), "{error}");
        }
    }

    /// Reads everything that the peer reads, and changes everything.
    fn use_all(store: &Store) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let found = store.items(after, 100)?;
            let Some((last, ..)) = found.last() else { break };
            after = Some(*last);
        }
        store.tombstones()?;
        store.transfers()?;
        for n in 0..20 {
            store.layer(&id(n))?;
        }
        store.write_transfers(&[(1, Some(b"row".to_vec())), (2, None)])?;
        store.apply(&[
            StoreChange::PutItem(7, file(b"/new", 1)),
            StoreChange::PutSha256s(7, vec![(WHOLE_ITEM, Sha256([1; 32]))]),
            StoreChange::PutLayer(id(1), Arc::from([[1; 32]; 3])),
            StoreChange::RemoveItem(8),
            StoreChange::AddTombstone("/another".into()),
        ])
    }

    #[test]
    fn whatever_bytes_are_damaged_the_peer_starts_and_nothing_panics_or_hangs() {
        let whole = {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open_in(dir.path()).unwrap();
            let mut changes = Vec::new();
            for n in 0..200 {
                let path = format!("/folder/file {n}");
                changes.push(StoreChange::PutItem(n, file(path.as_bytes(), (n % 100) as u8)));
                changes.push(StoreChange::PutLayer(id(n as u8), Arc::from([[n as u8; 32]; 40])));
                changes.push(StoreChange::AddTombstone(path.into()));
            }
            changes.push(StoreChange::PutItem(
                200,
                collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW),
            ));
            store.apply(&changes).unwrap();
            for n in 0..40 {
                store.write_transfers(&[(n, Some(vec![b'x'; 200]))]).unwrap();
            }
            drop(store);
            std::fs::read(dir.path().join(FILE_NAME)).unwrap()
        };
        let mut moved = 0;
        for seed in 0..DAMAGES {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..=24) {
                // Half of the damages hit the roots of all trees.
                let max = if rng.random() { 8192 } else { bytes.len() };
                let at = rng.random_range(0..max);
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                std::fs::write(dir.path().join(FILE_NAME), &bytes).unwrap();
                let store = Store::open_in(dir.path()).unwrap();
                if let Err(error) = use_all(&store) {
                    assert!(error.is_damaged(), "seed {seed}: {error}");
                    // Damage found during use is found again at the next start.
                    drop(store);
                    let store = Store::open_in(dir.path()).unwrap();
                    if let Err(error) = use_all(&store) {
                        store.replace_damaged(&error).unwrap();
                        use_all(&store).unwrap();
                    }
                }
                let aside = dir.path().join("potluck.redb.damaged-1").exists();
                let _ = tell.send(aside);
            });
            let aside = told.recv_timeout(std::time::Duration::from_secs(60));
            moved += usize::from(aside.unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        }
        assert!(moved > 0, "no damage was met");
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
        assert!(all(&store).is_empty());
    }
}
