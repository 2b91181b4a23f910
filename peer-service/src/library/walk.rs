//! What is in a folder: everything that a collection would hold, and everything that it cannot.
//!
//! Links are never followed. Invariant: a walk tells either all that is there or at least one problem; it never leaves
//! something out silently.

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{
    Problem, Reason,
    manifest::{Content, MAX_ENTRIES, Manifest, check_link},
    path::RelPath,
};
use walkdir::WalkDir;

use super::{hasher::changed, parts::in_slices};
use crate::store::Stamp;

/// Most problems told of one folder: enough to see what is wrong, few enough to read.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Most folders held open while walking.
const MAX_OPEN: usize = 16;

/// Something that cannot be shared, and why.
pub(super) type Refused = (PathBuf, Problem);

/// All that is in a folder, sorted by path as a manifest is. Paths are one text: a hundred thousand strings would take several times
/// as much.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    text: String,
    ones: Vec<One>,
}

/// Something in a folder.
#[derive(Debug, PartialEq, Eq)]
struct One {
    /// Where in the text its path is, and how long.
    start: u32,
    len: u32,
    what: What,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    File { stamp: Stamp, executable: bool },
    EmptyFolder,
    Link(Box<str>),
}

impl One {
    /// Its path, in the text of all.
    fn path<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..][..self.len as usize]
    }
}

impl Found {
    pub(super) const fn len(&self) -> usize {
        self.ones.len()
    }

    /// The path of one.
    ///
    /// # Panics
    /// Where there is no such one.
    pub(super) fn path(&self, index: usize) -> &str {
        self.ones[index].path(&self.text)
    }

    /// Of a file.
    pub(super) fn stamp(&self, index: usize) -> Option<Stamp> {
        match self.ones.get(index)?.what {
            What::File { stamp, .. } => Some(stamp),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &What)> {
        self.ones.iter().map(|one| (one.path(&self.text), &one.what))
    }

    /// The files by number.
    pub(super) fn files(&self) -> impl Iterator<Item = (usize, Stamp)> {
        let stamps = (0..self.len()).map(|index| (index, self.stamp(index)));
        stamps.filter_map(|(index, stamp)| Some((index, stamp?)))
    }

    /// Of all files, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.files().map(|(_, stamp)| stamp.size).sum()
    }

    /// Adds one; false where its text has no room any more.
    fn push(&mut self, path: &str, what: What) -> bool {
        let (Ok(start), Ok(len)) = (u32::try_from(self.text.len()), u32::try_from(path.len())) else {
            return false;
        };
        self.text.push_str(path);
        self.ones.push(One { start, len, what });
        true
    }

    /// Asks what each file is like.
    fn ask(&mut self, root: &Path, threads: usize) -> Result<(), Vec<Refused>> {
        let text = &self.text;
        let mut problems = in_slices(&mut self.ones, threads, |ones| {
            let mut problems = Vec::new();
            let files = ones
                .iter_mut()
                .filter(|one| matches!(one.what, What::File { .. }));
            for one in files {
                let path = root.join(one.path(text));
                match ask(&path) {
                    Ok(file) => one.what = file,
                    Err(problem) if problems.len() < MAX_PROBLEMS => problems.push((path, problem)),
                    Err(_) => {}
                }
            }
            problems
        });
        problems.truncate(MAX_PROBLEMS);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems),
        }
    }

    /// Sorts, and leaves out the folders that follow from what is in them.
    fn finish(mut self) -> Self {
        let text = &self.text;
        self.ones.sort_unstable_by(|a, b| a.path(text).cmp(b.path(text)));
        let ones = &self.ones;
        let is_full = |folder: &str| {
            let beneath = format!("{folder}/");
            let first = ones.partition_point(|one| *one.path(text) < *beneath);
            ones.get(first)
                .is_some_and(|one| one.path(text).starts_with(&beneath))
        };
        let kept: Vec<bool> = ones
            .iter()
            .map(|one| one.what != What::EmptyFolder || !is_full(one.path(text)))
            .collect();
        let mut kept = kept.into_iter();
        self.ones.retain(|_| kept.next().unwrap_or(true));
        self
    }
}

/// What the operating system says of a file.
pub fn stamp_of(metadata: &Metadata) -> Stamp {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Stamp {
        size: metadata.size(),
        mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// Whether the owner may execute it.
pub(super) fn is_executable(metadata: &Metadata) -> bool {
    metadata.mode() & 0o100 != 0
}

/// The problem with a path that cannot be read.
pub(super) fn unreadable(error: &std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::NotFound => Problem::new(Reason::NotFound, "there is no such file or folder"),
        std::io::ErrorKind::PermissionDenied => Problem::new(
            Reason::PermissionDenied,
            "no permission to read it: give this user access to it",
        ),
        _ => Problem::new(Reason::Internal, format!("it cannot be read: {error}")),
    }
}

/// The problem with what is neither file nor folder.
pub(super) fn special(kind: std::fs::FileType) -> Problem {
    let what = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    };
    Problem::new(
        Reason::UnsafePath,
        format!("it is {what}: only files, folders and links can be shared"),
    )
}

/// Everything in a folder at any depth, sorted by path as a manifest is; files are asked about on so many threads.
///
/// # Errors
/// All that cannot be shared, up to [`MAX_PROBLEMS`].
pub(super) fn walk(root: &Path, threads: usize) -> Result<Found, Vec<Refused>> {
    let mut found = Found::default();
    let mut problems = Vec::new();
    let walk = WalkDir::new(root)
        .min_depth(1)
        .follow_links(false)
        .max_open(MAX_OPEN);
    for entry in walk {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                let problem = match error.io_error() {
                    Some(error) => unreadable(error),
                    None => Problem::new(Reason::Internal, error.to_string()),
                };
                problems.push((path, problem));
                continue;
            }
        };
        match look(root, &entry) {
            Ok((path, what)) => {
                if found.len() >= MAX_ENTRIES || !found.push(path, what) {
                    let message = format!("it holds more than {MAX_ENTRIES} entries: share its parts");
                    return Err(vec![(root.to_owned(), Problem::new(Reason::OutOfRange, message))]);
                }
            }
            Err(problem) => problems.push((entry.path().to_owned(), problem)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut found = found.finish();
    found.ask(root, threads)?;
    Ok(found)
}

/// What one entry is, and its path in the folder.
fn look<'a>(root: &Path, entry: &'a walkdir::DirEntry) -> Result<(&'a str, What), Problem> {
    let below = entry.path().strip_prefix(root).unwrap_or_else(|_| entry.path());
    let text = below.to_str().ok_or_else(|| {
        Problem::new(
            Reason::InvalidName,
            "its name is not UTF-8: rename it to share the folder",
        )
    })?;
    let path = RelPath::parse(text).map_err(|error| {
        Problem::new(
            Reason::InvalidName,
            format!("{error}: rename it to share the folder"),
        )
    })?;
    let kind = entry.file_type();
    let what = if kind.is_file() {
        // Filled in by `Found::ask`.
        What::File {
            stamp: Stamp::default(),
            executable: false,
        }
    } else if kind.is_dir() {
        What::EmptyFolder
    } else if kind.is_symlink() {
        let target = std::fs::read_link(entry.path()).map_err(|error| unreadable(&error))?;
        let target = target.into_os_string().into_string().map_err(|_| {
            Problem::new(
                Reason::InvalidName,
                "the link's target is not UTF-8: remove the link",
            )
        })?;
        // The manifest's own rules, asked for each link so that all bad ones are told.
        check_link(path, &target).map_err(Problem::from)?;
        What::Link(target.into())
    } else {
        return Err(special(kind));
    };
    Ok((text, what))
}

/// A file as the operating system has it.
fn ask(path: &Path) -> Result<What, Problem> {
    let metadata = path.symlink_metadata().map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok(What::File {
            stamp: stamp_of(&metadata),
            executable: is_executable(&metadata),
        }),
        false => Err(changed()),
    }
}

/// A number that differs where anything in the folder does.
pub(super) fn fingerprint(found: &Found) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, what) in found.iter() {
        path.hash(&mut hasher);
        match what {
            What::File { stamp, executable } => (0, stamp, executable).hash(&mut hasher),
            What::EmptyFolder => 1.hash(&mut hasher),
            What::Link(target) => (2, target).hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// Whether a folder is still what a manifest and its stamps say.
pub(super) fn is_same(found: &Found, manifest: &Manifest, stamps: &[Stamp]) -> bool {
    found.len() == manifest.len()
        && manifest.len() == stamps.len()
        && found
            .iter()
            .zip(manifest.entries())
            .zip(stamps)
            .all(|(((path, what), entry), known)| {
                path == entry.path.as_str()
                    && match (what, entry.content) {
                        (What::File { stamp, executable }, Content::File { executable: was, .. }) => {
                            stamp == known && *executable == was
                        }
                        (What::EmptyFolder, Content::EmptyDirectory) => true,
                        (What::Link(target), Content::Link { target: was }) => **target == *was,
                        _ => false,
                    }
            })
}

/// When anything in the folder last changed, in nanoseconds since 1970.
pub(super) fn newest(found: &Found) -> i64 {
    let changes = found.files().map(|(_, stamp)| stamp.ctime.max(stamp.mtime));
    changes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_sorted_and_folders_with_content_are_left_out() {
        let mut found = Found::default();
        for (path, what) in [
            ("b", What::EmptyFolder),
            ("b/c", What::Link("x".into())),
            ("b-", What::EmptyFolder),
            ("a", What::EmptyFolder),
            ("b/e", What::EmptyFolder),
        ] {
            assert!(found.push(path, what));
        }
        let found = found.finish();
        let paths: Vec<_> = found.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "b-", "b/c", "b/e"]);
    }
}
