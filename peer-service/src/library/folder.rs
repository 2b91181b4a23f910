//! From what was found in a folder to what a collection is made of: hashing what is not known, and the manifest.
//!
//! Blocks; run off the async threads.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use potluck_core::{
    FileId, Problem, Reason,
    index_client::FileRecord,
    manifest::{Content, Entry, Manifest},
    path::RelPath,
};

use super::{
    hasher::{Done, changed, hash_many, sum_of},
    hashes::Hashes,
    share::Watch,
    walk::{Found, MAX_PROBLEMS, Refused, What},
};

/// A folder whose files are all hashed.
#[derive(Debug)]
pub(super) struct HashedFolder {
    pub(super) hashes: Hashes,
}

/// What cannot be shared because it was told to stop.
pub(super) fn stopped() -> Problem {
    Problem::new(Reason::Cancelled, "sharing was stopped")
}

/// Hashes the files that are not `known`, by their number among what was found.
///
/// # Errors
/// Everything that cannot be read or changes meanwhile, up to a bound; `CANCELLED`.
pub(super) fn hash_found(
    root: &Path,
    found: &Found,
    known: &dyn Fn(usize) -> Option<FileRecord>,
    threads: usize,
    watch: &Watch<'_>,
) -> Result<HashedFolder, Vec<Refused>> {
    let mut hashes = Hashes::new(found.len());
    let mut unknown: Vec<u32> = Vec::new();
    for (index, what) in found.files() {
        match known(index) {
            Some(record) => {
                hashes.roots[index] = record.root;
                let entry = index as u32;
                if let Some(sum) = record
                    .sha256
                    .filter(|_| sum_of(record.size, &record.root).is_none())
                {
                    hashes.sums.insert(entry, sum);
                }
                (watch.on_progress)(root, what.size);
            }
            // Fits: a folder has at most `MAX_ENTRIES`.
            None => unknown.push(index as u32),
        }
    }
    let made = Mutex::new((hashes, Vec::new()));
    let file = |at: usize| {
        let index = unknown[at] as usize;
        (
            root.join(found.path(index)),
            found.stamp(index).unwrap_or_default(),
        )
    };
    let on_done = |at: usize, path: &Path, result: Result<Done, Problem>| {
        let index = unknown[at];
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        let (hashes, problems): &mut (Hashes, Vec<Refused>) = &mut made;
        match result {
            Ok(done) if Some(done.stamp) == found.stamp(index as usize) => hashes.set(index, done.tree),
            // Another stamp than the walk's: something else stands there now, maybe a link out of the folder.
            Ok(_) if problems.len() < MAX_PROBLEMS => problems.push((path.to_owned(), changed())),
            Err(problem) if problems.len() < MAX_PROBLEMS => problems.push((path.to_owned(), problem)),
            _ => {}
        }
    };
    let all = hash_many(
        unknown.len(),
        &file,
        threads,
        watch.on_progress,
        watch.cancelled,
        &on_done,
    );
    let (hashes, problems) = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (problems.is_empty(), all) {
        (false, _) => Err(problems),
        (true, false) => Err(vec![(root.to_owned(), stopped())]),
        (true, true) => Ok(HashedFolder { hashes }),
    }
}

impl HashedFolder {
    /// The manifest of the folder.
    ///
    /// # Errors
    /// What a manifest cannot have.
    pub(super) fn manifest(&self, root: &Path, found: &Found) -> Result<Manifest, Vec<Refused>> {
        let refuse = |problem: Problem| vec![(PathBuf::from(root), problem)];
        let mut unsafe_path = None;
        let entries = found
            .iter()
            .zip(&self.hashes.roots)
            .map_while(|((path, what), root)| {
                let content = match what {
                    What::File { stamp, executable } => Content::File {
                        id: FileId::derive(stamp.size, root),
                        size: stamp.size,
                        executable: *executable,
                    },
                    What::EmptyFolder => Content::EmptyDirectory,
                    What::Link(target) => Content::Link { target },
                };
                let path = RelPath::parse(path).inspect_err(|error| unsafe_path = Some(*error));
                path.ok().map(|path| Entry { path, content })
            });
        let manifest = Manifest::new(entries).map_err(|error| refuse(error.into()))?;
        match unsafe_path {
            Some(error) => Err(refuse(Problem::new(Reason::InvalidName, error.to_string()))),
            None => Ok(manifest),
        }
    }
}
