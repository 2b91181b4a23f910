//! The tables of the catalog. Each stores one kind of value once; other tables refer to a value by
//! its 4-byte slot.

pub(crate) mod claims;
pub(crate) mod cost;
pub(crate) mod file_slots;
pub(crate) mod files;
pub(crate) mod hosts;
pub(crate) mod name_table;
pub(crate) mod names;
pub(crate) mod peers;
pub(crate) mod popular_files;
pub(crate) mod sums;
pub(crate) mod word_index;
pub(crate) mod words;
