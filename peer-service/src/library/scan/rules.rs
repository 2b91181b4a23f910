//! Decides which entries of a folder are left out: exclude patterns, and the `.potluckignore` files
//! in the folder and its subfolders. Both have the syntax of `.gitignore`.
//!
//! The patterns of a deeper file come before those of a higher one, and exclude patterns before
//! all. Within one file the last match counts, and `!` includes again. Nothing inside an excluded
//! folder can be included again, because the folder is not read.
//!
//! Invariant: a rule that cannot be read or understood refuses the share. Otherwise files that
//! their owner wants to keep private would be shared.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use potluck_core::{Problem, Reason};
use rustix::fs::OFlags;

use crate::{
    catalog::share_options::{LinkPolicy, ShareOptions},
    library::problems::{is_gone, unreadable},
};

/// The name of the files with patterns. They are shared like other files, so that a downloaded
/// folder is the same collection, and a change of the patterns is noticed like any other change.
pub(crate) const IGNORE_FILE: &str = ".potluckignore";

/// Maximum size of such a file, in bytes: far more than a person writes.
const MAX_IGNORE_FILE: u64 = 1024 * 1024;

/// How a folder is read.
#[derive(Debug)]
pub(crate) struct WalkRules {
    pub(crate) links: LinkPolicy,
    pub(crate) is_strict: bool,
    exclude: Gitignore,
    /// The peer's own state, which is never shared.
    peer_state: Option<PeerState>,
}

/// The folder of the peer's own state.
#[derive(Debug)]
struct PeerState {
    path: PathBuf,
    id: FolderId,
}

/// Device and inode of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FolderId(u64, u64);

impl FolderId {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// The patterns of one `.potluckignore`, and those above it.
#[derive(Debug)]
pub(crate) struct IgnoreRules {
    patterns: Gitignore,
    /// Length of the path of its folder, in bytes, with the slash at the end.
    folder_len: usize,
    above: Option<Arc<Self>>,
}

impl WalkRules {
    /// The rules for a share with these options by a peer that keeps its state in this folder.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: a pattern is invalid.
    pub(crate) fn new(options: &ShareOptions, peer_state: Option<&Path>) -> Result<Self, Problem> {
        let mut exclude = GitignoreBuilder::new("");
        for pattern in &options.exclude {
            exclude.add_line(None, pattern).map_err(|error| {
                Problem::new(
                    Reason::InvalidArgument,
                    format!("the exclude pattern `{pattern}` is invalid: {error}"),
                )
                .field("options.exclude")
            })?;
        }
        let peer_state = peer_state.and_then(|path| {
            let metadata = path.metadata().ok()?;
            Some(PeerState {
                path: path.canonicalize().ok()?,
                id: FolderId::of(&metadata),
            })
        });
        Ok(Self {
            links: options.links,
            is_strict: options.is_strict,
            exclude: exclude
                .build()
                .map_err(|error| invalid_patterns("the exclude patterns", &error))?,
            peer_state,
        })
    }

    pub(crate) fn follows_links(&self) -> bool {
        self.links == LinkPolicy::Follow
    }

    /// Whether an entry is left out. `path` is relative to the shared folder.
    pub(crate) fn excludes(
        &self,
        ignored: Option<&Arc<IgnoreRules>>,
        path: &Path,
        is_folder: bool,
    ) -> bool {
        let matched = self.exclude.matched(path, is_folder);
        if !matched.is_none() {
            return matched.is_ignore();
        }
        let mut rules = ignored;
        while let Some(level) = rules {
            let path = &path.as_os_str().as_encoded_bytes()[level.folder_len..];
            let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path);
            let matched = level.patterns.matched(path, is_folder);
            if !matched.is_none() {
                return matched.is_ignore();
            }
            rules = level.above.as_ref();
        }
        false
    }

    pub(crate) fn is_peer_state(&self, folder: FolderId) -> bool {
        self.peer_state.as_ref().is_some_and(|state| state.id == folder)
    }

    /// Whether the path, with links resolved, is within the peer's state.
    pub(crate) fn is_in_peer_state(&self, path: &Path) -> bool {
        let within = |state: &PeerState| {
            path.canonicalize()
                .is_ok_and(|path| path.starts_with(&state.path))
        };
        self.peer_state.as_ref().is_some_and(within)
    }
}

impl IgnoreRules {
    /// The rules inside a folder: those above it, and its own file if it has one. `path` is the
    /// path of `folder` relative to the shared folder.
    ///
    /// # Errors
    /// The file cannot be read or has an invalid pattern.
    pub(crate) fn inside(
        above: Option<&Arc<Self>>,
        folder: &Path,
        path: &str,
    ) -> Result<Option<Arc<Self>>, (PathBuf, Problem)> {
        let file = folder.join(IGNORE_FILE);
        let text = match read_ignore_file(&file) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(above.cloned()),
            Err(problem) => return Err((file, problem)),
        };
        match Self::parse(above, &text, path) {
            Ok(rules) => Ok(Some(Arc::new(rules))),
            Err(problem) => Err((file, problem)),
        }
    }

    /// The rules of a file with this text in the folder at `path`, and those above it.
    ///
    /// # Errors
    /// The text has an invalid pattern.
    pub(crate) fn parse(
        above: Option<&Arc<Self>>,
        text: &str,
        path: &str,
    ) -> Result<Self, Problem> {
        let mut patterns = GitignoreBuilder::new("");
        for (line, number) in text.trim_start_matches('\u{feff}').lines().zip(1..) {
            patterns
                .add_line(None, line)
                .map_err(|error| invalid_patterns(&format!("line {number}"), &error))?;
        }
        let patterns = patterns.build().map_err(|error| invalid_patterns("it", &error))?;
        Ok(Self {
            patterns,
            folder_len: path.len() + usize::from(!path.is_empty()),
            above: above.cloned(),
        })
    }
}

fn invalid_patterns(what: &str, error: &ignore::Error) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!("{what}: invalid pattern: {error}"),
    )
}

/// The text of a file with patterns; `None` if there is none. Never blocks on a pipe.
fn read_ignore_file(path: &Path) -> Result<Option<String>, Problem> {
    let invalid = |message: &str| Problem::new(Reason::InvalidArgument, message);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(invalid(
            "it is not a file: rename it, or make it a file with patterns",
        ));
    }
    let mut text = String::new();
    match file.take(MAX_IGNORE_FILE + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > MAX_IGNORE_FILE => {
            Err(invalid("it is larger than 1 MiB: make it shorter"))
        }
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(invalid("it is not UTF-8 text: write its patterns in UTF-8"))
        }
        Err(error) => Err(unreadable(&error)),
    }
}
