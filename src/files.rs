//! Opens regular files only. A path may hold something else: a pipe without a writer blocks the
//! opener, and opening a device may have side effects.
//!
//! Invariant: every returned file is a regular file, and opening it did not block.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file for reading. Follows symbolic links.
///
/// # Errors
/// Those of the system; [`ErrorKind::InvalidInput`] if the path is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    open(path, OFlags::empty())
}

/// Opens one of the program's own files for reading. Does not follow a symbolic link.
///
/// # Errors
/// Those of [`open_regular`]; [`ErrorKind::InvalidInput`] also for a symbolic link.
pub fn open_own(path: &Path) -> io::Result<File> {
    open(path, OFlags::NOFOLLOW).map_err(|error| match error.raw_os_error() {
        // `ELOOP` means a symbolic link on every system.
        Some(errno) if errno == rustix::io::Errno::LOOP.raw_os_error() => no_file("a link"),
        _ => error,
    })
}

/// Reads all of one of the program's own files, of at most `max` bytes.
///
/// # Errors
/// Those of [`open_own`]; [`ErrorKind::FileTooLarge`] for a longer file.
pub fn read_own(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_own(path)?
        .take(max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max {
        true => Err(ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    match () {
        () if kind.is_file() => Ok(file),
        () if kind.is_dir() => Err(no_file("a folder")),
        () if kind.is_fifo() => Err(no_file("a pipe")),
        () => Err(no_file("a device")),
    }
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidInput,
        format!("{what} exists but is not a regular file"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_opening_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        symlink(at("file"), at("link")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_own(&at("file"), 5).unwrap(), b"12345");
        assert_eq!(
            read_own(&at("file"), 4).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        assert!(open_regular(&at("link")).is_ok());
        for name in ["folder", "pipe", "link"] {
            let error = open_own(&at(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        }
        assert!(open_own(&at("socket")).is_err());
        assert!(open_regular(Path::new("/dev/null")).is_err());
    }
}
