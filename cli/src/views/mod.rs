//! Output shared by several commands: domain values as tables, text and JSON.

pub(crate) mod id_matches;
pub(crate) mod indexed_files;
pub(crate) mod library_items;
pub(crate) mod omissions;
pub(crate) mod peers;
pub(crate) mod status;
pub(crate) mod transfers;
