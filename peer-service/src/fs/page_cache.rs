//! Reads from the page cache, without ever waiting for a disk.
//!
//! On a network file system, even `stat` may block, possibly forever. Therefore [`never_waits`] is
//! called on a blocking thread after a file is opened, and async threads read or stat only files
//! for which it returned true.

use std::fs::File;

/// Whether reads of this file can be limited to cached data, or the file is entirely in memory. May
/// block.
#[cfg(target_os = "linux")]
pub(crate) fn never_waits(file: &File) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let mut byte = [0];
    let read = preadv2(
        file,
        &mut [std::io::IoSliceMut::new(&mut byte)],
        0,
        ReadWriteFlags::NOWAIT,
    );
    read != Err(Errno::OPNOTSUPP) || is_in_memory(file)
}

/// Fills `buf` from `offset` if all of that is in memory; otherwise returns false. Only for a file
/// that [`never_waits`].
#[cfg(target_os = "linux")]
pub(crate) fn read_cached(file: &File, offset: u64, buf: &mut [u8]) -> bool {
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
        // A file system in memory does not support the flag, and needs no disk.
        Err(Errno::OPNOTSUPP) => file.read_exact_at(buf, offset).is_ok(),
        Err(_) => false,
    }
}

/// Whether the file is on a file system that is entirely in memory.
#[cfg(target_os = "linux")]
#[allow(
    clippy::unnecessary_cast,
    reason = "`f_type` is of another type on other architectures"
)]
pub(crate) fn is_in_memory(file: &File) -> bool {
    /// `TMPFS_MAGIC` from statfs(2).
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|disk| disk.f_type as i64 == TMPFS)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn never_waits(_file: &File) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn read_cached(_file: &File, _offset: u64, _buf: &mut [u8]) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_in_memory(_file: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_in_memory_is_read_without_waiting() {
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(file);
        std::io::Write::write_all(&mut file, b"content").unwrap();
        assert!(never_waits(&file));
        let mut bytes = [0; 4];
        assert!(read_cached(&file, 3, &mut bytes));
        assert_eq!(&bytes, b"tent");
        assert!(!read_cached(&file, 4, &mut bytes), "the file is shorter");
    }
}
