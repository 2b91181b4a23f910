//! The target of a check, and the events that it reports.

use std::path::PathBuf;

use potluck_core::{FileId, Problem};

/// The target of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckTarget {
    /// All shared items.
    All,
    /// The items at or below this path.
    Path(PathBuf),
}

/// Progress and results of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEvent {
    /// Progress. Byte counts are sums over all targets.
    Progress {
        /// The file that is being hashed.
        path: PathBuf,
        /// Bytes hashed so far.
        done: u64,
        /// Bytes to hash in total.
        total: u64,
    },
    /// A file is damaged or cannot be read.
    Bad {
        /// The file.
        path: PathBuf,
        /// The id under which it was shared.
        id: FileId,
        /// The reason.
        problem: Problem,
    },
    /// A target is not shared.
    Failed {
        /// The target.
        path: PathBuf,
        /// The reason.
        problem: Problem,
    },
    /// The check is complete.
    Done {
        /// Number of files hashed.
        files: u64,
        /// Number of bytes hashed.
        bytes: u64,
        /// Number of files that are damaged or cannot be read.
        bad: u64,
    },
}
