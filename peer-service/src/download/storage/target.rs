//! Resolves a request to one target path, and names the companion files next to it.
//!
//! Invariant: a name from the network names one visible file directly inside the target folder.

use std::{
    io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use potluck_core::{Problem, Reason, collection::path::Label, problem::RAISE_OPEN_FILES};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::download::storage::resume_state::with_suffix;

/// Maximum file name that leaves room for `.part.state.new` within the usual limit of 255, in
/// bytes.
const MAX_PLAIN_NAME: usize = 240;

/// Length to which a longer name is cut, so that a hash of 16 digits also fits, in bytes.
const MAX_TRUNCATED_NAME: usize = 200;

/// Interval between attempts while the disk is full or file descriptors are exhausted.
pub(crate) const DISK_RETRY: Duration = Duration::from_secs(3);

/// The final path of a download; also names the companion files while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DownloadTarget {
    /// The final path.
    pub(crate) path: PathBuf,
}

impl DownloadTarget {
    /// Resolves the path.
    ///
    /// `target` is an absolute path; an existing folder means a path inside it; `None` means inside
    /// `files`. `name` is the name inside a folder; it may come from the network and is sanitized
    /// here.
    ///
    /// # Errors
    /// [`Reason::UnsafePath`] if `target` is relative or contains `..`.
    pub(crate) fn resolve(
        target: Option<&Path>,
        name: &str,
        files: &Path,
    ) -> Result<Self, Problem> {
        let label = safe_top_level_name(name);
        let Some(target) = target else {
            return Ok(Self {
                path: files.join(&label),
            });
        };
        check_target(target)?;
        let path = if target.is_dir() {
            target.join(&label)
        } else {
            target.to_owned()
        };
        Ok(Self { path })
    }

    /// The part file or folder, which holds the data until all of it is verified.
    pub(crate) fn part(&self) -> PathBuf {
        self.companion(".part")
    }

    /// The file of the resume state.
    pub(crate) fn state(&self) -> PathBuf {
        self.companion(".part.state")
    }

    /// The path with a suffix. A name too long for the suffix is cut and completed with its hash,
    /// so that any peer with the same target finds the same companion files.
    fn companion(&self, suffix: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        if name.len() <= MAX_PLAIN_NAME {
            return with_suffix(&self.path, suffix);
        }
        let hash = hex::encode(&Sha256::digest(name.as_encoded_bytes())[..8]);
        let text = name.to_string_lossy();
        let cut = (0..=MAX_TRUNCATED_NAME)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.path
            .with_file_name(format!("{}~{hash}{suffix}", &text[..cut]))
    }

    /// The folder that contains the target.
    pub(crate) fn parent(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new("/"))
    }
}

/// Makes a name from the network safe for use at the top of a folder. Programs read some files with
/// a leading dot automatically (`.bash_profile` in a home folder) and take names with a leading
/// dash for options (`rm *` with `-rf`), so `_` replaces that character. A user who wants such a
/// name can give it as the target.
fn safe_top_level_name(name: &str) -> String {
    let label = String::from(Label::sanitize(name));
    match label.strip_prefix(['.', '-']) {
        Some(rest) => format!("_{rest}"),
        None => label,
    }
}

/// Checks that a target can be used as a path.
///
/// # Errors
/// [`Reason::UnsafePath`] if it is relative, contains `..`, or names no file.
pub(crate) fn check_target(target: &Path) -> Result<(), Problem> {
    let bad = |why: &str| {
        Problem::new(
            Reason::UnsafePath,
            format!("`{}` cannot be a target: {why}", target.display()),
        )
        .field("target")
    };
    if !target.is_absolute() {
        return Err(bad("it is not absolute"));
    }
    if target.components().any(|part| part == Component::ParentDir) {
        return Err(bad("it contains `..`"));
    }
    if target.file_name().is_none() {
        return Err(bad("it names no file"));
    }
    Ok(())
}

/// The problem of work at a target that was cancelled.
pub(crate) fn stopped() -> Problem {
    Problem::new(Reason::Cancelled, "stopped; the downloaded data is kept")
}

/// Translates a file system error at a target into a problem for the user.
pub(crate) fn target_problem(path: &Path, error: &io::Error) -> Problem {
    let state = error.get_ref();
    if let Some(AtEntry { path: entry, error }) = state.and_then(|state| state.downcast_ref()) {
        return target_problem(&path.join(entry), error);
    }
    if let Some(clash) = state.and_then(|state| state.downcast_ref::<NameClash>()) {
        return clash.problem(path);
    }
    let at = path.display();
    let unwritable =
        |why: String| Problem::new(Reason::TargetNotWritable, format!("cannot write {at}: {why}"));
    match Reason::of_exhaustion(error) {
        Some(Reason::DiskFull) => return Problem::new(Reason::DiskFull, no_room(path, error)),
        Some(reason) => {
            let message = format!(
                "cannot open {at}: {RAISE_OPEN_FILES}; the download then continues by itself"
            );
            return Problem::new(reason, message);
        }
        None => {}
    }
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => unwritable(
            "the file system is mounted read-only; choose another target or mount it writable"
                .into(),
        ),
        io::ErrorKind::PermissionDenied => unwritable(format!(
            "{error}; choose another target or change its permissions"
        )),
        _ if is_name_error(path, error) => name_rejected(path, error),
        io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => {
            unwritable("its folder does not exist; create it or choose another target".into())
        }
        _ => unwritable(error.to_string()),
    }
}

/// The message for a file that cannot grow.
fn no_room(path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::QuotaExceeded => {
            "the quota on this file system is exhausted: delete some files; the download then \
             continues by itself"
        }
        // A limit of the process or of the file system, such as 4 GiB on FAT.
        io::ErrorKind::FileTooLarge => {
            "the file exceeds a size limit: raise the limit (`ulimit -f`), or choose a target on a \
             file system that supports larger files"
        }
        _ => "make room on the disk; the download then continues by itself",
    };
    format!("no room for {}: {advice}", path.display())
}

/// Characters reserved by DOS and Windows; file systems designed for them reject names with these.
pub(crate) const RESERVED: [char; 7] = [':', '*', '?', '"', '<', '>', '|'];

/// Whether the error means that the file system rejects the name: too long, or with forbidden
/// characters.
pub(crate) fn is_name_error(path: &Path, error: &io::Error) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_odd = || name.contains(RESERVED) || name.ends_with(['.', ' ']) || !name.is_ascii();
    match Errno::from_io_error(error) {
        Some(Errno::NAMETOOLONG | Errno::ILSEQ) => true,
        // The user-space driver of exFAT reports a rejected name as not found.
        Some(Errno::INVAL | Errno::NOENT) => is_odd() && path.parent().is_some_and(Path::is_dir),
        _ => false,
    }
}

/// An error at an entry of a collection: keeps the system's error and adds the path.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub(crate) struct AtEntry {
    path: String,
    error: io::Error,
}

impl AtEntry {
    /// Wraps an error with this path of the collection; keeps its kind.
    pub(crate) fn wrap(path: &str, error: io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            Self {
                path: path.to_owned(),
                error,
            },
        )
    }
}

/// Two entries of a collection that the target's file system equates.
#[derive(Debug, thiserror::Error)]
#[error("`{first}` and `{second}` are the same name on this file system")]
pub(crate) struct NameClash {
    /// The entry that was created first.
    pub(crate) first: String,
    /// The entry that collided with it.
    pub(crate) second: String,
}

impl NameClash {
    /// The problem for the user; `root` is the target folder.
    pub(crate) fn problem(&self, root: &Path) -> Problem {
        let Self { first, second } = self;
        Problem::new(
            Reason::TargetUnsuitable,
            format!(
                "the file system at {} treats `{}` and `{}` as the same name, so one would \
                 overwrite the other; choose a target on another file system",
                root.display(),
                first.escape_debug(),
                second.escape_debug()
            ),
        )
        .field("target")
    }
}

/// The problem for a name that the file system rejects.
pub(crate) fn name_rejected(path: &Path, error: &io::Error) -> Problem {
    let at = path.display();
    let message = match Errno::from_io_error(error) {
        Some(Errno::NAMETOOLONG) => {
            format!("{at}: the name or the path is too long for this file system")
        }
        _ => format!("{at}: this file system rejects the name ({error})"),
    };
    Problem::new(
        Reason::TargetUnsuitable,
        format!(
            "cannot write {message}; choose a target on another file system or with another name"
        ),
    )
}

/// The problem for a target that exists and differs from the content.
pub(crate) fn target_exists(path: &Path) -> Problem {
    Problem::new(
        Reason::TargetExists,
        format!(
            "{} exists and has other content: nothing was changed; choose another target or move \
             it away",
            path.display()
        ),
    )
    .field("target")
}

/// The problem for a target that exists and cannot be read for comparison.
pub(crate) fn target_unreadable(path: &Path, error: &io::Error) -> Problem {
    // A file too large to hash is not a lack of space.
    if error.kind() != io::ErrorKind::FileTooLarge && Reason::of_exhaustion(error).is_some() {
        return target_problem(path, error);
    }
    Problem::new(
        Reason::TargetExists,
        format!(
            "{} exists and cannot be read to compare its content ({error}): nothing was changed; \
             make it readable, choose another target or move it away",
            path.display()
        ),
    )
    .field("target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_the_network_stays_in_its_folder() {
        let files = Path::new("/home/files");
        for name in [
            "../../etc/passwd",
            "/etc/passwd",
            "..",
            "a/b",
            "",
            "\u{0}x",
            ".part",
        ] {
            let target = DownloadTarget::resolve(None, name, files).unwrap();
            assert_eq!(target.parent(), files, "{name:?} gave {target:?}");
        }
    }

    #[test]
    fn exhausted_file_descriptors_are_not_reported_as_a_permission_problem() {
        let path = Path::new("/f/a");
        let error = io::Error::from(rustix::io::Errno::MFILE);
        for problem in [target_problem(path, &error), target_unreadable(path, &error)] {
            assert_eq!(problem.reason, Reason::TooManyOpenFiles);
            assert!(problem.message.contains("ulimit -n"), "{problem}");
        }
    }

    #[test]
    fn a_name_from_the_network_cannot_be_a_hidden_file_or_an_option() {
        let folder = tempfile::tempdir().unwrap();
        for (name, expected) in [
            (".bash_profile", "_bash_profile"),
            ("-rf", "_rf"),
            (".config", "_config"),
            ("--", "_-"),
            ("...", "_.."),
            ("a/.profile", "_profile"),
            ("a.b-c", "a.b-c"),
        ] {
            for target in [None, Some(folder.path())] {
                let target = DownloadTarget::resolve(target, name, folder.path()).unwrap();
                assert_eq!(target.path, folder.path().join(expected), "{name}");
            }
        }
        let requested = folder.path().join(".bash_profile");
        let target = DownloadTarget::resolve(Some(&requested), "x", folder.path()).unwrap();
        assert_eq!(target.path, requested, "the owner chose it");
    }

    #[test]
    fn a_folder_as_target_means_inside_it() {
        let folder = tempfile::tempdir().unwrap();
        let inside = DownloadTarget::resolve(Some(folder.path()), "a", Path::new("/f")).unwrap();
        assert_eq!(inside.path, folder.path().join("a"));
        let new = folder.path().join("new");
        assert_eq!(
            DownloadTarget::resolve(Some(&new), "a", Path::new("/f"))
                .unwrap()
                .path,
            new
        );
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        for bad in ["relative/file", "/a/../b", "/", ""] {
            let problem =
                DownloadTarget::resolve(Some(Path::new(bad)), "a", Path::new("/f")).unwrap_err();
            assert_eq!(problem.reason, Reason::UnsafePath, "{bad}");
        }
    }

    #[test]
    fn companions_of_the_longest_names_fit() {
        for letter in ["a", "é", "漢"] {
            let name: String = letter.repeat(255 / letter.len());
            let target = DownloadTarget {
                path: Path::new("/f").join(&name),
            };
            let other = DownloadTarget {
                path: Path::new("/f").join(format!("{}{}", &name[letter.len()..], letter)),
            };
            for path in [target.part(), target.state()] {
                assert!(path.file_name().unwrap().len() + ".new".len() <= 255);
            }
            assert_eq!(target.part(), other.part(), "companions depend only on the name");
            assert_ne!(target.part(), target.state());
        }
    }
}
