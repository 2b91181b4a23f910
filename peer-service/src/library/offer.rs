//! What the library gives to the serving side: one [`Offer`] a file, and the handles of the files last read.
//!
//! Invariant: a handle is given out, and bytes read from it are let go, only while `stat` of it says what it said when the
//! file was hashed.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use potluck_core::{FileId, FileLayout, Problem, Reason, index_client::FileRecord, merkle::Hash};
use tokio::sync::watch;

use super::{
    Inner,
    catalog::{Body, Catalog, MANIFEST, Place},
    hasher::open_regular,
    walk::stamp_of,
};
use crate::{
    bits::Bits,
    offer::{Offer, Units},
    store::Stamp,
};

/// Most files kept open: the spans of one request are often of few files, and of one file's readers many.
const MAX_HANDLES: usize = 64;

/// How long an unused handle is kept: it holds on to the space of a file that is removed.
pub(super) const HANDLE_IDLE: Duration = Duration::from_secs(10);

/// A file that the library holds.
#[derive(Debug)]
pub(super) struct LibraryOffer {
    inner: Arc<Inner>,
    record: FileRecord,
}

impl LibraryOffer {
    pub(super) fn find(inner: &Arc<Inner>, id: &FileId) -> Option<Self> {
        Self::of(inner, &inner.catalog(), id)
    }

    /// The same, if the catalog is free.
    pub(super) fn find_now(inner: &Arc<Inner>, id: &FileId) -> Option<Self> {
        Self::of(inner, &*inner.catalog_now()?, id)
    }

    fn of(inner: &Arc<Inner>, catalog: &Catalog, id: &FileId) -> Option<Self> {
        let record = catalog.held(id)?.record;
        Some(Self {
            inner: inner.clone(),
            record,
        })
    }

    /// Units of a collection's content.
    fn content_units(&self) -> Option<u32> {
        let catalog = self.inner.catalog();
        let mut places = catalog.places(&self.record.id).into_iter();
        places.find_map(|place| match &catalog.item(place.item)?.body {
            Body::Collection(folder) if place.entry == MANIFEST => Some(folder.units),
            _ => None,
        })
    }
}

impl Offer for LibraryOffer {
    fn record(&self) -> FileRecord {
        self.record
    }

    fn name(&self) -> String {
        let catalog = self.inner.catalog();
        let names = catalog.registration(&self.record.id).map(|known| known.names);
        names.unwrap_or_default().into_iter().next().unwrap_or_default()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        let pieces = FileLayout::new(self.record.size).map_or(0, |layout| layout.piece_count());
        if pieces < 2 {
            return Ok(Arc::from([]));
        }
        let layer = self.inner.layer(&self.record.id).map_err(|error| {
            tracing::warn!(id = %self.record.id, %error, "the piece hashes cannot be read");
            Problem::new(Reason::StoreUnavailable, "the piece hashes cannot be read now")
        })?;
        layer
            .filter(|layer| layer.len() == pieces as usize)
            .ok_or_else(|| {
                Problem::new(
                    Reason::PieceNotAvailable,
                    format!("no piece hashes of {} here", self.record.id),
                )
            })
    }

    fn units(&self) -> Units {
        let count = self
            .content_units()
            .unwrap_or_else(|| FileLayout::new(self.record.size).map_or(0, |layout| layout.piece_count()));
        Units {
            have: Bits::full(count),
            fetching: Bits::new(count),
        }
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.inner.watch(&self.record.id))
    }

    fn open(&self, _range: Range<u64>) -> Result<Arc<File>, Problem> {
        self.inner.open(&self.record.id)
    }

    fn open_now(&self, _range: Range<u64>) -> Option<Arc<File>> {
        let file = self.inner.handles().get(&self.record.id)?;
        self.is_unchanged(&file).then_some(file)
    }

    fn is_unchanged(&self, file: &File) -> bool {
        let known = self
            .inner
            .catalog_now()
            .and_then(|catalog| self.inner.candidates(&catalog, &self.record.id));
        fits(known.as_ref(), file)
    }

    fn check(&self, file: &File) -> Result<(), Problem> {
        self.inner.check(&self.record.id, file)
    }
}

pub(super) fn file_changed(id: &FileId) -> Problem {
    Problem::new(
        Reason::FileChanged,
        format!("the file shared as {id} is not what it was any more"),
    )
}

/// One copy of a file: its place, where that is on disk, and what `stat` should say. The manifest's own blob has no stamp kept
/// in the database: its size stands for it, as nobody but the peer writes there and readers verify.
#[derive(Debug)]
struct Candidate {
    place: Place,
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Candidate {
    fn fits(&self, stamp: &Stamp, record: &FileRecord) -> bool {
        self.stamp
            .map_or(stamp.size == record.size, |known| known == *stamp)
    }
}

impl Inner {
    fn candidates(&self, catalog: &Catalog, id: &FileId) -> Option<(FileRecord, Vec<Candidate>)> {
        let record = catalog.held(id)?.record;
        let places = catalog.places(id);
        let candidates = places.into_iter().filter_map(|place| match place.entry {
            MANIFEST => Some(Candidate {
                place,
                path: self.manifest_path(id),
                stamp: None,
            }),
            entry => {
                let (path, stamp) = catalog.item(place.item)?.locate(entry)?;
                Some(Candidate {
                    place,
                    path,
                    stamp: Some(stamp),
                })
            }
        });
        Some((record, candidates.collect()))
    }

    /// Opens a copy that is still what was hashed. Those found changed on the way are withdrawn.
    fn open(&self, id: &FileId) -> Result<Arc<File>, Problem> {
        // Apart from the condition: the handles must not stay locked in the branch.
        let open = self.handles().get(id);
        if let Some(file) = open {
            if self.check(id, &file).is_ok() {
                return Ok(file);
            }
            self.handles().remove(id);
        }
        let (record, candidates) = self
            .candidates(&self.catalog(), id)
            .ok_or_else(|| file_changed(id))?;
        for candidate in candidates {
            match open_regular(&candidate.path) {
                Ok((file, stamp)) if candidate.fits(&stamp, &record) => {
                    let file = Arc::new(file);
                    self.handles().put(*id, file.clone());
                    return Ok(file);
                }
                // The machine's trouble, such as too many open files, says nothing about the file.
                Err(problem) if problem.reason == Reason::Internal => {
                    tracing::warn!(path = %candidate.path.display(), %problem, "a shared file cannot be opened");
                    return Err(Problem::new(
                        Reason::StoreUnavailable,
                        "the file cannot be opened now",
                    ));
                }
                _ => self.withdraw(candidate.place),
            }
        }
        Err(file_changed(id))
    }

    /// Whether an open file is still a copy of what was hashed; if not, every copy is looked at.
    fn check(&self, id: &FileId, file: &File) -> Result<(), Problem> {
        let known = self.candidates(&self.catalog(), id);
        if fits(known.as_ref(), file) {
            return Ok(());
        }
        self.handles().remove(id);
        let (record, candidates) = known.ok_or_else(|| file_changed(id))?;
        for candidate in candidates {
            let now = candidate.path.metadata().ok().map(|metadata| stamp_of(&metadata));
            if !now.is_some_and(|now| candidate.fits(&now, &record)) {
                self.withdraw(candidate.place);
            }
        }
        Err(file_changed(id))
    }

    /// Where a copy is that is still what was hashed.
    pub(super) fn locate(&self, id: &FileId) -> Option<PathBuf> {
        let (record, candidates) = self.candidates(&self.catalog(), id)?;
        let mut found = None;
        for candidate in candidates {
            let path = match candidate.place.entry {
                MANIFEST => self.unchanged_folder(candidate.place.item),
                _ => {
                    let now = candidate.path.metadata().ok().map(|metadata| stamp_of(&metadata));
                    let same = now.is_some_and(|now| candidate.fits(&now, &record));
                    if !same {
                        self.withdraw(candidate.place);
                    }
                    same.then_some(candidate.path)
                }
            };
            found = found.or(path);
        }
        found
    }

    /// Told when the file is withdrawn: the sender is dropped then.
    fn watch(&self, id: &FileId) -> watch::Receiver<u64> {
        let mut watchers = self.watchers();
        // The file may be gone since it was found: a sender that nobody drops would hide that.
        if self.catalog().held(id).is_none() {
            return watch::channel(0).1;
        }
        watchers
            .entry(*id)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }
}

/// Whether an open file is one of these copies.
fn fits(known: Option<&(FileRecord, Vec<Candidate>)>, file: &File) -> bool {
    let stamp = file.metadata().ok().map(|metadata| stamp_of(&metadata));
    known.zip(stamp).is_some_and(|((record, candidates), stamp)| {
        candidates.iter().any(|candidate| candidate.fits(&stamp, record))
    })
}

/// The files last read, kept open.
#[derive(Debug, Default)]
pub(super) struct Handles {
    /// Least lately used first.
    open: VecDeque<(FileId, Arc<File>, Instant)>,
}

impl Handles {
    fn get(&mut self, id: &FileId) -> Option<Arc<File>> {
        let index = self.open.iter().position(|(held, ..)| held == id)?;
        let (id, file, _) = self.open.remove(index)?;
        self.open.push_back((id, file.clone(), Instant::now()));
        Some(file)
    }

    fn put(&mut self, id: FileId, file: Arc<File>) {
        self.remove(&id);
        if self.open.len() == MAX_HANDLES {
            self.open.pop_front();
        }
        self.open.push_back((id, file, Instant::now()));
    }

    pub(super) fn remove(&mut self, id: &FileId) {
        self.open.retain(|(held, ..)| held != id);
    }

    /// Closes those unused for [`HANDLE_IDLE`].
    pub(super) fn sweep(&mut self, now: Instant) {
        self.open
            .retain(|(_, _, used)| now.saturating_duration_since(*used) < HANDLE_IDLE);
    }
}
