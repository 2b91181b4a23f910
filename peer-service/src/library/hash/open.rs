//! Opens files for hashing. Opening never blocks on a pipe and never accepts anything but a regular
//! file.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use potluck_core::Problem;
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

use crate::{
    catalog::stamp::{Stamp, stamp_of},
    library::{
        problems::{changed_while_hashing, not_a_regular_file, unreadable},
        scan::snapshot::FileStat,
    },
};

/// The base of relative paths: an open folder, which shortens path lookups, or the current
/// directory.
#[derive(Debug, Default)]
pub(crate) struct BaseFolder {
    path: PathBuf,
    folder: Option<OwnedFd>,
}

impl BaseFolder {
    /// A base at this folder.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub(crate) fn at(path: &Path) -> Result<Self, Problem> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| unreadable(&error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            folder: Some(folder),
        })
    }

    /// The path below the base.
    pub(crate) fn join(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// Opens a path of any kind for reading. Never blocks on a pipe. Follows a link only if
    /// `follow_link`.
    pub(crate) fn open_any(&self, path: &Path, follow_link: bool) -> Result<File, Errno> {
        open_in(self.fd(), path, follow_link)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.folder.as_ref().map_or(CWD, AsFd::as_fd)
    }

    /// Opens a regular file for reading. Never blocks: a pipe is refused.
    pub(crate) fn open_regular(&self, path: &Path) -> Result<(File, Stamp), Problem> {
        let file = self.open_any(path, true);
        let file = file.map_err(|error| unreadable(&error.into()))?;
        let metadata = file.metadata().map_err(|error| unreadable(&error))?;
        match metadata.is_file() {
            true => Ok((file, stamp_of(&metadata))),
            false => Err(not_a_regular_file(metadata.file_type())),
        }
    }
}

/// Opens files one after the other. Consecutive files are mostly in one folder; they are opened
/// relative to that folder's handle.
#[derive(Debug)]
pub(crate) struct FolderOpener<'b, 'f> {
    base: &'b BaseFolder,
    folder: &'f [u8],
    open: Option<OwnedFd>,
}

impl<'b, 'f> FolderOpener<'b, 'f> {
    pub(crate) const fn new(base: &'b BaseFolder) -> Self {
        Self {
            base,
            folder: b"",
            open: None,
        }
    }

    /// Like [`BaseFolder::open_any`].
    pub(crate) fn open_any(&mut self, path: &'f Path, follow_link: bool) -> Result<File, Errno> {
        let bytes = path.as_os_str().as_bytes();
        let (folder, name) = match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&bytes[..at.max(1)], &bytes[at + 1..]),
            None => (&b"."[..], bytes),
        };
        if folder != self.folder {
            // The folder's handle pays off only from the second file on.
            (self.folder, self.open) = (folder, None);
            return self.base.open_any(path, follow_link);
        }
        if self.open.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = Path::new(OsStr::from_bytes(folder));
            self.open = Some(rustix::fs::openat(self.base.fd(), folder, flags, Mode::empty())?);
        }
        let folder = self.open.as_ref().map_or_else(|| self.base.fd(), AsFd::as_fd);
        open_in(folder, Path::new(OsStr::from_bytes(name)), follow_link)
    }

    /// Opens a file that was listed as a regular file, and calls `stat`. A link that replaced it is
    /// not followed.
    pub(crate) fn open_listed(&mut self, path: &'f Path) -> Result<(File, FileStat), Problem> {
        let file = self.open_any(path, false).map_err(|error| match error {
            Errno::LOOP => changed_while_hashing(),
            _ => unreadable(&error.into()),
        })?;
        let metadata = file.metadata().map_err(|error| unreadable(&error))?;
        match metadata.is_file() {
            true => Ok((file, FileStat::from_metadata(&metadata))),
            false => Err(changed_while_hashing()),
        }
    }
}

fn open_in(folder: BorrowedFd<'_>, path: &Path, follow_link: bool) -> Result<File, Errno> {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow_link);
    rustix::fs::openat(folder, path, flags, Mode::empty()).map(File::from)
}

/// Opens a regular file for reading. Never blocks: a pipe is refused.
pub(crate) fn open_regular(path: &Path) -> Result<(File, Stamp), Problem> {
    BaseFolder::default().open_regular(path)
}

#[cfg(test)]
mod tests {
    use potluck_core::Reason;

    use super::*;

    #[test]
    fn a_path_that_is_no_longer_a_file_is_refused_as_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&path, "1").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let (base, folder) = (BaseFolder::default(), dir.path().to_owned());
        let mut opener = FolderOpener::new(&base);
        // The second time relative to its folder.
        for _ in 0..2 {
            assert!(opener.open_listed(&path).is_ok());
        }
        for gone in [&link, &folder] {
            assert_eq!(opener.open_listed(gone).unwrap_err().reason, Reason::FileChanged);
        }
    }

    #[test]
    fn a_pipe_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let status = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success());
        assert_eq!(open_regular(&path).unwrap_err().reason, Reason::UnsafePath);
    }
}
