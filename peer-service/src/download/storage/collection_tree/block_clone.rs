//! Copies a file by sharing its blocks.

use std::{io, os::fd::AsFd};

/// Makes the empty file `copy` share all blocks of `source`.
#[cfg(target_os = "linux")]
pub(crate) fn clone_file(source: impl AsFd, copy: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(copy, source)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn clone_file(_source: impl AsFd, _copy: impl AsFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
