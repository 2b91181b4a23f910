//! Folders as files: safe paths, the manifest, and the plan of a download.

pub mod manifest;
pub mod path;
pub mod plan;
