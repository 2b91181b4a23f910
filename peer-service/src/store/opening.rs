//! Opening the database, and what keeps it from opening.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableTable as _, StorageError, TableDefinition, TableHandle as _, WriteTransaction};

use crate::{
    durable,
    store::{
        CACHE_SIZE, DAMAGED, ITEMS, LAYERS, MEMBERS, SHA256S, TOMBSTONES, TRANSFERS, rows::from_first_version,
    },
};

/// Tables of the first version: files and their roots apart from the items.
const FIRST_ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
const FIRST_MEMBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("members.v1");
const FIRST_RECORDS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("records.v1");

/// Why a database did not open.
pub(crate) enum OpenFailure {
    /// The operating system: permission, no room. Another database would fare no better.
    System(redb::Error),
    /// The file itself.
    Damaged(String),
}

impl OpenFailure {
    pub(crate) fn into_error(self) -> redb::Error {
        match self {
            Self::System(error) => error,
            Self::Damaged(why) => redb::Error::Corrupted(why),
        }
    }
}

impl From<redb::Error> for OpenFailure {
    fn from(error: redb::Error) -> Self {
        match is_damage(&error) {
            true => Self::Damaged(error.to_string()),
            false => Self::System(error),
        }
    }
}

/// Whether an error says that the file is not what redb wrote, rather than that the operating
/// system refused something.
pub(crate) fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        ),
        redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo => false,
        _ => true,
    }
}

/// Runs what reads or writes a database. A damaged file can trip redb's own checks: that is an
/// error like any other, and no reason to end the peer.
pub(crate) fn caught<T, E: From<StorageError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StorageError::Corrupted("redb gave up on it".into()).into()))
}

/// Opens or makes a database with all its tables. One that was found damaged while it was open
/// ([`mark_suspect`]) is checked from end to end; of any other, what is small and read at every
/// start.
pub(crate) fn try_open(path: &Path) -> Result<Database, OpenFailure> {
    let is_new = !path.exists();
    let suspect = suspect(path);
    let is_suspect = suspect.exists();
    let open = || -> Result<Database, redb::Error> {
        let mut database = Database::builder().set_cache_size(CACHE_SIZE).create(path)?;
        if is_suspect {
            database.check_integrity()?;
        }
        let write = database.begin_write()?;
        write.open_table(ITEMS)?;
        write.open_table(MEMBERS)?;
        write.open_table(SHA256S)?;
        write.open_table(LAYERS)?;
        for row in write.open_table(TOMBSTONES)?.iter()? {
            row?;
        }
        for row in write.open_table(DAMAGED)?.iter()? {
            row?;
        }
        for row in write.open_table(TRANSFERS)?.iter()? {
            row?;
        }
        migrate(&write)?;
        write.commit()?;
        if is_new && let Some(folder) = path.parent() {
            durable::sync_folder(folder).map_err(redb::Error::Io)?;
        }
        Ok(database)
    };
    let database = caught(open)?;
    if is_suspect {
        // Where it stays, the next start only checks once more.
        let _ = std::fs::remove_file(suspect);
    }
    Ok(database)
}

/// Notes beside a database that it is to be checked from end to end when it is next opened.
pub(crate) fn mark_suspect(path: &Path) {
    // Without the note, what is damaged is met again where it was met.
    let _ = std::fs::write(suspect(path), "");
}

fn suspect(path: &Path) -> PathBuf {
    path.with_extension("redb.suspect")
}

/// Moves a damaged database aside, so that a new one can be begun; gives its new name.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = damaged_path(path);
    std::fs::rename(path, &aside)?;
    let _ = std::fs::remove_file(suspect(path));
    if let Some(folder) = path.parent() {
        durable::sync_folder(folder)?;
    }
    Ok(aside)
}

/// Takes the items of the first version over: they are hashed again, as their roots are not where they were.
fn migrate(write: &WriteTransaction) -> Result<(), redb::Error> {
    if !write
        .list_tables()?
        .any(|table| table.name() == FIRST_ITEMS.name())
    {
        return Ok(());
    }
    {
        let (first, mut items) = (write.open_table(FIRST_ITEMS)?, write.open_table(ITEMS)?);
        for row in first.iter()? {
            let (number, bytes) = row?;
            if let Some(bytes) = from_first_version(bytes.value()) {
                items.insert(number.value(), &*bytes)?;
            }
        }
    }
    write.delete_table(FIRST_ITEMS)?;
    write.delete_table(FIRST_MEMBERS)?;
    write.delete_table(FIRST_RECORDS)?;
    Ok(())
}

/// A free name beside a damaged database.
fn damaged_path(path: &Path) -> PathBuf {
    (1..=u32::MAX)
        .map(|number| path.with_extension(format!("redb.damaged-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| path.with_extension("redb.damaged"))
}
