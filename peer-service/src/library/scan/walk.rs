//! Walks a folder and lists everything that a collection would hold, and everything that it leaves
//! out.
//!
//! Links are followed only if the rules say so. Invariant: every entry that a walk finds is in the
//! snapshot, or among its omissions, or one of the problems.

use std::{
    fs::{FileType, Metadata},
    io,
    path::Path,
    sync::{Arc, OnceLock},
};

use potluck_core::{
    Problem, Reason,
    collection::{limits::MAX_ENTRIES, manifest::check_link, path::RelPath},
};
use rustix::{
    fs::{Access, access},
    io::Errno,
};

use crate::{
    catalog::share_options::LinkPolicy,
    fs::{modes::may_lack_modes, parallel::run_parallel},
    library::{
        problems::{MAX_PROBLEMS, Refused, is_gone, not_a_regular_file, unreadable},
        scan::{
            omissions::{OmissionKind, Omissions},
            rules::{FolderId, IgnoreRules, WalkRules},
            snapshot::{EntryKind, FileStat, Snapshot},
        },
    },
};

/// Lists everything in a folder at any depth, sorted by path as in a manifest, on this number of
/// threads. Does not call `stat` on the files, except behind links.
///
/// # Errors
/// The folder, or something that decides what is shared of it, cannot be read; it is too large; or
/// the rules are strict and an entry cannot be shared. Up to [`MAX_PROBLEMS`] problems.
pub(crate) fn walk(
    root: &Path,
    rules: &WalkRules,
    threads: usize,
) -> Result<Snapshot, Vec<Refused>> {
    let mut snapshot = Snapshot::default();
    let mut problems = Vec::new();
    let ancestors = match rules.follows_links() {
        true => {
            let id = root.metadata().map(|metadata| FolderId::of(&metadata));
            let id = id.map_err(|error| vec![(root.to_owned(), unreadable(&error))])?;
            Some(Arc::new(Ancestors { id, above: None }))
        }
        false => None,
    };
    // The folders of one depth; those inside them follow in the next round.
    let mut level = vec![PendingFolder {
        path: String::new(),
        ignored: None,
        ancestors,
    }];
    while !level.is_empty() && problems.len() < MAX_PROBLEMS {
        level.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let chunk_len = level.len().div_ceil(threads.max(1));
        let walks = run_parallel(level.chunks(chunk_len), |folders| {
            vec![Walk::new(root, rules, folders)]
        });
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
    if !problems.is_empty() {
        return Err(problems);
    }
    snapshot.omitted.sort();
    if rules.is_strict {
        refuse_omissions(root, rules, &snapshot.omitted)?;
    }
    Ok(snapshot
        .sorted()
        .with_source(may_lack_modes(root), rules.follows_links()))
}

/// Refuses a folder for its omissions, except those that were asked for.
///
/// # Errors
/// The omissions, and their number if they are more than [`MAX_PROBLEMS`].
fn refuse_omissions(
    root: &Path,
    rules: &WalkRules,
    omitted: &Omissions,
) -> Result<(), Vec<Refused>> {
    let is_refused = |kind| match kind {
        OmissionKind::Excluded => false,
        OmissionKind::Link => rules.links != LinkPolicy::Skip,
        _ => true,
    };
    let counts = omitted.counts().filter(|(kind, _)| is_refused(*kind));
    let total: u64 = counts.map(|(_, count)| count).sum();
    if total == 0 {
        return Ok(());
    }
    let listed = omitted.sample(usize::MAX).into_iter();
    let mut problems: Vec<Refused> = listed
        .filter(|omission| is_refused(omission.kind))
        .map(|omission| (omission.path, omission.problem))
        .take(MAX_PROBLEMS)
        .collect();
    if total > problems.len() as u64 {
        let message = format!(
            "{total} of its entries cannot be shared: exclude them, or share it without `strict`"
        );
        problems.push((root.to_owned(), Problem::new(Reason::UnsafePath, message)));
    }
    Err(problems)
}

/// A folder that is not read yet.
#[derive(Debug)]
struct PendingFolder {
    /// Its path relative to the root of the walk.
    path: String,
    /// The ignore rules of the folders above it.
    ignored: Option<Arc<IgnoreRules>>,
    /// This folder and those above it; `None` if links are not followed.
    ancestors: Option<Arc<Ancestors>>,
}

/// A folder and those above it, to detect loops of links.
#[derive(Debug)]
struct Ancestors {
    id: FolderId,
    above: Option<Arc<Self>>,
}

impl Ancestors {
    fn contains(&self, id: FolderId) -> bool {
        let mut folder = Some(self);
        while let Some(current) = folder {
            if current.id == id {
                return true;
            }
            folder = current.above.as_deref();
        }
        false
    }
}

/// A walk through some folders, without their subfolders.
struct Walk<'a> {
    root: &'a Path,
    rules: &'a WalkRules,
    snapshot: Snapshot,
    subfolders: Vec<PendingFolder>,
    problems: Vec<Refused>,
}

/// What an entry of a folder is shared as.
enum Inspected {
    Entry(EntryKind),
    /// With its ancestors, if links are followed.
    Folder(Option<Arc<Ancestors>>),
    Omitted(OmissionKind, Problem),
}

impl Inspected {
    fn omitted(kind: OmissionKind, reason: Reason, message: &str) -> Self {
        Self::Omitted(kind, Problem::new(reason, message))
    }
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, rules: &'a WalkRules, folders: &[PendingFolder]) -> Self {
        let mut walk = Self {
            root,
            rules,
            snapshot: Snapshot::default(),
            subfolders: Vec::new(),
            problems: Vec::new(),
        };
        for folder in folders {
            let first = walk.snapshot.len();
            if let Err(error) = walk.add_folder(folder) {
                let problem = unreadable(&error);
                let path = root.join(&folder.path);
                match OmissionKind::of_unreadable(problem.reason) {
                    Some(kind) if !folder.path.is_empty() => {
                        walk.snapshot.omitted.add(kind, path, problem)
                    }
                    _ => walk.problems.push((path, problem)),
                }
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
    fn add_folder(&mut self, pending: &PendingFolder) -> io::Result<()> {
        let folder = self.root.join(&pending.path);
        let listing = std::fs::read_dir(&folder)?;
        let ignored = match IgnoreRules::inside(pending.ignored.as_ref(), &folder, &pending.path) {
            Ok(ignored) => ignored,
            Err(problem) => {
                self.problems.push(problem);
                return Ok(());
            }
        };
        let mut path = pending.path.clone();
        if !path.is_empty() {
            path.push('/');
        }
        let (name_start, mut is_empty) = (path.len(), true);
        for entry in listing {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            let whole_path = folder.join(&name);
            path.truncate(name_start);
            let inspected = match name.to_str() {
                None if self.excludes(
                    &ignored,
                    &Path::new(&path).join(&name),
                    &whole_path,
                    kind,
                ) =>
                {
                    excluded()
                }
                None => Inspected::omitted(
                    OmissionKind::InvalidName,
                    Reason::InvalidName,
                    "its name is not UTF-8: rename it to share it",
                ),
                Some(name) => {
                    path.push_str(name);
                    match self.excludes(&ignored, Path::new(&path), &whole_path, kind) {
                        true => excluded(),
                        false => self.inspect(pending, &whole_path, &path, kind),
                    }
                }
            };
            match inspected {
                Inspected::Folder(ancestors) => {
                    is_empty = false;
                    self.subfolders.push(PendingFolder {
                        path: path.clone(),
                        ignored: ignored.clone(),
                        ancestors,
                    });
                }
                Inspected::Entry(entry_kind) => {
                    is_empty = false;
                    // The caller checks the number of entries.
                    if !self.snapshot.push(&path, entry_kind) {
                        break;
                    }
                }
                Inspected::Omitted(kind, problem) => {
                    self.snapshot.omitted.add(kind, whole_path, problem)
                }
            }
        }
        if is_empty && !pending.path.is_empty() {
            self.snapshot.push(&pending.path, EntryKind::EmptyFolder);
        }
        Ok(())
    }

    fn excludes(
        &self,
        ignored: &Option<Arc<IgnoreRules>>,
        path: &Path,
        whole_path: &Path,
        kind: FileType,
    ) -> bool {
        let is_followed = kind.is_symlink() && self.rules.follows_links();
        let is_folder = kind.is_dir() || (is_followed && whole_path.is_dir());
        self.rules.excludes(ignored.as_ref(), path, is_folder)
    }

    /// What an entry is shared as. `path` is relative to the root of the walk.
    fn inspect(
        &self,
        parent: &PendingFolder,
        whole_path: &Path,
        path: &str,
        kind: FileType,
    ) -> Inspected {
        let path = match RelPath::parse(path) {
            Ok(path) => path,
            Err(error) => {
                let message = format!("{error}: rename it to share it");
                let problem = Problem::new(Reason::InvalidName, message);
                return Inspected::Omitted(OmissionKind::InvalidName, problem);
            }
        };
        if kind.is_symlink() {
            return match self.rules.links {
                LinkPolicy::Keep => keep_link(whole_path, path),
                LinkPolicy::Skip => Inspected::omitted(
                    OmissionKind::Link,
                    Reason::UnsafePath,
                    "it is a link, and links are skipped",
                ),
                LinkPolicy::Follow => self.follow_link(parent, whole_path),
            };
        }
        let needed = match () {
            () if kind.is_file() => Access::READ_OK,
            () if kind.is_dir() => Access::READ_OK | Access::EXEC_OK,
            () => {
                return Inspected::Omitted(OmissionKind::Special, not_a_regular_file(kind));
            }
        };
        if let Some(omitted) = inaccessible(whole_path, needed) {
            return omitted;
        }
        match (kind.is_dir(), &parent.ancestors) {
            (false, _) => Inspected::Entry(EntryKind::File(OnceLock::new())),
            (true, None) => Inspected::Folder(None),
            (true, Some(ancestors)) => match whole_path.metadata() {
                Ok(metadata) => self.enter(ancestors, &metadata),
                Err(error) => unfollowable(&error),
            },
        }
    }

    /// What the target of a link is shared as.
    fn follow_link(&self, parent: &PendingFolder, whole_path: &Path) -> Inspected {
        let metadata = match whole_path.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return unfollowable(&error),
        };
        let needed = match () {
            () if metadata.is_file() => Access::READ_OK,
            () if metadata.is_dir() => Access::READ_OK | Access::EXEC_OK,
            () => {
                let problem = not_a_regular_file(metadata.file_type());
                return Inspected::Omitted(OmissionKind::Special, problem);
            }
        };
        if let Some(omitted) = inaccessible(whole_path, needed) {
            return omitted;
        }
        match (self.rules.is_in_peer_state(whole_path), &parent.ancestors) {
            (true, _) => peer_state(),
            (false, Some(ancestors)) if metadata.is_dir() => self.enter(ancestors, &metadata),
            (false, _) => {
                Inspected::Entry(EntryKind::File(FileStat::from_metadata(&metadata).into()))
            }
        }
    }

    /// Enters a folder while links are followed.
    fn enter(&self, ancestors: &Arc<Ancestors>, metadata: &Metadata) -> Inspected {
        let id = FolderId::of(metadata);
        if self.rules.is_peer_state(id) {
            return peer_state();
        }
        match ancestors.contains(id) {
            true => Inspected::omitted(
                OmissionKind::LinkLoop,
                Reason::UnsafePath,
                "links lead from this folder to itself",
            ),
            false => Inspected::Folder(Some(Arc::new(Ancestors {
                id,
                above: Some(ancestors.clone()),
            }))),
        }
    }
}

fn excluded() -> Inspected {
    Inspected::omitted(OmissionKind::Excluded, Reason::InvalidArgument, "it is excluded")
}

fn peer_state() -> Inspected {
    Inspected::omitted(
        OmissionKind::PeerState,
        Reason::UnsafePath,
        "it is the peer's own state with its secret token",
    )
}

/// The link as a link, if it stays inside the collection.
fn keep_link(whole_path: &Path, path: RelPath<'_>) -> Inspected {
    let target = match std::fs::read_link(whole_path) {
        Ok(target) => target,
        Err(error) => return unfollowable(&error),
    };
    let Ok(target) = target.into_os_string().into_string() else {
        return Inspected::omitted(
            OmissionKind::Link,
            Reason::InvalidName,
            "the link's target is not UTF-8: remove the link",
        );
    };
    match check_link(path, &target) {
        Ok(()) => Inspected::Entry(EntryKind::Link(target.into())),
        Err(error) => Inspected::Omitted(OmissionKind::Link, error.into()),
    }
}

/// The omission of an entry that this user has no access to; `None` if nothing is known against it.
/// Any other failure is reported when it is read.
fn inaccessible(path: &Path, needed: Access) -> Option<Inspected> {
    match access(path, needed) {
        Err(Errno::NAMETOOLONG) => Some(Inspected::omitted(
            OmissionKind::InvalidName,
            Reason::InvalidName,
            "its path is too long for this system: share a folder inside",
        )),
        Err(error) => {
            let problem = unreadable(&error.into());
            let kind = OmissionKind::of_unreadable(problem.reason)?;
            Some(Inspected::Omitted(kind, problem))
        }
        Ok(()) => None,
    }
}

/// The omission of a link, or of a folder while links are followed, whose `stat` fails.
fn unfollowable(error: &io::Error) -> Inspected {
    match Errno::from_io_error(error) {
        Some(Errno::LOOP) => Inspected::omitted(
            OmissionKind::LinkLoop,
            Reason::UnsafePath,
            "the link leads to itself",
        ),
        _ if is_gone(error) => Inspected::omitted(
            OmissionKind::DanglingLink,
            Reason::NotFound,
            "the link leads to nothing",
        ),
        _ => Inspected::Omitted(OmissionKind::Unreadable, unreadable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::share_options::ShareOptions;

    fn walk(root: &Path, threads: usize) -> Result<Snapshot, Vec<Refused>> {
        walk_with(root, &ShareOptions::default(), threads)
    }

    fn walk_with(
        root: &Path,
        options: &ShareOptions,
        threads: usize,
    ) -> Result<Snapshot, Vec<Refused>> {
        super::walk(root, &WalkRules::new(options, None).unwrap(), threads)
    }

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
        let strict = ShareOptions {
            is_strict: true,
            ..ShareOptions::default()
        };
        let problems = walk_with(dir.path(), &strict, 2).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, dir.path().join("bad\nname"));
        let missing = walk(&dir.path().join("missing"), 2).unwrap_err();
        assert_eq!(missing[0].1.reason, Reason::NotFound);
    }
}
