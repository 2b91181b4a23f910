//! Opens the database, checks a suspect one, and moves a damaged one aside.

use std::{
    io,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableTable as _, TableDefinition, TableHandle as _, WriteTransaction};

use crate::{
    fs::durable,
    store::{
        error::{catch_panics, is_damage},
        rows::from_first_version,
        tables::{DAMAGED, DOWNLOADS, ITEMS, LAYERS, MEMBERS, SHA256S, TOMBSTONES},
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

/// Opens or creates a database with all its tables. If it was marked as suspect ([`mark_suspect`]),
/// checks all of it; otherwise reads only the small tables that are read at every start.
pub(crate) fn try_open(path: &Path) -> Result<Database, OpenFailure> {
    let is_new = !path.exists();
    let mark = suspect_mark(path);
    let is_suspect = mark.exists();
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
        for row in write.open_table(DOWNLOADS)?.iter()? {
            row?;
        }
        migrate(&write)?;
        write.commit()?;
        if is_new && let Some(folder) = path.parent() {
            durable::sync_folder(folder).map_err(redb::Error::Io)?;
        }
        Ok(database)
    };
    let database = catch_panics(open)?;
    if is_suspect {
        // If the mark stays, the next start only repeats the check.
        let _ = std::fs::remove_file(mark);
    }
    Ok(database)
}

/// Marks a database, with a file next to it, to be checked completely when it is next opened.
pub(crate) fn mark_suspect(path: &Path) {
    // Without the mark, the damage is only found when it is next read.
    let _ = std::fs::write(suspect_mark(path), "");
}

fn suspect_mark(path: &Path) -> PathBuf {
    path.with_extension("redb.suspect")
}

/// Moves a damaged database aside, so that a new one can be created. Returns its new path.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = damaged_path(path);
    std::fs::rename(path, &aside)?;
    let _ = std::fs::remove_file(suspect_mark(path));
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
