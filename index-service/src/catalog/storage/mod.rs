//! Structures in which the tables of the catalog keep their values.
//!
//! None of them grows by copying itself: slots are in pages (`paged_slab`), and hash tables consist
//! of many small ones (`sharded_table`). So a change never takes long because a table is full, and
//! no memory is reserved for twice the content.

pub(crate) mod file_sets;
pub(crate) mod paged_slab;
pub(crate) mod posting_list;
pub(crate) mod ref_counted_set;
pub(crate) mod sharded_table;
pub(crate) mod texts;
