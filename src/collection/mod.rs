//! Folders as files: safe paths, the manifest, and the download plan.

pub mod limits;
pub mod manifest;
pub mod path;
pub mod plan;
