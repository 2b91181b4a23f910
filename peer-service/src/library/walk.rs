//! What is in a folder: everything that a collection would hold, and everything that it cannot.
//!
//! Links are never followed. Invariant: a walk tells either all that is there or at least one problem; it never leaves
//! something out silently.

use std::{
    ffi::OsString,
    fs::{FileType, Metadata},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    ops::ControlFlow,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{
    Problem, Reason,
    manifest::{Content, MAX_ENTRIES, Manifest, check_link},
    path::RelPath,
};

use super::{hasher::changed, parts::in_slices};
use crate::store::Stamp;

/// Most problems told of one folder: enough to see what is wrong, few enough to read.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Most files of a folder that are not asked about before they are opened for hashing, which tells the same. Of more, whoever waits is told
/// first how many bytes there are; of so many small ones, soon enough.
const MAX_UNASKED: usize = 16 * 1024;

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
pub(super) struct One {
    /// Where in the text its path is, and how long.
    start: u32,
    len: u32,
    what: What,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// What it is like, once somebody has asked.
    File(Option<Seen>),
    EmptyFolder,
    Link(Box<str>),
}

/// What a file is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) stamp: Stamp,
    /// Whether the owner may execute it.
    pub(super) executable: bool,
}

impl Seen {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            stamp: stamp_of(metadata),
            executable: metadata.mode() & 0o100 != 0,
        }
    }
}

impl One {
    /// What a file was found to be.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        match self.what {
            What::File(seen) => seen.map(|seen| seen.stamp),
            _ => None,
        }
    }

    /// A file is like this.
    pub(super) fn see(&mut self, seen: Seen) {
        self.what = What::File(Some(seen));
    }

    /// Its path, in the text of all.
    pub(super) fn path<'a>(&self, text: &'a str) -> &'a str {
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

    /// The text of all paths, and each thing apart.
    pub(super) fn parts(&mut self) -> (&str, &mut [One]) {
        (&self.text, &mut self.ones)
    }

    /// The stamps of all, meaningless for those that are no files.
    pub(super) fn all_stamps(&self) -> Vec<Stamp> {
        let stamps = self.ones.iter().map(|one| one.stamp().unwrap_or_default());
        stamps.collect()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &What)> {
        self.ones.iter().map(|one| (one.path(&self.text), &one.what))
    }

    /// The files by number, and what each is like.
    pub(super) fn files(&self) -> impl Iterator<Item = (usize, Option<Seen>)> {
        self.ones
            .iter()
            .enumerate()
            .filter_map(|(index, one)| match one.what {
                What::File(seen) => Some((index, seen)),
                _ => None,
            })
    }

    /// Of all files that were asked about, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.stamps().map(|stamp| stamp.size).sum()
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.files().filter_map(|(_, seen)| Some(seen?.stamp))
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

    /// In the order of a manifest. It is that already, but for empty folders, which are listed without a slash.
    fn sorted(mut self) -> Self {
        let text = &self.text;
        self.ones.sort_unstable_by(|a, b| a.path(text).cmp(b.path(text)));
        self
    }

    /// Asks what each file is like, on so many threads, where there are so many of them that hashing does not do that.
    ///
    /// # Errors
    /// As [`walk`].
    pub(super) fn ask_many(&mut self, root: &Path, threads: usize) -> Result<(), Vec<Refused>> {
        match self.len() > MAX_UNASKED {
            true => self.ask(root, threads),
            false => Ok(()),
        }
    }

    /// Asks what each file is like, on so many threads.
    ///
    /// # Errors
    /// As [`walk`].
    pub(super) fn ask(&mut self, root: &Path, threads: usize) -> Result<(), Vec<Refused>> {
        let text = &self.text;
        let mut problems = in_slices(&mut self.ones, threads, |ones| {
            let mut problems = Vec::new();
            let files = ones.iter_mut().filter(|one| matches!(one.what, What::File(_)));
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

/// Everything in a folder at any depth, sorted by path as a manifest is. What the files are like is not asked.
///
/// # Errors
/// All that cannot be shared, up to [`MAX_PROBLEMS`].
pub(super) fn walk(root: &Path) -> Result<Found, Vec<Refused>> {
    let mut walk = Walk {
        root,
        found: Found::default(),
        problems: Vec::new(),
    };
    // Ended early where there are problems enough.
    let _ = walk.folder("");
    match walk.problems.is_empty() {
        true => Ok(walk.found.sorted()),
        false => Err(walk.problems),
    }
}

/// A walk on its way.
struct Walk<'a> {
    root: &'a Path,
    found: Found,
    problems: Vec<Refused>,
}

impl Walk<'_> {
    /// Takes what is in a folder. It goes as deep as a path may be.
    fn folder(&mut self, below: &str) -> ControlFlow<()> {
        let folder = self.root.join(below);
        let names = match list(&folder) {
            Ok(names) => names,
            Err(error) => return self.refuse(folder, unreadable(&error)),
        };
        if names.is_empty() && !below.is_empty() {
            return self.take(below, What::EmptyFolder);
        }
        for (name, kind) in names {
            let path = name.to_str().map(|name| match below {
                "" => name.to_owned(),
                below => format!("{below}/{name}"),
            });
            match look(&folder, path.as_deref(), kind) {
                Ok((path, Some(what))) => self.take(path, what)?,
                Ok((path, None)) => self.folder(path)?,
                Err(problem) => self.refuse(folder.join(name), problem)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self, path: &str, what: What) -> ControlFlow<()> {
        if self.found.len() < MAX_ENTRIES && self.found.push(path, what) {
            return ControlFlow::Continue(());
        }
        let message = format!("it holds more than {MAX_ENTRIES} entries: share its parts");
        self.problems = vec![(self.root.to_owned(), Problem::new(Reason::OutOfRange, message))];
        ControlFlow::Break(())
    }

    fn refuse(&mut self, path: PathBuf, problem: Problem) -> ControlFlow<()> {
        self.problems.push((path, problem));
        match self.problems.len() < MAX_PROBLEMS {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

/// What is in a folder, in the order of the paths that begin there: as if a folder's name ended in a slash.
fn list(folder: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name(), entry.file_type()?))
    });
    let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by(|(a, a_kind), (b, b_kind)| {
        let (a, b) = (a.as_encoded_bytes(), b.as_encoded_bytes());
        let both = a.len().min(b.len());
        let rest = |name: &[u8], kind: &FileType| match name.get(both) {
            None => kind.is_dir().then_some(b'/'),
            next => next.copied(),
        };
        a[..both]
            .cmp(&b[..both])
            .then_with(|| rest(a, a_kind).cmp(&rest(b, b_kind)))
    });
    Ok(entries)
}

/// What an entry of a folder is, `None` for a folder, and its path from where the walk began.
fn look<'a>(
    folder: &Path,
    path: Option<&'a str>,
    kind: FileType,
) -> Result<(&'a str, Option<What>), Problem> {
    let text = path.ok_or_else(|| {
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
    let what = if kind.is_file() {
        Some(What::File(None))
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
        // The manifest's own rules, asked for each link so that all bad ones are told.
        check_link(path, &target).map_err(Problem::from)?;
        Some(What::Link(target.into()))
    } else {
        return Err(special(kind));
    };
    Ok((text, what))
}

/// A file as the operating system has it.
fn ask(path: &Path) -> Result<What, Problem> {
    let metadata = path.symlink_metadata().map_err(|error| unreadable(&error))?;
    match metadata.is_file() {
        true => Ok(What::File(Some(Seen::of(&metadata)))),
        false => Err(changed()),
    }
}

/// A number that differs where anything in the folder does.
pub(super) fn fingerprint(found: &Found) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, what) in found.iter() {
        path.hash(&mut hasher);
        match what {
            What::File(seen) => (0, seen).hash(&mut hasher),
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
                        (What::File(Some(seen)), Content::File { executable, .. }) => {
                            seen.stamp == *known && seen.executable == executable
                        }
                        (What::EmptyFolder, Content::EmptyDirectory) => true,
                        (What::Link(target), Content::Link { target: was }) => **target == *was,
                        _ => false,
                    }
            })
}

/// When anything in the folder last changed, in nanoseconds since 1970.
pub(super) fn newest(found: &Found) -> i64 {
    let changes = found.stamps().map(|stamp| stamp.ctime.max(stamp.mtime));
    changes.max().unwrap_or(0)
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
        let mut found = walk(root).unwrap();
        let paths: Vec<_> = found.iter().map(|(path, _)| path).collect();
        let sorted = [
            "a", "a-", "a.txt", "b-", "b.txt", "b/c", "b/e", "b/f.txt", "b/f/g/h", "b/f0", "c",
        ];
        assert_eq!(paths, sorted);
        assert!(found.files().all(|(_, seen)| seen.is_none()));
        found.ask(root, 1).unwrap();
        assert!(found.files().all(|(_, seen)| seen.is_some()));
        assert_eq!(found.files().count(), 6);
    }

    #[test]
    fn a_folder_that_is_refused_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("bad\nname/below")).unwrap();
        std::fs::write(dir.path().join("good"), "").unwrap();
        let problems = walk(dir.path()).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, dir.path().join("bad\nname"));
        let missing = walk(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing[0].1.reason, Reason::NotFound);
    }
}
