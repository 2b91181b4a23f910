//! The part of a file's `stat` that shows a change.

use std::{fs::Metadata, os::unix::fs::MetadataExt as _};

/// A file's `stat` data; any change of its bytes changes at least one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of its bytes, in nanoseconds since 1970. The owner can set it.
    pub mtime: i64,
    /// The inode number.
    pub inode: u64,
    /// Time of the last change of bytes or metadata, in nanoseconds since 1970. No program can set
    /// it.
    pub ctime: i64,
}

/// The stamp from a file's `stat`.
pub fn stamp_of(metadata: &Metadata) -> Stamp {
    let nanos =
        |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Stamp {
        size: metadata.size(),
        mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
    }
}
