//! Problems with paths that cannot be shared or served, which several modules report.

use std::{
    fs::FileType,
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use potluck_core::{FileId, Problem, Reason, problem::RAISE_OPEN_FILES};

/// Maximum number of problems reported for one folder: enough to see the cause, few enough to read.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// A path that cannot be shared, and the reason.
pub type Refused = (PathBuf, Problem);

/// The refusal of a share that failed for one reason.
pub(crate) fn single_refusal(path: &Path, problem: Problem) -> Vec<Refused> {
    vec![(path.to_owned(), problem)]
}

/// Whether the error means that the path does not exist: it, or a folder above it, was removed or
/// replaced.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The problem with a path that cannot be read.
pub(crate) fn unreadable(error: &io::Error) -> Problem {
    match error.kind() {
        _ if is_gone(error) => Problem::new(Reason::NotFound, "there is no such file or folder"),
        io::ErrorKind::PermissionDenied => Problem::new(
            Reason::PermissionDenied,
            "no permission to read it: give this user access to it",
        ),
        _ if Reason::of_exhaustion(error) == Some(Reason::TooManyOpenFiles) => Problem::new(
            Reason::TooManyOpenFiles,
            format!("it cannot be opened: {RAISE_OPEN_FILES}"),
        ),
        _ => Problem::new(Reason::Internal, format!("it cannot be read: {error}")),
    }
}

/// The problem with a path that is neither file nor folder.
pub(crate) fn not_a_regular_file(file_type: FileType) -> Problem {
    let kind = match () {
        () if file_type.is_fifo() => "a pipe",
        () if file_type.is_socket() => "a socket",
        () if file_type.is_block_device() || file_type.is_char_device() => "a device",
        () => "not a regular file",
    };
    Problem::new(
        Reason::UnsafePath,
        format!("it is {kind}: only files, folders and links can be shared"),
    )
}

/// The problem with a file that is being written to.
pub(crate) fn changed_while_hashing() -> Problem {
    Problem::new(
        Reason::FileChanged,
        "it changed while it was being hashed: share it again when nothing writes to it",
    )
}

/// The problem with a share that was cancelled.
pub(crate) fn share_cancelled() -> Problem {
    Problem::new(Reason::Cancelled, "sharing was cancelled")
}

/// The problem with a shared file whose copies all changed.
pub(crate) fn file_changed(id: &FileId) -> Problem {
    Problem::new(
        Reason::FileChanged,
        format!("the file shared as {id} changed since it was hashed"),
    )
}

/// Logs that a shared path is offline.
pub(crate) fn warn_offline(path: &Path) {
    let path = path.display();
    tracing::warn!(
        "{path} is offline: it is shared again once it is back; `potluck unshare {path}` removes it"
    );
}
