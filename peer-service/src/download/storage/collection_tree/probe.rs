//! Tests by experiment which names the target's file system accepts and distinguishes. A list of
//! file systems would not cover mount options, network shares or per-folder settings (`casefold` of
//! ext4).
//!
//! The tests create the collection's own names in a temporary folder inside the part folder, which
//! inherits the same settings. Invariant: the temporary folder is removed afterwards. Collections
//! with plain, distinct names need no test.

use std::{
    collections::HashSet,
    io::{self, ErrorKind, Write as _},
    path::Path,
};

use cap_std::fs::{Dir, OpenOptions};
use potluck_core::{Problem, collection::manifest::Manifest};
use tokio_util::sync::CancellationToken;

use crate::download::storage::{
    collection_tree::block_clone::clone_file,
    target::{self, NameClash, RESERVED},
};

/// Maximum names tested for collisions. Further collisions are detected when the second file is
/// created, which is exclusive.
const MAX_TESTED: usize = 4096;

/// Maximum names tested for non-ASCII characters, which some file systems reject.
const MAX_NON_ASCII: usize = 32;

/// Maximum name length that every common file system accepts, in bytes; the limit of eCryptfs.
const SHORT_NAME: usize = 143;

/// A temporary folder for testing names.
struct Probe<'a> {
    parent: &'a Dir,
    name: String,
    dir: Dir,
}

impl<'a> Probe<'a> {
    fn make(parent: &'a Dir, manifest: &Manifest) -> io::Result<Self> {
        let is_free = |name: &String| manifest.find(name).is_none() && !manifest.is_folder(name);
        let name = (0..).map(|n| format!(".probe-{n}")).find(is_free);
        let name = name.ok_or(ErrorKind::AlreadyExists)?;
        match parent.create_dir(&name) {
            // Left by a process that was killed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                parent.remove_dir_all(&name)?;
                parent.create_dir(&name)?;
            }
            made => made?,
        }
        let dir = parent.open_dir(&name)?;
        Ok(Self { parent, name, dir })
    }

    fn create(&self, name: &str) -> io::Result<cap_std::fs::File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        self.dir.open_with(name, &options)
    }

    /// Whether the folder lists a created name unchanged.
    fn is_listed(&self, name: &str) -> io::Result<bool> {
        for entry in self.dir.entries()? {
            if entry?.file_name() == name {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finds the existing name that the file system equates with `name`.
    fn same_as<'n>(&self, created: &[&'n str], name: &str) -> io::Result<Option<&'n str>> {
        for other in created {
            self.dir.remove_file(other)?;
        }
        for other in created {
            drop(self.create(other)?);
            let is_same =
                matches!(self.create(name), Err(error) if error.kind() == ErrorKind::AlreadyExists);
            self.dir.remove_file(other)?;
            if is_same {
                return Ok(Some(other));
            }
            self.dir.remove_file(name)?;
        }
        Ok(None)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.parent.remove_dir_all(&self.name) {
            tracing::debug!(%error, "could not remove the folder for testing names");
        }
    }
}

/// Rejects a collection with names that the file system at `root`, open as `dir`, confuses or does
/// not accept.
///
/// # Errors
/// [`Reason::TargetUnsuitable`](potluck_core::Reason::TargetUnsuitable), naming the paths;
/// `CANCELLED` if `stop` is cancelled; otherwise the I/O error that prevented the test.
pub(crate) fn check_names(
    dir: &Dir,
    root: &Path,
    manifest: &Manifest,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let groups = manifest.lookalikes();
    let odd = odd_paths(manifest);
    if groups.is_empty() && odd.is_empty() {
        return Ok(());
    }
    let failed = |error: io::Error| target::target_problem(root, &error);
    let probe = Probe::make(dir, manifest).map_err(failed)?;
    for path in odd {
        if stop.is_cancelled() {
            return Err(target::stopped());
        }
        let name = name_of(path);
        let at = root.join(path);
        match probe.create(name) {
            Ok(_) => {}
            // The temporary folder exists, so the error concerns the name, even if the path's own
            // folder does not exist yet.
            Err(error) if target::is_name_error(&root.join(&probe.name).join(name), &error) => {
                return Err(target::name_rejected(&at, &error));
            }
            Err(error) => return Err(target::target_problem(&at, &error)),
        }
        if name.ends_with(['.', ' ']) && !probe.is_listed(name).map_err(failed)? {
            let error = io::Error::other("it stores another name");
            return Err(target::name_rejected(&at, &error));
        }
        probe.dir.remove_file(name).map_err(failed)?;
    }
    let mut tested = 0;
    for group in groups {
        let mut created: Vec<&str> = Vec::with_capacity(group.len());
        for &path in &group {
            if stop.is_cancelled() {
                return Err(target::stopped());
            }
            if tested == MAX_TESTED {
                return Ok(());
            }
            tested += 1;
            let name = name_of(path);
            match probe.create(name) {
                Ok(_) => created.push(name),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let other = probe.same_as(&created, name).map_err(failed)?;
                    let first =
                        other.and_then(|other| group.iter().find(|path| name_of(path) == other));
                    let clash = NameClash {
                        first: (*first.unwrap_or(&group[0])).to_owned(),
                        second: path.to_owned(),
                    };
                    return Err(clash.problem(root));
                }
                Err(error) => return Err(target::target_problem(&root.join(path), &error)),
            }
        }
        for name in created {
            probe.dir.remove_file(name).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether files in this folder can share blocks, so that copies need no space.
pub(crate) fn can_clone(dir: &Dir, manifest: &Manifest) -> bool {
    let test = || -> io::Result<()> {
        let probe = Probe::make(dir, manifest)?;
        let mut source = probe.create("a")?;
        source.write_all(&[1; 4096])?;
        clone_file(&source, &probe.create("b")?)
    };
    test().is_ok()
}

fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Paths whose names some file systems reject: one for each possible reason.
fn odd_paths(manifest: &Manifest) -> Vec<&str> {
    let mut odd = Vec::new();
    let mut reserved = HashSet::new();
    let (mut dot, mut space) = (false, false);
    let mut non_ascii: HashSet<char> = HashSet::new();
    let mut non_ascii_names = 0;
    let mut longest: Option<&str> = None;
    let mut examine = |path| {
        let name = name_of(path);
        let mut is_odd = false;
        for c in RESERVED {
            is_odd |= name.contains(c) && reserved.insert(c);
        }
        is_odd |= name.ends_with('.') && !std::mem::replace(&mut dot, true);
        is_odd |= name.ends_with(' ') && !std::mem::replace(&mut space, true);
        if !name.is_ascii() && non_ascii_names < MAX_NON_ASCII {
            let before = non_ascii.len();
            non_ascii.extend(name.chars().filter(|c| !c.is_ascii()));
            if non_ascii.len() > before {
                non_ascii_names += 1;
                is_odd = true;
            }
        }
        if name.len() > longest.map_or(SHORT_NAME, |path| name_of(path).len()) {
            longest = Some(path);
        }
        if is_odd {
            odd.push(path);
        }
    };
    manifest.folders().for_each(&mut examine);
    manifest.entries().for_each(|entry| examine(entry.path.as_str()));
    odd.extend(longest);
    odd
}
