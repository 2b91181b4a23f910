//! The manifests of collections, in files of the peer's state. Each is named by its id.
//!
//! Invariants:
//! - A manifest is durable when [`ManifestFolder::ensure`] returns.
//! - A file in the folder is never trusted: its bytes are compared, or hashed, each time it is
//!   opened.
//!
//! Blocks: use it off the async threads.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem, Reason,
    collection::{limits::MAX_MANIFEST_SIZE, manifest::Manifest},
    files,
    identity::hash::hash_bytes,
    model::{FileKind, FileRecord},
    problem::RAISE_OPEN_FILES,
};

use crate::{catalog::record::record_of, fs::durable, home};

/// The folder of the manifests, in the peer's state.
const MANIFESTS: &str = "manifests";

/// Bytes of a manifest file compared in one step.
const COMPARE_BUFFER: usize = 256 * 1024;

/// The stored manifests.
#[derive(Debug)]
pub(crate) struct ManifestFolder {
    folder: PathBuf,
    /// Held while a manifest is written: two writers would use the same temporary file.
    writing: Mutex<()>,
}

/// The manifest of a collection that the peer with this home shared or downloaded, if it is stored
/// and intact.
pub fn stored_manifest(home: &Path, id: FileId) -> Option<Manifest> {
    let folder = ManifestFolder::in_state(&home.join(home::STATE));
    folder.read(&id).map(|(_, manifest)| manifest)
}

impl ManifestFolder {
    /// The manifests in the folder of the peer's state.
    pub(crate) fn in_state(state: &Path) -> Self {
        Self {
            folder: state.join(MANIFESTS),
            writing: Mutex::default(),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a manifest.
    pub(crate) fn path(&self, id: &FileId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Reads and decodes a manifest. `None` if it is missing or damaged.
    pub(crate) fn read(&self, id: &FileId) -> Option<(FileRecord, Manifest)> {
        let bytes = files::read_own(&self.path(id), MAX_MANIFEST_SIZE).ok()?;
        let record = record_of(&hash_bytes(&bytes), FileKind::Collection);
        let manifest = (record.id == *id).then(|| Manifest::decode(bytes).ok())??;
        Some((record, manifest))
    }

    /// Opens a stored manifest. Writes a missing or damaged one again from memory, where it was
    /// verified against its id.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`: it can be neither read nor written.
    pub(crate) fn open(&self, id: &FileId, manifest: &Manifest) -> Result<File, Problem> {
        let path = self.path(id);
        if let Some(file) = open_intact(&path, manifest) {
            return Ok(file);
        }
        let _writing = self.writing.lock();
        let written = durable::write(&path, manifest.bytes(), 0o600);
        match written.map(|()| open_intact(&path, manifest)) {
            Ok(Some(file)) => {
                tracing::warn!(%id, "rewrote a missing or damaged manifest of a collection");
                Ok(file)
            }
            Ok(None) => Err(cannot_be_read(id, "it cannot be read back after writing it")),
            Err(error) => Err(cannot_be_read(id, &error)),
        }
    }

    /// Writes a manifest if it is missing: the last collection that had the same one may have been
    /// unshared.
    ///
    /// # Errors
    /// `DISK_FULL`, another exhausted resource, or `STORE_UNAVAILABLE`.
    pub(crate) fn ensure(&self, id: &FileId, manifest: &Manifest) -> Result<(), Problem> {
        let path = self.path(id);
        let _writing = self.writing.lock();
        if open_intact(&path, manifest).is_some() {
            return Ok(());
        }
        durable::write(&path, manifest.bytes(), 0o600)
            .map_err(|error| self.cannot_be_written(&error))
    }

    /// Deletes manifests. One that cannot be deleted only wastes a little space.
    pub(crate) fn remove(&self, ids: &[FileId]) {
        for id in ids {
            let _ = std::fs::remove_file(self.path(id));
        }
    }

    fn cannot_be_written(&self, error: &io::Error) -> Problem {
        let state = self.folder.parent().unwrap_or(&self.folder).display();
        match Reason::of_exhaustion(error) {
            Some(Reason::DiskFull) => Problem::new(
                Reason::DiskFull,
                format!("it is not shared: no room in {state}; make room and share it again"),
            ),
            Some(reason) => {
                Problem::new(reason, format!("cannot write in {state}: {RAISE_OPEN_FILES}"))
            }
            None => Problem::new(
                Reason::StoreUnavailable,
                format!("cannot write in {state}: {error}"),
            ),
        }
    }
}

/// Opens a manifest file if it holds exactly this manifest.
fn open_intact(path: &Path, manifest: &Manifest) -> Option<File> {
    let mut file = File::open(path).ok()?;
    let mut expected = &manifest.bytes()[..];
    let mut reader = BufReader::with_capacity(COMPARE_BUFFER, &file);
    loop {
        let read = reader.fill_buf().ok()?;
        if read.is_empty() {
            break;
        }
        expected = expected.strip_prefix(read)?;
        let len = read.len();
        reader.consume(len);
    }
    file.rewind().ok()?;
    expected.is_empty().then_some(file)
}

fn cannot_be_read(id: &FileId, why: impl std::fmt::Display) -> Problem {
    tracing::warn!(%id, %why, "the manifest of a collection cannot be read");
    Problem::new(
        Reason::StoreUnavailable,
        "the manifest of the collection cannot be read now",
    )
}
