//! Errors of the database, and whether its file is damaged.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use potluck_core::Reason;
use redb::StorageError;

/// The reason why the database cannot be used.
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

/// Whether an error means that the file is damaged, rather than that the operating system refused
/// something.
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

/// Runs database work and turns a panic into an error: a damaged file can fail redb's own
/// assertions, which must not end the peer.
pub(crate) fn catch_panics<T, E: From<StorageError>>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StorageError::Corrupted("redb panicked".into()).into()))
}
