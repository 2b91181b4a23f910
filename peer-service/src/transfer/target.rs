//! Where a download goes: the rules that turn what was asked for into one path, and the names of what lies beside it.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use potluck_core::{Problem, Reason, path::Label};

use super::resume::with_suffix;

/// A download's final path and its companions while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Where it will be.
    pub(crate) path: PathBuf,
}

impl Target {
    /// Decides the path.
    ///
    /// `target`: an absolute path; a folder that is there means inside it; `None` means inside `files`. `name` is what to call it inside
    /// a folder: it may come from the network and is made safe here.
    ///
    /// # Errors
    /// [`Reason::UnsafePath`] where `target` is relative or has `..` in it.
    pub(crate) fn resolve(target: Option<&Path>, name: &str, files: &Path) -> Result<Self, Problem> {
        let label = Label::sanitize(name);
        let Some(target) = target else {
            return Ok(Self { path: files.join(label.as_str()) });
        };
        check(target)?;
        let path = if target.is_dir() { target.join(label.as_str()) } else { target.to_owned() };
        Ok(Self { path })
    }

    /// Where bytes go until all are verified.
    pub(crate) fn part(&self) -> PathBuf {
        with_suffix(&self.path, ".part")
    }

    /// Where the resume state is.
    pub(crate) fn state(&self) -> PathBuf {
        with_suffix(&self.path, ".part.state")
    }

    /// Its folder.
    pub(crate) fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// Whether a target is a path that can be used as it stands.
///
/// # Errors
/// [`Reason::UnsafePath`].
pub(crate) fn check(target: &Path) -> Result<(), Problem> {
    let bad = |why: &str| {
        Problem::new(Reason::UnsafePath, format!("`{}` cannot be a target: {why}", target.display()))
            .field("target")
    };
    if !target.is_absolute() {
        return Err(bad("give an absolute path"));
    }
    if target.components().any(|part| part == Component::ParentDir) {
        return Err(bad("`..` is not allowed in it"));
    }
    if target.file_name().is_none() {
        return Err(bad("it names no file"));
    }
    Ok(())
}

/// What an error of the file system at a target means to the one who asked.
pub(crate) fn problem(path: &Path, error: &io::Error) -> Problem {
    let at = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem::new(
            Reason::DiskFull,
            format!("no room for {at}: make room on the disk, and it goes on by itself"),
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Problem::new(
            Reason::TargetNotWritable,
            format!("cannot write {at}: {error}; choose another target or change its permissions"),
        ),
        io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => Problem::new(
            Reason::TargetNotWritable,
            format!("cannot write {at}: its folder is not there; make it or choose another target"),
        ),
        io::ErrorKind::InvalidFilename => Problem::new(
            Reason::TargetNotWritable,
            format!("cannot write {at}: the name is too long here; give a target of your own"),
        ),
        io::ErrorKind::FileTooLarge => Problem::new(
            Reason::TargetNotWritable,
            format!("cannot write {at}: the file is larger than this file system or process may write"),
        ),
        _ => Problem::new(Reason::TargetNotWritable, format!("cannot write {at}: {error}")),
    }
}

/// What stands in the way of a download, and what to do about it.
pub(crate) fn exists(path: &Path) -> Problem {
    Problem::new(
        Reason::TargetExists,
        format!(
            "{} is there already and is something else: nothing was changed; choose another target or move it away",
            path.display()
        ),
    )
    .field("target")
}
