//! Reading what is in memory already, without ever waiting for a disk.

use std::fs::File;

/// Fills `buf` from this offset if all of that is in memory; false: it is not, or the system cannot tell.
#[cfg(target_os = "linux")]
pub(crate) fn read(file: &File, offset: u64, buf: &mut [u8]) -> bool {
    use std::os::unix::fs::FileExt as _;

    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let len = buf.len();
    match preadv2(
        file,
        &mut [std::io::IoSliceMut::new(buf)],
        offset,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(read) => read == len,
        // A file system in memory has no use for the flag.
        Err(Errno::OPNOTSUPP) => is_in_memory(file) && file.read_exact_at(buf, offset).is_ok(),
        Err(_) => false,
    }
}

/// Whether the file is in memory and nowhere else.
#[cfg(target_os = "linux")]
#[allow(
    clippy::unnecessary_cast,
    reason = "`f_type` is of another type on other architectures"
)]
pub(crate) fn is_in_memory(file: &File) -> bool {
    /// `TMPFS_MAGIC` of statfs(2).
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|disk| disk.f_type as i64 == TMPFS)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read(_file: &File, _offset: u64, _buf: &mut [u8]) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_in_memory(_file: &File) -> bool {
    false
}
