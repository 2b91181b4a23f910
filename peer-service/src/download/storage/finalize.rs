//! Gives a complete and verified download its final name, without ever overwriting anything.
//!
//! Invariant: the data is flushed before the rename, and the rename is flushed before this returns.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
    thread,
};

use potluck_core::{Problem, Reason, Sha256, identity::hash};
use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use crate::{
    download::storage::{
        merge,
        part_file::{PartFile, PartStorage},
        target,
    },
    fs::{blocking::continue_unless, durable},
    library::{Stamp, stamp_of, stamps_at},
};

/// The stamps of a finished download: one for a plain file, or one for each entry of a manifest;
/// none if the entries were moved into a folder that existed.
/// They describe the verified content, so that any later change shows. An error if the file changed
/// during finalizing and may differ from the verified content.
pub(crate) type FinalStamps = Result<Vec<Stamp>, Problem>;

/// Completes the part, checks the claimed SHA-256 if there is one, flushes the data, and renames
/// the part to the final name. Some entries of a collection are moved into its folder if that
/// exists; nothing in it is replaced.
///
/// # Errors
/// The downloaded data is kept.
///
/// - [`Reason::VerificationFailed`] if the SHA-256 differs from the claim; nothing gets the name.
/// - [`Reason::TargetExists`] if something else appeared at the target.
/// - [`Reason::Cancelled`] if `stop` was cancelled before the rename.
/// - [`Reason::FileChanged`] if written data is missing.
/// - [`Reason::DiskFull`] and [`Reason::TargetNotWritable`].
pub(crate) fn finalize(
    part: &PartFile,
    claim: Option<Sha256>,
    stop: &CancellationToken,
) -> Result<FinalStamps, Problem> {
    let target = part.target();
    let failed = |error: io::Error| target::target_problem(&target.part(), &error);
    let stamp = || match part.storage() {
        PartStorage::File(file) => file.metadata().ok().map(|metadata| stamp_of(&metadata)),
        PartStorage::Tree(_) => None,
    };
    let before = stamp();
    match part.storage() {
        PartStorage::Tree(tree) => tree.finish(stop).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => target::stopped(),
            ErrorKind::AlreadyExists => Problem::new(
                Reason::TargetExists,
                format!("{}: {error}; move it away and resume", target.part().display()),
            ),
            ErrorKind::NotFound | ErrorKind::UnexpectedEof => part_truncated(&target.part()),
            _ => failed(error),
        })?,
        PartStorage::File(file) => {
            if file.metadata().map_err(failed)?.len() != part.plan().total() {
                return Err(part_truncated(&target.part()));
            }
            if let Some(claim) = claim {
                check_claim(file, claim, &target.path, stop)?;
            }
        }
    }
    let (flushed, listed) = thread::scope(|scope| {
        // Runs concurrently with the flush, which takes longer than reading the metadata of many
        // files.
        let manifest = match part.storage() {
            PartStorage::Tree(tree) => Some(tree.manifest()),
            PartStorage::File(_) => None,
        };
        let listing =
            manifest.map(|manifest| scope.spawn(move || stamps_at(&target.part(), manifest)));
        (part.sync(), listing.map(thread::ScopedJoinHandle::join))
    });
    flushed.map_err(failed)?;
    // Ensures that the path still holds everything that was written.
    match &listed {
        Some(Ok(Err(problem))) if problem.reason != Reason::FileChanged => {
            return Err(problem.clone());
        }
        Some(Ok(Err(_))) => return Err(part_truncated(&target.part())),
        _ if !part.is_at_path() => return Err(part_truncated(&target.part())),
        _ => {}
    }
    if let PartStorage::Tree(tree) = part.storage()
        && (tree.has_other_entries() || !tree.is_whole_collection() && target.path.is_dir())
    {
        merge::move_into_target(part, tree, stop)?;
        // Nobody needs the stamps of an incomplete collection.
        return Ok(Ok(Vec::new()));
    }
    if matches!(part.storage(), PartStorage::Tree(_)) {
        // An empty folder gives way. Fails if it is anything else.
        let _ = fs::remove_dir(&target.path);
    }
    rename(&target.part(), &target.path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => target::target_exists(&target.path),
        _ => target::target_problem(&target.path, &error),
    })?;
    // From the open handle: the name may by now belong to another file.
    let after =
        stamp().filter(|after| before.is_some_and(|before| is_only_renamed(&before, after)));
    let stamp_of_file = || {
        let changed = "another program changed the file while it was renamed";
        let stamp = after.ok_or_else(|| Problem::new(Reason::FileChanged, changed))?;
        Ok(vec![stamp])
    };
    let stamps = listed.and_then(Result::ok).unwrap_or_else(stamp_of_file);
    durable::sync_folder(target.parent())
        .map_err(|error| target::target_problem(target.parent(), &error))?;
    // A leftover resume state without data is harmless, so failing to remove it is not an error.
    if let Err(error) = fs::remove_file(target.state()) {
        tracing::debug!(
            path = %target.state().display(), %error,
            "could not remove the resume state"
        );
    }
    Ok(stamps)
}

/// The error for a part that lost written data.
fn part_truncated(part: &Path) -> Problem {
    Problem::new(
        Reason::FileChanged,
        format!(
            "{}: the part file was truncated or replaced while downloading; resume to verify it \
             again",
            part.display()
        ),
    )
}

/// Whether only the name changed: a rename affects only `ctime`.
fn is_only_renamed(before: &Stamp, after: &Stamp) -> bool {
    let ctime = after.ctime;
    Stamp { ctime, ..*before } == *after
}

fn check_claim(
    file: &File,
    claim: Sha256,
    path: &Path,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let found = hash::sha256_file(file, &|_| continue_unless(stop)).map_err(|error| match error
        .kind()
    {
        ErrorKind::Interrupted => target::stopped(),
        _ => target::target_problem(path, &error),
    })?;
    match found == claim {
        true => Ok(()),
        false => Err(Problem::new(
            Reason::VerificationFailed,
            format!(
                "the downloaded file has the SHA-256 {found}, not the requested {claim}, so the \
                 claim was false; nothing was written to {}",
                path.display()
            ),
        )),
    }
}

/// Renames without overwriting.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_by_link(from, to),
        Err(error) => Err(error.into()),
    }
}

/// Renames without overwriting on file systems without `RENAME_NOREPLACE`: a hard link fails if the
/// name exists.
fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        // A folder has no hard links; renaming onto an existing folder succeeds only if that one is
        // empty, so nothing is lost.
        if fs::symlink_metadata(to).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        return fs::rename(from, to);
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        // The file system supports neither, so the check and the rename are not atomic.
        Err(_) if fs::symlink_metadata(to).is_ok() => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, time::Duration};

    use super::*;
    use crate::download::storage::part_file::tests::{downloaded_collection, open_file};

    /// Longer than the granularity of file timestamps.
    const TICK: Duration = Duration::from_millis(20);

    #[test]
    fn the_stamp_describes_the_verified_content_and_no_later_change() {
        let folder = tempfile::tempdir().unwrap();
        let (part, _) = open_file(folder.path(), 1000).unwrap();
        let path = part.target().path.clone();
        let stamp = finalize(&part, None, &CancellationToken::new()).unwrap();
        let renamed_stamp = stamp_of(&path.metadata().unwrap());
        assert_eq!(stamp, Ok(vec![renamed_stamp]), "after the rename");
        thread::sleep(TICK);
        part.file(0).unwrap().write_all_at(b"x", 0).unwrap();
        let written = stamp_of(&path.metadata().unwrap());
        assert!(!is_only_renamed(&renamed_stamp, &written));
        fs::rename(&path, folder.path().join("other")).unwrap();
        let renamed = stamp_of(&part.file(0).unwrap().metadata().unwrap());
        assert!(is_only_renamed(&written, &renamed));
    }

    #[test]
    fn a_write_right_after_the_rename_of_a_folder_shows_in_the_stamps() {
        let folder = tempfile::tempdir().unwrap();
        let part = downloaded_collection(folder.path());
        let path = part.target().path.clone();
        thread::sleep(TICK);
        let file = path.join("file");
        let writing = thread::spawn({
            let file = file.clone();
            move || {
                while fs::write(&file, "another").is_err() {}
            }
        });
        let stamps = finalize(&part, None, &CancellationToken::new()).unwrap().unwrap();
        writing.join().unwrap();
        let now = stamp_of(&file.metadata().unwrap());
        assert_eq!((now.size, now.inode), (stamps[0].size, stamps[0].inode));
        assert_ne!(now, stamps[0]);
    }

    #[test]
    fn a_removed_or_replaced_part_is_not_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let (part, _) = open_file(folder.path(), 1000).unwrap();
        let target = part.target().clone();
        fs::remove_file(target.part()).unwrap();
        let stop = CancellationToken::new();
        assert_eq!(
            finalize(&part, None, &stop).unwrap_err().reason,
            Reason::FileChanged
        );
        fs::write(target.part(), [8; 1000]).unwrap();
        assert_eq!(
            finalize(&part, None, &stop).unwrap_err().reason,
            Reason::FileChanged
        );
        assert!(!target.path.exists());
    }

    #[test]
    fn a_folder_that_lost_a_file_is_not_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let part = downloaded_collection(folder.path());
        let target = part.target().clone();
        fs::remove_file(target.part().join("file")).unwrap();
        let finished = finalize(&part, None, &CancellationToken::new());
        assert_eq!(finished.unwrap_err().reason, Reason::FileChanged);
        assert!(!target.path.exists());
    }
}
