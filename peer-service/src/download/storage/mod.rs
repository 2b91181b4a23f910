//! A download on disk: its target, part file, resume state, and its final name.

pub(crate) mod collection_tree;
pub(crate) mod finalize;
mod merge;
pub(crate) mod part_file;
pub(crate) mod persisted;
pub(crate) mod resume_state;
pub(crate) mod target;
