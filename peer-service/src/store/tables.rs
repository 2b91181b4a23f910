//! The tables of the database.

use redb::TableDefinition;

use crate::catalog::row::EntryIndex;

/// Items by number; see [`ItemRow`](crate::catalog::row::ItemRow).
pub(crate) const ITEMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v2");
/// Stamps and roots of a collection's entries, by item number and row number; each row has several
/// entries.
pub(crate) const MEMBERS: TableDefinition<'_, (u64, u32), &[u8]> =
    TableDefinition::new("members.v2");
/// SHA-256 hashes that do not follow from the root, by item number and [`EntryIndex`].
pub(crate) const SHA256S: TableDefinition<'_, (u64, EntryIndex), &[u8; 32]> =
    TableDefinition::new("sums.v2");
/// Piece layers by id. Separate from the items, because all items are read at startup.
pub(crate) const LAYERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("layers.v1");
/// Paths in the files folder that the owner does not want shared.
pub(crate) const TOMBSTONES: TableDefinition<'_, &[u8], ()> = TableDefinition::new("hidden.v1");
/// Entries of items whose bytes differ from what was hashed although their stamps did not change,
/// by item number and [`EntryIndex`].
pub(crate) const DAMAGED: TableDefinition<'_, (u64, EntryIndex), ()> =
    TableDefinition::new("damaged.v1");
/// Entries of the cache by name.
pub(crate) const CACHE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cache.v1");
/// The number of the last commit.
pub(crate) const GENERATION: TableDefinition<'_, (), u64> = TableDefinition::new("generation.v1");
/// The highest number that a download ever had.
pub(crate) const LAST_DOWNLOAD: TableDefinition<'_, (), u64> =
    TableDefinition::new("last_transfer.v1");
/// Downloads by number.
pub(crate) const DOWNLOADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("transfers.v1");
