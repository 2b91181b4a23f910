//! Opening the database, and what keeps it from opening.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableTable as _, StorageError, TableDefinition, TableHandle as _, WriteTransaction};

use super::{CACHE_SIZE, HIDDEN, ITEMS, LAYERS, MEMBERS, SUMS, TRANSFERS, rows::from_first_version};

/// Tables of the first version: files and their roots apart from the items.
const FIRST_ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
const FIRST_MEMBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("members.v1");
const FIRST_RECORDS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("records.v1");

/// Why a database did not open.
pub(super) enum Failure {
    /// The operating system: permission, no room. Another database would fare no better.
    System(redb::Error),
    /// The file itself.
    Damaged(String),
}

impl Failure {
    pub(super) fn into_error(self) -> redb::Error {
        match self {
            Self::System(error) => error,
            Self::Damaged(why) => redb::Error::Corrupted(why),
        }
    }
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
                Self::System(error)
            }
            redb::Error::DatabaseAlreadyOpen => Self::System(error),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Opens or makes a database with all its tables.
pub(super) fn try_open(path: &Path) -> Result<Database, Failure> {
    let open = || -> Result<Database, redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_SIZE).create(path)?;
        let write = database.begin_write()?;
        write.open_table(ITEMS)?;
        write.open_table(MEMBERS)?;
        write.open_table(SUMS)?;
        write.open_table(LAYERS)?;
        write.open_table(HIDDEN)?;
        write.open_table(TRANSFERS)?;
        take_over(&write)?;
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

/// Takes the items of the first version over: they are hashed again, as their roots are not where they were.
fn take_over(write: &WriteTransaction) -> Result<(), redb::Error> {
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
pub(super) fn aside(path: &Path) -> PathBuf {
    (1..=u32::MAX)
        .map(|number| path.with_extension(format!("redb.damaged-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| path.with_extension("redb.damaged"))
}
