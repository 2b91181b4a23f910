//! Opens and verifies the database, and moves a damaged one aside.

use std::{
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use potluck_core::generation::GenerationFile;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _,
    WriteTransaction,
};

use crate::{
    fs::durable,
    store::{
        error::{catch_panics, is_damage},
        rows::from_first_version,
        tables::{
            CACHE, DAMAGED, DOWNLOADS, GENERATION, ITEMS, LAST_DOWNLOAD, LAYERS, MEMBERS, SHA256S,
            TOMBSTONES,
        },
    },
};

/// Page cache, in bytes. redb's default is 1 GiB; frequently read data is cached elsewhere.
const CACHE_SIZE: usize = 4 * 1024 * 1024;

/// Tables of the first version, which stored files and roots separately from the items.
const FIRST_ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
const FIRST_MEMBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("members.v1");
const FIRST_RECORDS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("records.v1");

/// Why a database did not open.
pub(crate) enum OpenFailure {
    /// The operating system refused, such as for lack of permission or space. A new database would
    /// not help.
    System(redb::Error),
    /// The file is damaged.
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

/// Opens or creates a database with all its tables, and verifies all of it.
///
/// redb verifies checksums only when it repairs, and it repairs a damaged commit by going back to
/// the one before. So opening always verifies them, and compares the number of the last commit with
/// the last one that was acknowledged.
pub(crate) fn try_open(path: &Path) -> Result<OpenDatabase, OpenFailure> {
    let is_new = !path.exists();
    let open = || -> Result<OpenDatabase, redb::Error> {
        let acknowledged = GenerationFile::open(&generation_path(path)).map_err(redb::Error::Io)?;
        let mut database = Database::builder().set_cache_size(CACHE_SIZE).create(path)?;
        if !is_new {
            // True or false: false means that it was repaired, also after a kill. The number shows
            // whether that lost anything.
            database.check_integrity()?;
        }
        let generation = generation_of(&database)?;
        if acknowledged.acknowledged().is_some_and(|last| last > generation) {
            let why = "it lost its last changes, or is an older copy of itself".to_owned();
            return Err(redb::Error::Corrupted(why));
        }
        let write = database.begin_write()?;
        write.open_table(ITEMS)?;
        write.open_table(MEMBERS)?;
        write.open_table(SHA256S)?;
        write.open_table(LAYERS)?;
        write.open_table(TOMBSTONES)?;
        write.open_table(DAMAGED)?;
        write.open_table(DOWNLOADS)?;
        write.open_table(CACHE)?;
        write.open_table(LAST_DOWNLOAD)?;
        migrate(&write)?;
        write.commit()?;
        if is_new && let Some(folder) = path.parent() {
            durable::sync_folder(folder).map_err(redb::Error::Io)?;
        }
        Ok(OpenDatabase {
            database,
            acknowledged: Mutex::new(acknowledged),
        })
    };
    Ok(catch_panics(open)?)
}

/// An open database, with the file that has the number of its last acknowledged commit.
#[derive(Debug)]
pub(crate) struct OpenDatabase {
    pub(crate) database: Database,
    acknowledged: Mutex<GenerationFile>,
}

impl OpenDatabase {
    /// Counts a commit; returns its number.
    pub(crate) fn count(write: &WriteTransaction) -> Result<u64, redb::Error> {
        let mut table = write.open_table(GENERATION)?;
        let generation = table.get(())?.map_or(0, |row| row.value()) + 1;
        table.insert((), generation)?;
        Ok(generation)
    }

    /// Records that a commit is durable. A failure only weakens the check at the next start.
    pub(crate) fn record(&self, generation: u64) {
        let mut acknowledged = self.acknowledged.lock();
        // Commits have an order, but their callers come here in any.
        if acknowledged.acknowledged().is_none_or(|last| last < generation)
            && let Err(error) = acknowledged.record(generation)
        {
            tracing::warn!(
                %error,
                "cannot write down the number of the last change: the next start would not \
                 notice if it were lost"
            );
        }
    }
}

/// The number of the last commit; 0 if an earlier version made it.
fn generation_of(database: &Database) -> Result<u64, redb::Error> {
    let read = database.begin_read()?;
    match read.open_table(GENERATION) {
        Ok(table) => Ok(table.get(())?.map_or(0, |row| row.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn generation_path(path: &Path) -> PathBuf {
    path.with_extension("redb.generation")
}

/// Moves a damaged database aside, so that a new one can be created. Returns its new path.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = damaged_path(path);
    match std::fs::rename(path, &aside) {
        // The file is missing, although changes were acknowledged.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    // The new database starts to count again.
    match std::fs::remove_file(generation_path(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        durable::sync_folder(folder)?;
    }
    Ok(aside)
}

/// Migrates the items of the first version. They are hashed again, because their roots are not
/// migrated.
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

/// A free path next to a damaged database.
fn damaged_path(path: &Path) -> PathBuf {
    (1..=u32::MAX)
        .map(|number| path.with_extension(format!("redb.damaged-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| path.with_extension("redb.damaged"))
}
