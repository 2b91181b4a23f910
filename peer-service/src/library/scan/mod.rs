//! The state of the disk: paths, walks of folders, their snapshots, and comparisons by `stat`.

pub(crate) mod changed_entries;
pub(crate) mod manifest_stamps;
pub(crate) mod omissions;
pub(crate) mod resolve;
pub(crate) mod rules;
pub(crate) mod slow_path_warning;
pub(crate) mod snapshot;
pub(crate) mod walk;
