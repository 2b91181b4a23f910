//! Turns a snapshot of a folder into a manifest: hashes the files that are not known and lists all
//! entries.
//!
//! Blocks: run it off the async threads.

use std::{collections::BTreeMap, path::Path};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem, Reason,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    identity::merkle::ids_of,
    model::FileRecord,
};

use crate::{
    catalog::{record::small_file_sha256, stamp::Stamp},
    library::{
        hash::{
            entry_hashes::{EntryHashes, without},
            hasher::{HashResult, hash_many},
            observer::HashObserver,
            open::BaseFolder,
        },
        problems::{MAX_PROBLEMS, Refused, changed_while_hashing, share_cancelled, single_refusal},
        scan::{
            omissions::OmissionKind,
            snapshot::{EntryKind, FileStat, Snapshot},
        },
    },
};

/// A folder whose files are all hashed.
#[derive(Debug)]
pub(crate) struct HashedFolder {
    pub(crate) hashes: EntryHashes,
    /// Meaningless for entries that are not files.
    ids: Vec<FileId>,
    /// Files that can no longer be read, and why.
    lost: BTreeMap<u32, Problem>,
}

/// A folder whose files are being hashed.
struct FolderHashing {
    hashed: HashedFolder,
    problems: Vec<Refused>,
}

impl HashedFolder {
    /// Sets a file from its known record.
    fn set_known(&mut self, index: usize, record: &FileRecord) {
        self.ids[index] = record.id;
        self.hashes.roots[index] = record.root;
        // A SHA-256 that equals the root is not stored.
        if let (Some(sha256), None) = (record.sha256, small_file_sha256(record.size, &record.root))
        {
            // Fits: a folder has at most `MAX_ENTRIES`.
            self.hashes.sha256s.insert(index as u32, sha256);
        }
    }

    /// Refuses the folder if files can no longer be read.
    ///
    /// # Errors
    /// The problem of each such file, up to a limit.
    pub(crate) fn refuse_lost(&self, root: &Path, snapshot: &Snapshot) -> Result<(), Vec<Refused>> {
        let lost = self.lost.iter().take(MAX_PROBLEMS);
        let refused: Vec<_> = lost
            .map(|(&index, problem)| (root.join(snapshot.path(index as usize)), problem.clone()))
            .collect();
        match refused.is_empty() {
            true => Ok(()),
            false => Err(refused),
        }
    }

    /// Leaves out the files that can no longer be read, here and in the snapshot.
    pub(crate) fn leave_out_lost(&mut self, root: &Path, snapshot: &mut Snapshot) {
        let lost = std::mem::take(&mut self.lost);
        if lost.is_empty() {
            return;
        }
        let indexes: Vec<u32> = lost.keys().copied().collect();
        for (index, problem) in lost {
            let path = root.join(snapshot.path(index as usize));
            let kind = OmissionKind::of_unreadable(problem.reason);
            snapshot
                .omitted
                .add(kind.unwrap_or(OmissionKind::Unreadable), path, problem);
        }
        snapshot.remove(&indexes);
        self.ids = without(&self.ids, &indexes);
        self.hashes.remove(&indexes);
    }
}

/// Returns the record of a file that was hashed before, by path and stamp.
pub(crate) type KnownFile<'a> = dyn Fn(&Path, &Stamp) -> Option<FileRecord> + Sync + 'a;

/// Hashes the files that are not `known`. Stores the `stat` of files that had none in `snapshot`.
///
/// Files that were removed meanwhile, or may not be read, are only noted: see
/// [`HashedFolder::leave_out_lost`].
///
/// # Errors
/// Everything else that cannot be read or changed meanwhile, up to a limit; `CANCELLED`.
pub(crate) fn hash_snapshot(
    root: &Path,
    snapshot: &Snapshot,
    known: Option<&KnownFile<'_>>,
    threads: usize,
    observer: &HashObserver<'_>,
) -> Result<HashedFolder, Vec<Refused>> {
    let mut hashed = HashedFolder {
        hashes: EntryHashes::new(snapshot.len()),
        ids: vec![FileId([0; 32]); snapshot.len()],
        lost: BTreeMap::new(),
    };
    let base = BaseFolder::at(root).map_err(|problem| single_refusal(root, problem))?;
    let mut unknown: Vec<u32> = Vec::new();
    for (index, stat) in snapshot.files() {
        let known = known.zip(stat);
        match known.and_then(|(known, stat)| known(&root.join(snapshot.path(index)), &stat.stamp)) {
            Some(record) => {
                hashed.set_known(index, &record);
                (observer.on_progress)(&|| root.to_owned(), record.size);
            }
            // Fits: a folder has at most `MAX_ENTRIES`.
            None => unknown.push(index as u32),
        }
    }
    let hashing = Mutex::new(FolderHashing {
        hashed,
        problems: Vec::new(),
    });
    let lock = || hashing.lock();
    let file = |at: usize| {
        let index = unknown[at] as usize;
        (Path::new(snapshot.path(index)), snapshot.stamp(index))
    };
    let is_wanted = |at: usize, path: &Path, stat: FileStat| {
        let index = unknown[at] as usize;
        snapshot.set_stat(index, stat);
        let path = || root.join(path);
        let record = known.and_then(|known| known(&path(), &stat.stamp));
        if let Some(record) = &record {
            (observer.on_size)(record.size);
            lock().hashed.set_known(index, record);
            (observer.on_progress)(&path, record.size);
        }
        record.is_none()
    };
    let on_done = |outcomes: Vec<HashResult<'_>>| {
        let trees = outcomes
            .iter()
            .filter_map(|(.., result)| Some(&result.as_ref().ok()?.tree));
        let mut ids = ids_of(trees).into_iter();
        let hashing = &mut *lock();
        for (at, path, result) in outcomes {
            let index = unknown[at];
            let problem = match result.map(|done| (done, ids.next())) {
                Ok((done, Some(id))) if Some(done.stamp) == snapshot.stamp(index as usize) => {
                    hashing.hashed.ids[index as usize] = id;
                    hashing.hashed.hashes.set(index, done.tree);
                    continue;
                }
                // The stamp differs from the snapshot: the file was replaced, maybe by a link out
                // of the folder.
                Ok(_) => changed_while_hashing(),
                Err(problem) if OmissionKind::of_unreadable(problem.reason).is_some() => {
                    hashing.hashed.lost.insert(index, problem);
                    continue;
                }
                Err(problem) => problem,
            };
            if hashing.problems.len() < MAX_PROBLEMS {
                hashing.problems.push((root.join(path), problem));
            }
        }
    };
    let count = unknown.len();
    let is_complete = hash_many(&base, count, &file, &is_wanted, &on_done, threads, observer);
    let FolderHashing { hashed, problems } = hashing.into_inner();
    match (problems.is_empty(), is_complete) {
        (false, _) => Err(problems),
        (true, false) => Err(single_refusal(root, share_cancelled())),
        (true, true) => Ok(hashed),
    }
}

impl HashedFolder {
    /// The manifest of the folder.
    ///
    /// # Errors
    /// A path or content that a manifest cannot hold.
    pub(crate) fn manifest(
        &self,
        root: &Path,
        snapshot: &Snapshot,
    ) -> Result<Manifest, Vec<Refused>> {
        let refuse = |problem: Problem| single_refusal(root, problem);
        let mut unsafe_path = None;
        let has_modes = snapshot.has_modes();
        let entries = snapshot.iter().zip(&self.ids).map_while(|((path, kind), id)| {
            let content = match kind {
                EntryKind::File(stat) => EntryContent::File {
                    id: *id,
                    size: stat.get().map_or(0, |stat| stat.stamp.size),
                    executable: has_modes && stat.get().is_some_and(|stat| stat.executable),
                },
                EntryKind::EmptyFolder => EntryContent::EmptyDirectory,
                EntryKind::Link(target) => EntryContent::Link { target },
                EntryKind::Vanished => EntryContent::EmptyDirectory,
            };
            let path = RelPath::parse(path).inspect_err(|error| unsafe_path = Some(*error));
            path.ok().map(|path| ManifestEntry { path, content })
        });
        let manifest = Manifest::new(entries).map_err(|error| refuse(error.into()))?;
        match unsafe_path {
            Some(error) => Err(refuse(Problem::new(Reason::InvalidName, error.to_string()))),
            None => Ok(manifest),
        }
    }
}
