//! Finds silent corruption: bytes on the disk that changed while the file's stamp did not.
//!
//! A damaged file is withdrawn immediately and its owner is notified. It is not hashed again
//! automatically (see the catalog's `damaged`). A check also verifies the stored piece hashes of
//! each file; a report of bad pieces also verifies the manifest. Damaged ones are written again.
//!
//! Blocks: run it off the async threads.

use std::{
    fs::File,
    io,
    ops::{ControlFlow, Range},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    collection::manifest::EntryContent,
    identity::{
        hash::{READ_SIZE, hash_file},
        merkle::{self, FileTree, Hash, PieceHasher},
    },
    model::FileRecord,
    read_buffer::ReadBuffer,
};
use tokio::sync::mpsc;

use crate::{
    content::BadPieces,
    library::{
        LibraryShared,
        catalog::{Delta, EntryIndex, ItemBody, Location, WHOLE_ITEM},
        content::is_layer_of,
        hash::open::open_regular,
        scan::walk::{Refused, stamp_of},
        share::build::{ShareCause, ShareObserver, resolve},
    },
    store::{Stamp, StoreChange},
};

/// Maximum bytes read for one report of bad pieces: one piece of the largest files.
pub(crate) const LARGEST: u64 = 16 * 1024 * 1024;

/// Minimum time between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// How soon a check that waits for its rate limit notices that it was cancelled.
const STEP: Duration = Duration::from_millis(50);

/// What to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckTarget {
    /// Everything that is shared.
    All,
    /// What is shared at this path or below it.
    Path(PathBuf),
}

/// Progress and results of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEvent {
    /// Progress. Byte counts are sums over all targets.
    Progress {
        /// The file that is being hashed.
        path: PathBuf,
        /// Bytes hashed so far.
        done: u64,
        /// Bytes to hash in total.
        total: u64,
    },
    /// A file is damaged or cannot be read.
    Bad {
        /// The file.
        path: PathBuf,
        /// The id under which it was shared.
        id: FileId,
        /// The reason.
        problem: Problem,
    },
    /// A target is not shared.
    Failed {
        /// The target.
        path: PathBuf,
        /// The reason.
        problem: Problem,
    },
    /// The check is complete.
    Done {
        /// Number of files hashed.
        files: u64,
        /// Number of bytes hashed.
        bytes: u64,
        /// Number of files that are damaged or cannot be read.
        bad: u64,
    },
}

/// A file of an item, to be hashed.
struct Subject {
    place: Location,
    path: PathBuf,
    record: FileRecord,
    stamp: Stamp,
}

/// An item's number and its files.
type OfItem = (u64, Vec<Subject>);

/// The result of hashing a file.
enum Checked {
    Good,
    Damaged,
    /// Its stamp changed too: it is hashed again in any case.
    Changed,
    Failed(Problem),
    Stopped,
}

impl LibraryShared {
    /// Implements [`crate::library::Library::check`].
    pub(crate) fn check_targets(
        &self,
        targets: &[CheckTarget],
        rate: u64,
        events: &mpsc::Sender<CheckEvent>,
    ) {
        let tell = |event: CheckEvent| events.blocking_send(event).is_ok();
        let mut items: Vec<OfItem> = Vec::new();
        for target in targets {
            match self.subjects(target) {
                Ok(more) => items.extend(more),
                Err((path, problem)) => {
                    if !tell(CheckEvent::Failed { path, problem }) {
                        return;
                    }
                }
            }
        }
        items.sort_by_key(|(number, _)| *number);
        items.dedup_by_key(|(number, subjects)| (*number, subjects.len()));
        let sizes = items
            .iter()
            .flat_map(|(_, subjects)| subjects)
            .map(|one| one.record.size);
        let pace = Pace::new(rate, sizes.sum(), events, &self.shutdown);
        let (mut files, mut bad) = (0, 0);
        for (number, subjects) in items {
            let mut good = Vec::new();
            for subject in &subjects {
                let checked = self.check_file(subject, &pace);
                let problem = match checked {
                    Checked::Stopped => return,
                    Checked::Good | Checked::Changed => None,
                    Checked::Damaged => Some(damaged_problem()),
                    Checked::Failed(problem) => Some(problem),
                };
                files += 1;
                let Some(problem) = problem else {
                    good.push(subject.place.entry);
                    continue;
                };
                bad += 1;
                let (path, id) = (subject.path.clone(), subject.record.id);
                if !tell(CheckEvent::Bad { path, id, problem }) {
                    return;
                }
            }
            self.trust_again(number, &good);
        }
        let bytes = pace.done();
        tracing::info!(files, bytes, bad, "checked");
        tell(CheckEvent::Done { files, bytes, bad });
    }

    /// The files of a target, by item.
    fn subjects(&self, target: &CheckTarget) -> Result<Vec<OfItem>, Refused> {
        let path = match target {
            CheckTarget::All => {
                let numbers: Vec<u64> = self
                    .catalog()
                    .items_after(None)
                    .map(|(number, _)| number)
                    .collect();
                let all = numbers.into_iter();
                return Ok(all
                    .map(|number| (number, self.subjects_of(number, None)))
                    .collect());
            }
            CheckTarget::Path(path) => path,
        };
        let resolved = resolve(path).unwrap_or_else(|_| path.clone());
        let item = {
            let catalog = self.catalog();
            let mut above = resolved.ancestors();
            above.find_map(|ancestor| Some((catalog.item_at(ancestor)?, ancestor.to_owned())))
        };
        let subjects = item.map(|(number, root)| {
            let below = resolved.strip_prefix(root).ok().and_then(Path::to_str);
            let below = below.filter(|below| !below.is_empty());
            (number, self.subjects_of(number, below))
        });
        match subjects {
            Some((number, subjects)) if !subjects.is_empty() => Ok(vec![(number, subjects)]),
            _ => {
                let message = "it is not shared: `potluck ls` tells what is";
                Err((path.clone(), Problem::new(Reason::NotFound, message)))
            }
        }
    }

    /// The files of an item, or only those below a path in it.
    fn subjects_of(&self, number: u64, below: Option<&str>) -> Vec<Subject> {
        let catalog = self.catalog();
        let Some(shared) = catalog.item(number) else {
            return Vec::new();
        };
        let subject = |part: EntryIndex| {
            Some(Subject {
                place: Location {
                    item: number,
                    entry: part,
                },
                path: shared.locate(part)?,
                record: shared.record(part)?,
                stamp: shared.stamp(part)?,
            })
        };
        let ItemBody::Collection(folder) = &shared.body else {
            return subject(WHOLE_ITEM).into_iter().collect();
        };
        let is_meant = |path: &str| {
            below.is_none_or(|below| {
                let rest = path.strip_prefix(below);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let entries = (0..).zip(folder.manifest.entries());
        let files = entries.filter(|(_, entry)| {
            matches!(entry.content, EntryContent::File { .. }) && is_meant(entry.path.as_str())
        });
        files.filter_map(|(part, _)| subject(part)).collect()
    }

    /// Hashes a file and compares the root. Withdraws a damaged file; restores damaged piece hashes
    /// of a good one.
    fn check_file(&self, subject: &Subject, pace: &Pace<'_>) -> Checked {
        let Subject {
            place: location,
            path,
            record,
            stamp,
        } = subject;
        let Some(body) = self
            .catalog()
            .item(location.item)
            .map(|shared| shared.body.clone())
        else {
            return Checked::Changed;
        };
        let (file, snapshot) = match open_regular(path) {
            Ok(opened) => opened,
            Err(problem) if problem.reason == Reason::NotFound => {
                self.withdraw(*location, &body);
                return Checked::Failed(problem);
            }
            Err(problem) => return Checked::Failed(problem),
        };
        if snapshot != *stamp {
            self.withdraw(*location, &body);
            return Checked::Changed;
        }
        forget_cached(&file);
        match hash_file(&file, record.size, 1, &|bytes| pace.take(path, bytes)) {
            Ok(tree) if tree.root == record.root => {
                self.mend_layer(record, tree);
                Checked::Good
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Checked::Stopped,
            Err(error) if !is_other_length(&error) => Checked::Failed(Problem::new(
                Reason::Internal,
                format!("it cannot be read: {error}"),
            )),
            Ok(_) | Err(_) => match self.set_damaged(*location, &body, &file, stamp) {
                true => Checked::Damaged,
                false => Checked::Changed,
            },
        }
    }

    /// Stores a file's piece hashes if the stored ones are missing or differ.
    fn mend_layer(&self, record: &FileRecord, tree: FileTree) {
        if tree.piece_hashes.is_empty() || self.catalog().record(&record.id).is_none() {
            return;
        }
        let stored = self.layer(&record.id).ok().flatten();
        if stored.is_some_and(|stored| *stored == tree.piece_hashes[..]) {
            return;
        }
        tracing::warn!(id = %record.id, "the stored piece hashes of a file were missing or damaged: they are stored again");
        let change = StoreChange::PutLayer(record.id, tree.piece_hashes.into());
        let _writing = self.writing();
        if let Err(error) = self.store.apply(&[change]) {
            tracing::warn!(%error, "the piece hashes could not be stored");
        }
    }

    /// Withdraws a damaged copy and notifies its owner through the log.
    ///
    /// False if the stamp changed too: then the file is hashed again, as after any change. `seen`
    /// is the item as it was when `file` was opened.
    fn set_damaged(&self, location: Location, seen: &ItemBody, file: &File, stamp: &Stamp) -> bool {
        let now = file.metadata().map(|metadata| stamp_of(&metadata));
        if now.is_ok_and(|now| now != *stamp) {
            self.withdraw(location, seen);
            return false;
        }
        let _writing = self.writing();
        let mut delta = Delta::default();
        let mut catalog = self.catalog();
        let item = catalog.item(location.item);
        let Some(shared) = item.filter(|shared| shared.body.is(seen)) else {
            return false;
        };
        let (path, id) = (shared.locate(location.entry), shared.id(location.entry));
        let is_new = catalog.set_damaged(location, &mut delta);
        drop(catalog);
        if let (true, Some(path), Some(id)) = (is_new, path, id) {
            tracing::error!(
                path = %path.display(), %id,
                "a shared file is damaged: its bytes are not what was hashed, and nothing shows a change. It is no longer offered; \
                 put it back from a copy, or share it again as it is"
            );
            self.open_files().remove(&id);
        }
        // `publish` logs a failure. The damage is found again at the next read.
        let _ = self.publish(delta);
        true
    }

    /// Offers an item again if all its damaged entries are in `good`.
    fn trust_again(&self, number: u64, good: &[EntryIndex]) {
        let path = {
            let catalog = self.catalog();
            let shared = catalog.item(number).filter(|_| catalog.is_mended(number, good));
            shared.map(|shared| shared.path.clone())
        };
        let Some(path) = path else { return };
        let watch = ShareObserver {
            on_size: &|_| {},
            on_progress: &|_, _| {},
            is_cancelled: &|| self.shutdown.is_cancelled(),
        };
        match self.share_path(&path, ShareCause::Changed(number), &watch) {
            Ok(item) => {
                tracing::info!(path = %path.display(), id = %item.record.id, "what was damaged is offered again");
            }
            Err(_) => tracing::warn!(path = %path.display(), "what was damaged cannot be offered again"),
        }
    }

    /// Checks pieces that another peer reported as bad, in every copy that may have been read.
    /// Reads at most `max` bytes.
    pub(crate) fn look_at_pieces(&self, pieces: &BadPieces, max: u64) {
        let Some(record) = self.catalog().record(&pieces.id) else {
            return;
        };
        let Some(layout) = FileLayout::new(record.size) else {
            return;
        };
        let layer = match layout.piece_count() {
            0 => return,
            1 => vec![record.root.0],
            _ => match self.layer(&record.id) {
                Ok(Some(layer)) if is_layer_of(&record, &layer) => layer.to_vec(),
                Ok(_) => return self.hash_again(&record.id),
                Err(_) => return,
            },
        };
        // The limit covers all copies together: uploads read the first.
        let mut left = max;
        // A separate statement: the catalog must not stay locked in the loop.
        let candidates = self.candidates(&self.catalog(), &record.id);
        for candidate in candidates {
            if let Some(manifest) = candidate.manifest() {
                // Compares the manifest and writes it again if it is damaged.
                let _ = self.manifest_file(&record.id, manifest);
                continue;
            }
            let Ok((file, snapshot)) = open_regular(&candidate.path) else {
                continue;
            };
            if !candidate.expected.matches(&snapshot) {
                self.withdraw(candidate.location, &candidate.body);
                continue;
            }
            let last = pieces.first.saturating_add(pieces.count.max(1));
            for piece in (pieces.first..last).map_while(|piece| layout.piece(piece)) {
                let range = layout.range(piece);
                let Some(rest) = left.checked_sub(range.end - range.start) else {
                    break;
                };
                left = rest;
                if is_piece(&file, &layout, range, layer.get(piece.get() as usize)) == Some(false) {
                    self.set_damaged(candidate.location, &candidate.body, &file, &snapshot);
                    break;
                }
            }
        }
    }
}

/// Whether a piece of a file has this hash; `None` if it cannot be read.
fn is_piece(file: &File, layout: &FileLayout, range: Range<u64>, expected: Option<&Hash>) -> Option<bool> {
    let len = range.end - range.start;
    let mut buffer = ReadBuffer::new(len.min(READ_SIZE as u64) as usize);
    if layout.piece_count() == 1 {
        file.read_exact_at(&mut buffer, range.start).ok()?;
        return Some(Some(&merkle::root_of(&buffer).0) == expected);
    }
    let mut hasher = PieceHasher::new(layout);
    let mut offset = range.start;
    while offset < range.end {
        let part = (range.end - offset).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..part], offset).ok()?;
        hasher.update(&buffer[..part]);
        offset += part as u64;
    }
    Some(Some(&hasher.finish()) == expected)
}

fn is_other_length(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
    )
}

fn damaged_problem() -> Problem {
    Problem::new(
        Reason::VerificationFailed,
        "its bytes are not what was hashed, and nothing shows a change: put it back from a copy, or share it again as it is",
    )
}

/// Drops a file from the page cache, so that it is read from the disk: the cached bytes may be
/// intact while those on the disk are not.
fn forget_cached(file: &File) {
    #[cfg(target_os = "linux")]
    // Best effort: if it fails, the check may miss damage.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Limits the rate of a check and reports its progress.
struct Pace<'a> {
    rate: u64,
    total: u64,
    events: &'a mpsc::Sender<CheckEvent>,
    shutdown: &'a tokio_util::sync::CancellationToken,
    began: Instant,
    state: Mutex<(u64, Option<Instant>)>,
}

impl<'a> Pace<'a> {
    fn new(
        rate: u64,
        total: u64,
        events: &'a mpsc::Sender<CheckEvent>,
        shutdown: &'a tokio_util::sync::CancellationToken,
    ) -> Self {
        Self {
            rate,
            total,
            events,
            shutdown,
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn done(&self) -> u64 {
        self.state.lock().0
    }

    fn is_unwanted(&self) -> bool {
        self.events.is_closed() || self.shutdown.is_cancelled()
    }

    /// Counts `bytes` more as hashed and waits as the rate limit requires.
    fn take(&self, path: &Path, bytes: u64) -> ControlFlow<()> {
        let done = {
            let mut state = self.state.lock();
            state.0 += bytes;
            let told = state.1.is_some_and(|told| told.elapsed() < PROGRESS_INTERVAL);
            if !told {
                state.1 = Some(Instant::now());
                // A slow receiver does not delay the check.
                let _ = self.events.try_send(CheckEvent::Progress {
                    path: path.to_owned(),
                    done: state.0,
                    total: self.total,
                });
            }
            state.0
        };
        let due = match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(done as f64 / rate as f64),
        };
        loop {
            if self.is_unwanted() {
                return ControlFlow::Break(());
            }
            match due.checked_sub(self.began.elapsed()) {
                None | Some(Duration::ZERO) => return ControlFlow::Continue(()),
                Some(left) => std::thread::sleep(left.min(STEP)),
            }
        }
    }
}
