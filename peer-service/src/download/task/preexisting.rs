//! Checks the existing content at the target: matching content completes the download; other
//! content is never overwritten.

use std::{
    cell::OnceCell,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Problem,
    bitfield::Bitfield,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::Label,
        plan::Plan,
    },
    files::{open_own, open_regular},
    identity::{hash, merkle::FileTree},
    model::FileKind,
};
use tokio_util::sync::CancellationToken;

use crate::{
    download::{
        context::DownloadContext,
        engine::verifier::UnitVerifier,
        selection::Chosen,
        status::{DownloadSpec, reporter::StatusReporter},
        storage::{
            resume_state::ResumeState,
            target::{self, DownloadTarget},
        },
    },
    fs::{
        blocking::{blocking_cancellable, continue_unless},
        modes::may_lack_modes,
    },
    library::{EntryHashes, stamp_of, stamps_at},
};

/// Mode bits that allow execution.
const ANY_EXECUTE: u32 = 0o111;

/// The target, if it follows from the request alone and is an existing file.
pub(crate) fn early_target(
    requested: Option<&Path>,
    name: Option<&str>,
    files: &Path,
) -> Option<DownloadTarget> {
    let target = match (requested, name) {
        (Some(path), _) if !path.is_dir() => Some(DownloadTarget {
            path: path.to_owned(),
        }),
        (requested, Some(name)) => DownloadTarget::resolve(requested, name, files).ok(),
        _ => None,
    };
    target.filter(|target| target.path.is_file())
}

/// The target once the content is known. An existing folder is the target if it has entries of the
/// collection and nothing else, or an unfinished download of it; otherwise the collection goes
/// inside the folder.
pub(crate) fn resolve_target(
    id: FileId,
    requested: Option<&Path>,
    name: &str,
    files: &Path,
    manifest: Option<&Manifest>,
) -> Result<DownloadTarget, Problem> {
    if let (Some(folder), Some(manifest)) = (requested, manifest)
        && folder.is_dir()
    {
        target::check_target(folder)?;
        let own = DownloadTarget {
            path: folder.to_owned(),
        };
        let is_unfinished = ResumeState::load(&own.state())
            .ok()
            .flatten()
            .is_some_and(|state| state.id == id);
        let is_part = || {
            let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
            !is_empty && check_listing(folder, manifest, &CancellationToken::new()).is_ok()
        };
        if is_unfinished || (!manifest.is_empty() && is_part()) {
            return Ok(own);
        }
    }
    DownloadTarget::resolve(requested, name, files)
}

/// Whether the file is already at `path`. If `shares`, a verified file is shared like a download,
/// under this label.
///
/// # Errors
/// `TARGET_EXISTS` if something else is at the path, and the reason of the I/O error if the path
/// cannot be read.
pub(crate) async fn is_file_complete(
    context: &DownloadContext,
    spec: &DownloadSpec,
    path: &Path,
    label: Option<Label>,
    shares: bool,
    reporter: &StatusReporter,
) -> Result<bool, Problem> {
    let id = spec.id;
    // Without a root, the SHA-256 says whether it is the file.
    let sum = spec.provisional_origin().map(|origin| origin.sha256);
    let (library, owned) = (context.library.clone(), path.to_owned());
    let threads = context.resources.hash_threads;
    let found = blocking_cancellable(move |stop| {
        let metadata = match fs::symlink_metadata(&owned) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(target::target_problem(&owned, &error)),
            // Follows a symbolic link at the target itself, which the user made on purpose.
            Ok(_) => fs::metadata(&owned).map_err(|_| target::target_exists(&owned))?,
        };
        if !metadata.is_file() {
            return Err(target::target_exists(&owned));
        }
        if library
            .locate(&id)
            .is_some_and(|shared| fs::canonicalize(&owned).is_ok_and(|path| path == shared))
        {
            return Ok(Some((metadata.len(), None)));
        }
        // Taken before the file is read, so that a later change shows in the stamp.
        let hashed = open_regular(&owned).and_then(|file| {
            let stamp = stamp_of(&file.metadata()?);
            let tree = hash::hash_file(&file, metadata.len(), threads, &|_| continue_unless(stop))?;
            let is_it = match sum {
                Some(sum) => hash::sha256_file(&file, &|_| continue_unless(stop))? == sum,
                None => tree.id() == id,
            };
            Ok((is_it, tree, stamp))
        });
        match hashed {
            Ok((true, tree, stamp)) => Ok(Some((metadata.len(), Some((tree, stamp))))),
            Ok(_) => Err(target::target_exists(&owned)),
            Err(error) => Err(target::target_unreadable(&owned, &error)),
        }
    })
    .await??;
    let Some((size, hashed)) = found else {
        return Ok(false);
    };
    reporter.set_preexisting(FileKind::File, size);
    if let Some((tree, _)) = hashed.as_ref().filter(|_| sum.is_some()) {
        reporter.set_id(tree.id());
    }
    if let Some((tree, stamp)) = hashed.filter(|_| shares)
        && let Err(problem) = context
            .library
            .adopt_file(path.to_owned(), tree, stamp, sum, label)
            .await
    {
        tracing::warn!(
            path = %path.display(), %problem,
            "was at the target already, but cannot be shared"
        );
        reporter.set_not_shared(problem);
    }
    Ok(true)
}

/// What is at the target of a collection.
#[derive(Debug)]
pub(crate) enum FolderState {
    /// Nothing.
    Absent,
    /// Every chosen entry.
    Complete,
    /// A folder with some entries of the collection and nothing else. The bits are the chosen
    /// entries that are there, all verified.
    Incomplete(Bitfield),
}

/// Examines the folder at `path`. If `shares`, a folder that matches the whole manifest is shared
/// like a download, under this label.
///
/// # Errors
/// `TARGET_EXISTS` if something is there that does not belong to the collection, and the reason of
/// the I/O error if the path cannot be read.
pub(crate) async fn examine_folder(
    context: &DownloadContext,
    path: &Path,
    manifest: &Arc<Manifest>,
    chosen: &Chosen,
    label: Option<Label>,
    shares: bool,
    reporter: &StatusReporter,
) -> Result<FolderState, Problem> {
    let (owned, expected) = (path.to_owned(), Arc::clone(manifest));
    let entries = chosen.entries.clone();
    let found = blocking_cancellable(move |stop| {
        match fs::symlink_metadata(&owned) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FolderState::Absent),
            Err(error) => return Err(target::target_problem(&owned, &error)),
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(target::target_exists(&owned)),
        }
        if entries.is_full() && matches_manifest(&owned, &expected) {
            return Ok(FolderState::Complete);
        }
        check_listing(&owned, &expected, stop)?;
        existing_entries(&owned, &expected, &entries, stop).map(FolderState::Incomplete)
    });
    match found.await?? {
        // Hashes all files.
        FolderState::Complete => {
            let there =
                is_folder_complete(context, path, manifest, label, shares, reporter).await?;
            Ok(if there {
                FolderState::Complete
            } else {
                FolderState::Absent
            })
        }
        FolderState::Incomplete(there) if there == chosen.entries => {
            let size = there.ones().map(|entry| size_of(manifest, entry)).sum();
            reporter.set_preexisting(FileKind::Collection, size);
            Ok(FolderState::Complete)
        }
        state => Ok(state),
    }
}

/// The size of an entry in bytes; 0 if it is not a file.
pub(crate) fn size_of(manifest: &Manifest, entry: u32) -> u64 {
    match manifest.content(entry) {
        Some(EntryContent::File { size, .. }) => size,
        _ => 0,
    }
}

/// Whether the folder at `path` contains every entry of the collection, as far as that shows without
/// reading a file. Blocks.
pub(crate) fn is_whole_collection(path: &Path, manifest: &Manifest) -> bool {
    matches_manifest(path, manifest)
}

/// Fails if the folder contains something that the manifest does not list or imply, or a file of
/// another size. Does not follow links.
fn check_listing(
    root: &Path,
    manifest: &Manifest,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let unreadable = |error: io::Error| target::target_unreadable(&root.join(&folder), &error);
        for entry in fs::read_dir(root.join(&folder)).map_err(unreadable)? {
            if stop.is_cancelled() {
                return Err(target::stopped());
            }
            let entry = entry.map_err(unreadable)?;
            let path = folder.join(entry.file_name());
            let listed = path.to_str().and_then(|path| manifest.find(path));
            let is_folder = path.to_str().is_some_and(|path| manifest.is_folder(path));
            let kind = entry.file_type().map_err(unreadable)?;
            let belongs = match listed.and_then(|entry| manifest.content(entry)) {
                Some(EntryContent::File { size, .. }) => {
                    kind.is_file() && entry.metadata().map_err(unreadable)?.len() == size
                }
                Some(EntryContent::Link { .. }) => kind.is_symlink(),
                Some(EntryContent::EmptyDirectory) => kind.is_dir(),
                None => is_folder && kind.is_dir(),
            };
            if !belongs {
                return Err(target::target_exists(&root.join(&path)));
            }
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// The chosen entries that are in the folder. Hashes the files.
///
/// # Errors
/// `TARGET_EXISTS` if an entry differs from the collection's.
fn existing_entries(
    root: &Path,
    manifest: &Manifest,
    chosen: &Bitfield,
    stop: &CancellationToken,
) -> Result<Bitfield, Problem> {
    let mut there = Bitfield::new(chosen.len());
    for index in chosen.ones() {
        let Some(entry) = manifest.get(index) else {
            continue;
        };
        let path = root.join(entry.path.as_str());
        let unreadable = |error: io::Error| target::target_unreadable(&path, &error);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            found => found.map_err(unreadable)?,
        };
        let is_same = match entry.content {
            // `check_listing` has found a folder.
            EntryContent::EmptyDirectory => true,
            EntryContent::Link { target } => {
                fs::read_link(&path).is_ok_and(|found| found == Path::new(target))
            }
            // `check_listing` has compared the size.
            EntryContent::File { id, size, .. } => {
                hash_entry(root, &entry, size, stop).map_err(unreadable)?.id() == id
            }
        };
        if !is_same {
            return Err(target::target_exists(&path));
        }
        there.set(index, true);
    }
    Ok(there)
}

/// Whether the folder at `path` matches the manifest completely. If `shares`, a matching folder is
/// shared like a download, under this label.
///
/// # Errors
/// `TARGET_EXISTS` if something else is at the path, and the reason of the I/O error if the path
/// cannot be read.
async fn is_folder_complete(
    context: &DownloadContext,
    path: &Path,
    manifest: &Arc<Manifest>,
    label: Option<Label>,
    shares: bool,
    reporter: &StatusReporter,
) -> Result<bool, Problem> {
    let (owned, expected) = (path.to_owned(), Arc::clone(manifest));
    let found = blocking_cancellable(move |stop| {
        match fs::symlink_metadata(&owned) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(target::target_problem(&owned, &error)),
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(target::target_exists(&owned)),
        }
        if !matches_manifest(&owned, &expected) {
            return Err(target::target_exists(&owned));
        }
        let stamps = stamps_at(&owned, &expected).map_err(|_| target::target_exists(&owned))?;
        match hash_folder(&owned, &expected, stop) {
            Ok(hashes) => Ok(Some((expected.content_size(), stamps, hashes))),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(target::target_exists(&owned))
            }
            Err(error) => Err(target::target_unreadable(&owned, &error)),
        }
    })
    .await??;
    let Some((size, stamps, hashes)) = found else {
        return Ok(false);
    };
    reporter.set_preexisting(FileKind::Collection, size);
    if !shares {
        return Ok(true);
    }
    let adopted = context
        .library
        .adopt_collection(path.to_owned(), Arc::clone(manifest), stamps, hashes, label)
        .await;
    if let Err(problem) = adopted {
        tracing::warn!(
            path = %path.display(), %problem,
            "was at the target already, but cannot be shared"
        );
        reporter.set_not_shared(problem);
    }
    Ok(true)
}

/// Whether every entry exists with the right type, size, mode and link target, without reading a
/// file. Modes and links are ignored on file systems without them.
fn matches_manifest(root: &Path, manifest: &Manifest) -> bool {
    let lacks_modes = OnceCell::new();
    let lacks_modes = || *lacks_modes.get_or_init(|| may_lack_modes(root));
    manifest.entries().all(|entry| {
        let path = root.join(entry.path.as_str());
        let is_link = matches!(entry.content, EntryContent::Link { .. });
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => return is_link && error.kind() == ErrorKind::NotFound && lacks_modes(),
        };
        match entry.content {
            EntryContent::EmptyDirectory => metadata.is_dir(),
            EntryContent::Link { target } => {
                fs::read_link(&path).is_ok_and(|found| found == Path::new(target))
            }
            EntryContent::File { size, executable, .. } => {
                let mode = metadata.permissions().mode();
                let is_executable = mode & ANY_EXECUTE != 0;
                let fits = is_executable == executable || (is_executable && lacks_modes());
                metadata.is_file() && metadata.len() == size && fits
            }
        }
    })
}

/// Hashes every file of a folder. Fails with `InvalidData` if a file does not match the manifest.
fn hash_folder(
    root: &Path,
    manifest: &Manifest,
    stop: &CancellationToken,
) -> io::Result<EntryHashes> {
    let mut hashes = EntryHashes::new(manifest.len());
    for (index, entry) in (0..).zip(manifest.entries()) {
        let EntryContent::File { id, size, .. } = entry.content else {
            continue;
        };
        let tree = hash_entry(root, &entry, size, stop)?;
        if tree.id() != id {
            return Err(ErrorKind::InvalidData.into());
        }
        hashes.set(index, tree);
    }
    Ok(hashes)
}

fn hash_entry(
    root: &Path,
    entry: &ManifestEntry<'_>,
    size: u64,
    stop: &CancellationToken,
) -> io::Result<FileTree> {
    let file = open_own(&root.join(entry.path.as_str()))?;
    hash::hash_file(&file, size, 1, &|_| continue_unless(stop))
}

/// The hashes of a finalized collection: from the verifier, or by hashing files that an earlier run
/// downloaded. Stops early if cancelled.
pub(crate) fn collect_hashes(
    verifier: &UnitVerifier,
    plan: &Plan,
    manifest: &Manifest,
    root: &Path,
    stop: &CancellationToken,
) -> io::Result<EntryHashes> {
    let mut hashes = EntryHashes::new(manifest.len());
    for (file, planned) in plan.files().enumerate() {
        let first = plan.first_entry(file).ok_or(ErrorKind::InvalidInput)?;
        let tree = match (verifier.tree(file), manifest.get(first)) {
            (Some(tree), _) => tree,
            (None, Some(entry)) => hash_entry(root, &entry, planned.size, stop)?,
            (None, None) => return Err(ErrorKind::InvalidInput.into()),
        };
        hashes.set(first, tree);
    }
    // Files with the same content are one file of the plan.
    for entries in manifest.contents() {
        for &copy in &entries[1..] {
            hashes.copy(entries[0], copy);
        }
    }
    Ok(hashes)
}
