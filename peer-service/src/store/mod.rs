//! The peer's persistent state: a redb database in the home. Only this module uses redb.
//!
//! Invariants:
//!
//! - A batch of changes is atomic, and durable when `Store::apply` returns: redb commits with
//!   `Durability::Immediate`, which ends in `fdatasync`.
//! - A damaged database is moved aside, never deleted, and a new one is created. Damage never ends
//!   the peer. Opening verifies all checksums, and that no acknowledged change is missing.
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
use potluck_core::{FileId, Sha256, identity::merkle::Hash};
use redb::{ReadTransaction, ReadableDatabase as _, ReadableTable as _, WriteTransaction};

mod error;
mod opening;
pub(crate) mod rows;
mod tables;
#[cfg(test)]
mod tests;

pub use crate::store::error::StoreError;
use crate::{
    catalog::{
        change::{CatalogChange, EntrySha256s},
        row::{EntryIndex, ItemRow, Members, RowBody},
    },
    home::Home,
    store::{
        error::catch_panics,
        opening::{OpenDatabase, OpenFailure, move_aside, try_open},
        rows::{add_members, bytes_of, decode_item, encode_item, encode_members, path_of},
        tables::{
            CACHE, DAMAGED, DOWNLOADS, ITEMS, LAST_DOWNLOAD, LAYERS, MEMBERS, SHA256S, TOMBSTONES,
        },
    },
};

const FILE_NAME: &str = "potluck.redb";

/// The effect of a lost database for the user, and the remedy.
const LOST: &str = "the files folder is shared again automatically; share everything else again, \
                    and repeat your downloads: they resume from their part files";

/// An item with its number and its known SHA-256 hashes.
pub(crate) type StoredItem = (u64, ItemRow, EntrySha256s);

/// The peer's database. Calls block, so do not use it on async threads. Cheap to clone; all clones
/// use the same database.
#[derive(Debug, Clone)]
pub struct Store {
    /// `None` after a disk failure, until it can be reopened.
    database: Arc<RwLock<Option<OpenDatabase>>>,
    folder: Arc<Path>,
    /// The new path of a damaged database that was moved aside since the start.
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
            Err(OpenFailure::Damaged(why)) => store.move_aside_and_create(&why)?,
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
        *database = Some(self.move_aside_and_create(&damage.to_string())?);
        self.is_suspect.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn move_aside_and_create(&self, why: &str) -> Result<OpenDatabase, StoreError> {
        let path = self.folder.join(FILE_NAME);
        let failed = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let aside = move_aside(&path).map_err(|error| failed(redb::Error::Io(error)))?;
        tracing::error!(
            path = %path.display(), moved_to = %aside.display(), %why,
            "the peer's database is damaged: it was renamed, and a new one is created; {LOST}"
        );
        let database = try_open(&path).map_err(|failure| failed(failure.into_error()))?;
        *self.moved_aside.lock() = Some(aside);
        Ok(database)
    }

    /// A warning for the user if a database was lost since the start, with the remedy.
    pub(crate) fn warning(&self) -> Option<String> {
        let aside = self.moved_aside.lock();
        aside.as_ref().map(|aside| {
            format!(
                "the peer's database was damaged and was renamed to {}: {LOST}",
                aside.display()
            )
        })
    }

    /// Runs `work` with the open database. After a disk failure, reopens the database and runs
    /// `work` again.
    fn with_database<T>(
        &self,
        work: impl Fn(&OpenDatabase) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = match &*self.database.read() {
            Some(database) => catch_panics(|| work(database)),
            None => Err(StoreError::Database(redb::Error::PreviousIo)),
        };
        let result = result.inspect_err(|error| self.mark_if_damaged(error));
        if !matches!(result, Err(StoreError::Database(redb::Error::PreviousIo))) {
            return result;
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
        tracing::info!("reopened the peer's database after a disk failure");
        let database = database.insert(opened);
        catch_panics(|| work(database)).inspect_err(|error| self.mark_if_damaged(error))
    }

    /// Closes the database, as after a disk failure; the next call reopens it.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        close(self.database.write().take());
    }

    /// If the error shows damage, says so once. The next start verifies the database and replaces
    /// it.
    fn mark_if_damaged(&self, error: &StoreError) {
        if error.is_damaged() && !self.is_suspect.swap(true, Ordering::Relaxed) {
            let path = self.folder.join(FILE_NAME);
            tracing::error!(
                path = %path.display(), %error,
                "the peer's database is damaged: restart the peer, which renames the file and \
                 creates a new database"
            );
        }
    }

    /// The folder of the database. It must never be shared.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The first `max` items with a number above `after`, in order; empty if there are no more.
    pub(crate) fn items(
        &self,
        after: Option<u64>,
        max: usize,
    ) -> Result<Vec<StoredItem>, StoreError> {
        self.with_database(|open| items(&open.database.begin_read()?, after, max))
    }

    /// The paths that the owner does not want shared.
    pub(crate) fn tombstones(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let table = read.open_table(TOMBSTONES)?;
            let rows = table.iter()?;
            rows.map(|row| Ok(path_of(row?.0.value()))).collect()
        })
    }

    /// The damaged entries, by item number.
    pub(crate) fn damaged(&self) -> Result<Vec<(u64, EntryIndex)>, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let table = read.open_table(DAMAGED)?;
            let rows = table.iter()?;
            rows.map(|row| Ok(row?.0.value())).collect()
        })
    }

    /// The piece layer of a file; `None` if it is missing or damaged.
    pub(crate) fn layer(&self, id: &FileId) -> Result<Option<Arc<[Hash]>>, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let layer = read.open_table(LAYERS)?.get(id.as_bytes())?;
            Ok(layer.and_then(|bytes| {
                let (hashes, rest) = bytes.value().as_chunks::<32>();
                rest.is_empty().then(|| hashes.into())
            }))
        })
    }

    /// Applies changes atomically; they are durable when this returns.
    pub(crate) fn apply(&self, changes: &[CatalogChange]) -> Result<(), StoreError> {
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
                if let CatalogChange::PutItem(number, _) | CatalogChange::RemoveItem(number) =
                    change
                {
                    let all = (*number, 0)..=(*number, u32::MAX);
                    items.remove(number)?;
                    members.retain_in(all.clone(), |_, _| false)?;
                    sha256s.retain_in(all.clone(), |_, _| false)?;
                    damaged.retain_in(all, |_, ()| false)?;
                }
                match change {
                    CatalogChange::PutItem(number, row) => {
                        items.insert(number, &*encode_item(row))?;
                        if let RowBody::Collection(all) = &row.body {
                            for (index, row) in (0..).zip(encode_members(all)) {
                                members.insert((*number, index), &*row)?;
                            }
                        }
                    }
                    CatalogChange::RemoveItem(_) => {}
                    CatalogChange::PutSha256s(number, all) => {
                        for (entry, sha256) in all {
                            sha256s.insert((*number, *entry), sha256.as_bytes())?;
                        }
                    }
                    CatalogChange::PutDamaged(number, entry) => {
                        drop(damaged.insert((*number, *entry), ())?)
                    }
                    CatalogChange::RemoveDamaged(number) => {
                        damaged.retain_in((*number, 0)..=(*number, u32::MAX), |_, ()| false)?;
                    }
                    CatalogChange::PutLayer(id, layer) => {
                        layers.insert(id.as_bytes(), layer.as_flattened())?;
                    }
                    CatalogChange::RemoveLayer(id) => drop(layers.remove(id.as_bytes())?),
                    CatalogChange::AddTombstone(path) => {
                        drop(tombstones.insert(bytes_of(path), ())?)
                    }
                    CatalogChange::RemoveTombstone(path) => {
                        drop(tombstones.remove(bytes_of(path))?)
                    }
                }
            }
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl Fn(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.with_database(|open| {
            let transaction = open.database.begin_write()?;
            change(&transaction)?;
            let generation = OpenDatabase::count(&transaction)?;
            transaction.commit()?;
            open.record(generation);
            Ok(())
        })
    }

    /// Stores downloads under their numbers, and removes those without bytes. Atomic, and durable
    /// when this returns.
    ///
    /// # Errors
    /// Fails if the database cannot be written.
    pub fn write_downloads(&self, changes: &[(u64, Option<Vec<u8>>)]) -> Result<(), StoreError> {
        self.write(|write| {
            let mut last = write.open_table(LAST_DOWNLOAD)?;
            let highest = changes.iter().map(|(id, _)| *id).max();
            let stored = last.get(())?.map(|row| row.value());
            if let Some(highest) = highest.filter(|highest| stored.is_none_or(|it| it < *highest)) {
                last.insert((), highest)?;
            }
            let mut table = write.open_table(DOWNLOADS)?;
            for (id, bytes) in changes {
                match bytes {
                    Some(bytes) => drop(table.insert(id, &**bytes)?),
                    None => drop(table.remove(id)?),
                }
            }
            Ok(())
        })
    }

    /// Stores entries of the cache under their names, and removes those without bytes. Atomic, and
    /// durable when this returns.
    pub(crate) fn write_cache_rows(
        &self,
        changes: &[(String, Option<Vec<u8>>)],
    ) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(|write| {
            let mut table = write.open_table(CACHE)?;
            for (name, bytes) in changes {
                match bytes {
                    Some(bytes) => drop(table.insert(&**name, &**bytes)?),
                    None => drop(table.remove(&**name)?),
                }
            }
            Ok(())
        })
    }

    /// The stored entries of the cache, by name.
    pub(crate) fn cache_rows(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let (mut rows, mut last) = (Vec::new(), None);
            for row in read.open_table(CACHE)?.iter()? {
                let (name, bytes) = row?;
                let name = name.value().to_owned();
                if last.as_ref().is_some_and(|last| *last >= name) {
                    return Err(redb::StorageError::Corrupted("keys out of order".into()).into());
                }
                rows.push((name.clone(), bytes.value().to_vec()));
                last = Some(name);
            }
            Ok(rows)
        })
    }

    /// The highest number that a stored download ever had; 0 if there was none.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn last_download_number(&self) -> Result<u64, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let table = read.open_table(LAST_DOWNLOAD)?;
            Ok(table.get(())?.map_or(0, |row| row.value()))
        })
    }

    /// The stored downloads, in order of their numbers.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn downloads(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.with_database(|open| {
            let read = open.database.begin_read()?;
            let table = read.open_table(DOWNLOADS)?;
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
fn close(database: Option<OpenDatabase>) {
    let closed: Result<(), StoreError> = catch_panics(|| {
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
        return Err(redb::StorageError::Corrupted("keys out of order".into()).into());
    }
    Ok(())
}

fn items(
    read: &ReadTransaction,
    after: Option<u64>,
    max: usize,
) -> Result<Vec<StoredItem>, StoreError> {
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
            tracing::warn!(item = number, "skipped a damaged row of the peer's database");
            continue;
        };
        if let RowBody::Collection(known) = &mut item.body {
            let (mut found, mut last) = (Members::default(), None);
            for row in members.range(all.clone())? {
                let (key, row) = row?;
                check_ascends(&mut last, key.value())?;
                // The caller detects missing entries when it compares them with the manifest.
                let _ = add_members(&mut found, row.value());
            }
            *known = Arc::new(found);
        }
        let (mut known, mut last) = (Vec::new(), None);
        for row in sha256s.range(all)? {
            let (key, sha256) = row?;
            check_ascends(&mut last, key.value())?;
            known.push((key.value().1, Sha256(*sha256.value())));
        }
        found.push((number, item, known));
    }
    Ok(found)
}
