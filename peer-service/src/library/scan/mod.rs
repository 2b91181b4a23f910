//! The state of the disk: walks of folders, their snapshots, and the watch on the files folder.

pub(crate) mod files_folder;
pub(crate) mod slow_path_warning;
pub(crate) mod snapshot;
pub(crate) mod walk;
