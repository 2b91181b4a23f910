//! Paged reads of the catalog: by id, by exact name, by claimed SHA-256, by words.

pub(crate) mod describe;
pub(crate) mod listing;
pub(crate) mod page;
pub(crate) mod ranking;
pub(crate) mod sample;
pub(crate) mod search;
