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
    manifest::{Content, Entry, MAX_ENTRIES, Manifest},
    path::RelPath,
};
use walkdir::WalkDir;

use crate::store::Stamp;

/// Most problems told of one folder: enough to see what is wrong, few enough to read.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Most folders held open while walking.
const MAX_OPEN: usize = 16;

/// Something that cannot be shared, and why.
pub(super) type Refused = (PathBuf, Problem);

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: RelPath,
    pub(super) what: What,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    File { stamp: Stamp, executable: bool },
    EmptyFolder,
    Link(String),
}

/// What the operating system says of a file.
pub(super) fn stamp_of(metadata: &Metadata) -> Stamp {
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

/// Everything in a folder at any depth, sorted by path as a manifest is.
///
/// # Errors
/// All that cannot be shared, up to [`MAX_PROBLEMS`].
pub(super) fn walk(root: &Path) -> Result<Vec<Found>, Vec<Refused>> {
    let mut found: Vec<Found> = Vec::new();
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
            Ok(Some(one)) if found.len() < MAX_ENTRIES => found.push(one),
            Ok(Some(_)) => {
                let message = format!("it holds more than {MAX_ENTRIES} entries: share its parts");
                return Err(vec![(root.to_owned(), Problem::new(Reason::OutOfRange, message))]);
            }
            Ok(None) => {}
            Err(problem) => problems.push((entry.path().to_owned(), problem)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(drop_full_folders(found))
}

/// What one entry is; `None` never leaves anything out.
fn look(root: &Path, entry: &walkdir::DirEntry) -> Result<Option<Found>, Problem> {
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
        let metadata = entry.metadata().map_err(|error| match error.io_error() {
            Some(error) => unreadable(error),
            None => Problem::new(Reason::Internal, error.to_string()),
        })?;
        What::File {
            stamp: stamp_of(&metadata),
            executable: is_executable(&metadata),
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
        let link = Entry {
            path: path.clone(),
            content: Content::Link {
                target: target.clone(),
            },
        };
        // The manifest's own rules, asked for each link so that all bad ones are told.
        Manifest::new(vec![link]).map_err(Problem::from)?;
        What::Link(target)
    } else {
        return Err(special(kind));
    };
    Ok(Some(Found { path, what }))
}

/// Folders follow from the paths in them: only empty ones are kept.
fn drop_full_folders(found: Vec<Found>) -> Vec<Found> {
    let mut full = std::collections::HashSet::new();
    for one in &found {
        if let Some(parent) = one.path.parent() {
            full.insert(parent.to_owned());
        }
    }
    found
        .into_iter()
        .filter(|one| one.what != What::EmptyFolder || !full.contains(one.path.as_str()))
        .collect()
}

/// A number that differs where anything in the folder does.
pub(super) fn fingerprint(found: &[Found]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for one in found {
        one.path.as_str().hash(&mut hasher);
        match &one.what {
            What::File { stamp, executable } => (0, stamp, executable).hash(&mut hasher),
            What::EmptyFolder => 1.hash(&mut hasher),
            What::Link(target) => (2, target).hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// Whether a folder is still what a manifest and its stamps say.
pub(super) fn is_same(found: &[Found], manifest: &Manifest, stamps: &[Stamp]) -> bool {
    found.len() == manifest.entries.len()
        && manifest.entries.len() == stamps.len()
        && found
            .iter()
            .zip(&manifest.entries)
            .zip(stamps)
            .all(|((one, entry), known)| {
                one.path == entry.path
                    && match (&one.what, &entry.content) {
                        (What::File { stamp, executable }, Content::File { executable: was, .. }) => {
                            stamp == known && executable == was
                        }
                        (What::EmptyFolder, Content::EmptyDirectory) => true,
                        (What::Link(target), Content::Link { target: was }) => target == was,
                        _ => false,
                    }
            })
}

/// When anything in the folder last changed, in nanoseconds since 1970.
pub(super) fn newest(found: &[Found]) -> i64 {
    let stamps = found.iter().filter_map(|one| match &one.what {
        What::File { stamp, .. } => Some(stamp.ctime.max(stamp.mtime)),
        _ => None,
    });
    stamps.max().unwrap_or(0)
}
