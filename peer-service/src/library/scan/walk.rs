//! Walks a folder and lists everything that a collection would hold and everything that it cannot.
//!
//! Links are never followed. Invariant: a walk returns either all entries or at least one problem;
//! it never leaves an entry out silently.

use std::{fs::FileType, io, path::Path, sync::OnceLock};

use potluck_core::{
    Problem, Reason,
    collection::{limits::MAX_ENTRIES, manifest::check_link, path::RelPath},
};

use crate::{
    fs::{modes::may_lack_modes, parallel::run_parallel},
    library::{
        problems::{MAX_PROBLEMS, Refused, not_a_regular_file, unreadable},
        scan::snapshot::{EntryKind, Snapshot},
    },
};

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
        let chunk_len = level.len().div_ceil(threads.max(1));
        let walks = run_parallel(level.chunks(chunk_len), |folders| vec![Walk::new(root, folders)]);
        level = Vec::new();
        for walk in walks {
            level.extend(walk.subfolders);
            problems.extend(walk.problems);
            // Each folder yields at least one entry: its content, or itself if it is empty.
            if !snapshot.append(walk.snapshot) || snapshot.len() + level.len() > MAX_ENTRIES {
                let message =
                    format!("it has more than {MAX_ENTRIES} entries: share its subfolders");
                return Err(vec![(root.to_owned(), Problem::new(Reason::OutOfRange, message))]);
            }
        }
    }
    problems.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    problems.truncate(MAX_PROBLEMS);
    match problems.is_empty() {
        true => Ok(snapshot.sorted().with_may_lack_modes(may_lack_modes(root))),
        false => Err(problems),
    }
}

/// A walk through some folders, without their subfolders.
struct Walk<'a> {
    root: &'a Path,
    snapshot: Snapshot,
    subfolders: Vec<String>,
    problems: Vec<Refused>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, folders: &[String]) -> Self {
        let mut walk = Self {
            root,
            snapshot: Snapshot::default(),
            subfolders: Vec::new(),
            problems: Vec::new(),
        };
        for folder in folders {
            let first = walk.snapshot.len();
            if let Err(error) = walk.add_folder(folder) {
                walk.problems.push((root.join(folder), unreadable(&error)));
            }
            // Sorted here, because a later stable sort merges sorted runs quickly.
            walk.snapshot.sort_from(first);
            if walk.snapshot.len() > MAX_ENTRIES || walk.problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        walk
    }

    /// Adds the entries of a folder.
    fn add_folder(&mut self, folder_path: &str) -> io::Result<()> {
        let folder = self.root.join(folder_path);
        let mut path = String::from(folder_path);
        if !folder_path.is_empty() {
            path.push('/');
        }
        let (name_start, mut is_empty) = (path.len(), true);
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            is_empty = false;
            path.truncate(name_start);
            let inspected = match name.to_str() {
                None => Err(Problem::new(
                    Reason::InvalidName,
                    "its name is not UTF-8: rename it to share the folder",
                )),
                Some(name) => {
                    path.push_str(name);
                    inspect_entry(&folder, &path, kind)
                }
            };
            match inspected {
                Ok(None) => self.subfolders.push(path.clone()),
                Ok(Some(entry_kind)) => {
                    // The caller checks the number of entries.
                    if !self.snapshot.push(&path, entry_kind) {
                        break;
                    }
                }
                Err(problem) => self.problems.push((folder.join(name), problem)),
            }
            if self.problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        if is_empty && !folder_path.is_empty() {
            self.snapshot.push(folder_path, EntryKind::EmptyFolder);
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
        let target = std::fs::read_link(folder.join(path.file_name()))
            .map_err(|error| unreadable(&error))?;
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
    fn entries_are_sorted_and_only_empty_folders_are_listed() {
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
    fn a_refused_folder_is_reported_once() {
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
