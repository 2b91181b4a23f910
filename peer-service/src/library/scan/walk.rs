//! Walks a folder and lists everything that a collection would hold and everything that it cannot.
//!
//! Links are never followed. Invariant: a walk returns either all entries or at least one problem;
//! it never leaves an entry out silently.

use std::{
    fs::{FileType, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use potluck_core::{
    Problem, Reason,
    collection::{limits::MAX_ENTRIES, manifest::check_link, path::RelPath},
    problem::RAISE_OPEN_FILES,
};

use crate::{
    file_system::may_lack_modes,
    fs::parallel::run_parallel,
    library::scan::snapshot::{EntryKind, Snapshot},
    store::Stamp,
};

/// Maximum number of problems reported for one folder: enough to see the cause, few enough to read.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// A path that cannot be shared, and the reason.
pub(crate) type Refused = (PathBuf, Problem);

/// The stamp from a file's `stat`.
pub fn stamp_of(metadata: &Metadata) -> Stamp {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Stamp {
        size: metadata.size(),
        mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
    }
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
pub(crate) fn not_a_regular_file(kind: std::fs::FileType) -> Problem {
    let entry_kind = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    };
    Problem::new(
        Reason::UnsafePath,
        format!("it is {entry_kind}: only files, folders and links can be shared"),
    )
}

/// Lists everything in a folder at any depth, sorted by path as in a manifest, on this number of
/// threads. Does not call `stat` on the files.
///
/// # Errors
/// Everything that cannot be shared, up to [`MAX_PROBLEMS`].
pub(crate) fn walk(root: &Path, threads: usize) -> Result<Snapshot, Vec<Refused>> {
    let mut snapshot = Snapshot::default();
    let mut problems = Vec::new();
    // The folders of one depth; those inside them follow in the next round.
    let mut level = vec![String::new()];
    while !level.is_empty() && problems.len() < MAX_PROBLEMS {
        level.sort_unstable();
        let each = level.len().div_ceil(threads.max(1));
        let walks = run_parallel(level.chunks(each), |folders| vec![Walk::of(root, folders)]);
        level = Vec::new();
        for walk in walks {
            level.extend(walk.below);
            problems.extend(walk.problems);
            // Each folder yields at least one entry: its content, or itself if it is empty.
            if !snapshot.append(walk.found) || snapshot.len() + level.len() > MAX_ENTRIES {
                let message = format!("it holds more than {MAX_ENTRIES} entries: share its parts");
                return Err(vec![(root.to_owned(), Problem::new(Reason::OutOfRange, message))]);
            }
        }
    }
    problems.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    problems.truncate(MAX_PROBLEMS);
    match problems.is_empty() {
        true => Ok(snapshot.sorted().on(may_lack_modes(root))),
        false => Err(problems),
    }
}

/// A walk through some folders, without their subfolders.
struct Walk<'a> {
    root: &'a Path,
    found: Snapshot,
    below: Vec<String>,
    problems: Vec<Refused>,
}

impl<'a> Walk<'a> {
    fn of(root: &'a Path, folders: &[String]) -> Self {
        let mut walk = Self {
            root,
            found: Snapshot::default(),
            below: Vec::new(),
            problems: Vec::new(),
        };
        for folder in folders {
            let first = walk.found.len();
            if let Err(error) = walk.folder(folder) {
                walk.problems.push((root.join(folder), unreadable(&error)));
            }
            // Sorted here, because a later stable sort merges sorted runs quickly.
            walk.found.sort_from(first);
            if walk.found.len() > MAX_ENTRIES || walk.problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        walk
    }

    /// Adds the entries of a folder.
    fn folder(&mut self, below: &str) -> io::Result<()> {
        let folder = self.root.join(below);
        let mut path = String::from(below);
        if !below.is_empty() {
            path.push('/');
        }
        let (names_at, mut is_empty) = (path.len(), true);
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            is_empty = false;
            path.truncate(names_at);
            let looked = match name.to_str() {
                None => Err(Problem::new(
                    Reason::InvalidName,
                    "its name is not UTF-8: rename it to share the folder",
                )),
                Some(name) => {
                    path.push_str(name);
                    inspect_entry(&folder, &path, kind)
                }
            };
            match looked {
                Ok(None) => self.below.push(path.clone()),
                Ok(Some(entry_kind)) => {
                    // The caller checks the number of entries.
                    if !self.found.push(&path, entry_kind) {
                        break;
                    }
                }
                Err(problem) => self.problems.push((folder.join(name), problem)),
            }
            if self.problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        if is_empty && !below.is_empty() {
            self.found.push(below, EntryKind::EmptyFolder);
        }
        Ok(())
    }
}

/// The kind of an entry; `None` for a folder. `path` is relative to the root of the walk.
fn inspect_entry(folder: &Path, path: &str, kind: FileType) -> Result<Option<EntryKind>, Problem> {
    let path = RelPath::parse(path).map_err(|error| {
        Problem::new(
            Reason::InvalidName,
            format!("{error}: rename it to share the folder"),
        )
    })?;
    let entry_kind = if kind.is_file() {
        Some(EntryKind::File(OnceLock::new()))
    } else if kind.is_dir() {
        None
    } else if kind.is_symlink() {
        let target = std::fs::read_link(folder.join(path.file_name())).map_err(|error| unreadable(&error))?;
        let target = target.into_os_string().into_string().map_err(|_| {
            Problem::new(
                Reason::InvalidName,
                "the link's target is not UTF-8: remove the link",
            )
        })?;
        // Uses the manifest's own rule here, so that every bad link is reported.
        check_link(path, &target).map_err(Problem::from)?;
        Some(EntryKind::Link(target.into()))
    } else {
        return Err(not_a_regular_file(kind));
    };
    Ok(entry_kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_sorted_and_folders_with_content_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["b/e", "b/f/g", "b-", "a", "a-"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink("x", root.join("b/c")).unwrap();
        for file in ["a.txt", "b.txt", "b/f.txt", "b/f0", "b/f/g/h", "c"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        let mut snapshot = walk(root, 2).unwrap();
        let paths: Vec<_> = snapshot.iter().map(|(path, _)| path).collect();
        let sorted = [
            "a", "a-", "a.txt", "b-", "b.txt", "b/c", "b/e", "b/f.txt", "b/f/g/h", "b/f0", "c",
        ];
        assert_eq!(paths, sorted);
        assert!(snapshot.files().all(|(_, stat)| stat.is_none()));
        snapshot.stat_all(root, 1).unwrap();
        assert!(snapshot.files().all(|(_, stat)| stat.is_some()));
        assert_eq!(snapshot.files().count(), 6);
    }

    #[test]
    fn a_folder_that_is_refused_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("bad\nname/below")).unwrap();
        std::fs::write(dir.path().join("good"), "").unwrap();
        let problems = walk(dir.path(), 2).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, dir.path().join("bad\nname"));
        let missing = walk(&dir.path().join("missing"), 2).unwrap_err();
        assert_eq!(missing[0].1.reason, Reason::NotFound);
    }
}
