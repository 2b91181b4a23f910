//! Types of command-line arguments.

pub(crate) mod file_query;
pub(crate) mod folder_options;
pub(crate) mod id;
pub(crate) mod limits;
pub(crate) mod seed;
pub(crate) mod transfer_target;
