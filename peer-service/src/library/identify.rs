//! What a file or folder would be shared as, without sharing it: the same walk, the same hashing, the same manifest, and no
//! trace left.

use std::path::Path;

use potluck_core::{
    Problem, Reason,
    hash::hash_bytes,
    index_client::{FileRecord, Kind},
    manifest::{Content, Entry, Manifest},
};

use super::{
    hasher::{changed, hash_many, hash_one, record_of},
    walk::{Found, Refused, What, special, unreadable, walk},
};

/// What a path would be shared as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The file, or the collection's list of files.
    pub record: FileRecord,
    /// Files in it; 1 for a file.
    pub file_count: u64,
    /// Bytes of content: of a collection its files', each path counted.
    pub content_size: u64,
}

/// Hashes what stands at `path`. Blocks: call it off the async threads.
///
/// `on_found` is told bytes that will be hashed, `on_hashed` bytes that are; both from any thread. `cancelled` is asked
/// often whether to stop.
///
/// # Errors
/// Everything that cannot be shared, each with its path; [`Reason::Cancelled`] where it was told to stop.
pub fn identify(
    path: &Path,
    threads: usize,
    on_found: &(dyn Fn(u64) + Sync),
    on_hashed: &(dyn Fn(u64) + Sync),
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Identified, Vec<Refused>> {
    let refuse = |problem| vec![(path.to_owned(), problem)];
    let metadata = path.metadata().map_err(|error| refuse(unreadable(&error)))?;
    if metadata.is_dir() {
        let found = walk(path)?;
        let manifest = manifest(path, &found, threads, on_found, on_hashed, cancelled)?;
        return Ok(Identified {
            record: record_of(&hash_bytes(&manifest.encode()), Kind::Collection),
            file_count: manifest.file_count(),
            content_size: manifest.content_size(),
        });
    }
    if !metadata.is_file() {
        return Err(refuse(special(metadata.file_type())));
    }
    on_found(metadata.len());
    let done = hash_one(path, threads, &|_, bytes| on_hashed(bytes), cancelled).map_err(refuse)?;
    Ok(Identified {
        record: done.record(),
        file_count: 1,
        content_size: done.tree.size,
    })
}

fn manifest(
    root: &Path,
    found: &[Found],
    threads: usize,
    on_found: &(dyn Fn(u64) + Sync),
    on_hashed: &(dyn Fn(u64) + Sync),
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Manifest, Vec<Refused>> {
    let files: Vec<_> = found
        .iter()
        .filter_map(|one| match &one.what {
            What::File { stamp, .. } => Some((root.join(one.path.as_str()), stamp.size)),
            _ => None,
        })
        .collect();
    on_found(files.iter().map(|(_, size)| size).sum());
    let mut results = hash_many(&files, threads, &|_, bytes| on_hashed(bytes), cancelled)
        .into_iter()
        .zip(&files);
    let mut problems = Vec::new();
    let mut entries = Vec::with_capacity(found.len());
    for one in found {
        let content = match &one.what {
            What::EmptyFolder => Content::EmptyDirectory,
            What::Link(target) => Content::Link {
                target: target.clone(),
            },
            What::File { stamp, executable } => match results.next() {
                // Another stamp than the walk's: something else stands there now.
                Some((Some(Ok(done)), (path, _))) if done.stamp != *stamp => {
                    problems.push((path.clone(), changed()));
                    continue;
                }
                Some((Some(Ok(done)), _)) => Content::File {
                    id: done.tree.id(),
                    size: done.tree.size,
                    executable: *executable,
                },
                Some((Some(Err(problem)), (path, _))) => {
                    problems.push((path.clone(), problem));
                    continue;
                }
                Some((None, _)) | None => {
                    let stopped = Problem::new(Reason::Cancelled, "hashing was stopped");
                    return Err(vec![(root.to_owned(), stopped)]);
                }
            },
        };
        entries.push(Entry {
            path: one.path.clone(),
            content,
        });
    }
    match problems.is_empty() {
        true => Manifest::new(entries).map_err(|error| vec![(root.to_owned(), error.into())]),
        false => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &Path) -> Identified {
        identify(path, 2, &|_| {}, &|_| {}, &|| false).unwrap()
    }

    #[test]
    fn a_folder_is_its_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&a, &b] {
            std::fs::create_dir_all(folder.join("sub/empty")).unwrap();
            std::fs::write(folder.join("sub/file"), "1").unwrap();
            std::os::unix::fs::symlink("sub/file", folder.join("link")).unwrap();
        }
        assert_eq!(of(&a), of(&b));
        assert_eq!((of(&a).file_count, of(&a).content_size), (1, 1));
        std::fs::write(b.join("sub/file"), "2").unwrap();
        assert_ne!(of(&a).record.id, of(&b).record.id);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = identify(&dir.path().join("none"), 1, &|_| {}, &|_| {}, &|| false).unwrap_err();
        assert_eq!(refused[0].1.reason, Reason::NotFound);
        std::fs::write(dir.path().join("x"), "1").unwrap();
        let refused = identify(dir.path(), 1, &|_| {}, &|_| {}, &|| true).unwrap_err();
        assert_eq!(refused[0].1.reason, Reason::Cancelled);
    }
}
