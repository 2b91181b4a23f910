//! Finds silent corruption: bytes on the disk that changed although the file's stamp did not.
//!
//! A damaged file is withdrawn immediately and its owner is notified. A check also verifies the
//! stored piece hashes of each file; a report of bad pieces also verifies the manifest. If those
//! are damaged, they are written again.
//!
//! Invariant: a damaged file is not hashed again automatically, because that would share the
//! damaged bytes under a new id. See the catalog's `damaged`.
//!
//! Blocks: run it off the async threads.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileLayout, Problem, Reason,
    collection::manifest::EntryContent,
    identity::{
        hash::{READ_SIZE, hash_file},
        merkle::{self, FileTree, Hash, PieceHasher},
    },
    model::FileRecord,
    read_buffer::ReadBuffer,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) mod events;
mod progress;
pub(crate) mod reports;

use crate::{
    catalog::{
        item::{ItemBody, Location},
        row::{EntryIndex, WHOLE_ITEM},
        stamp::{Stamp, stamp_of},
    },
    content::BadPieces,
    library::{
        catalog_store::{CatalogStore, PutCause},
        check::{
            events::{CheckEvent, CheckTarget},
            progress::CheckProgress,
        },
        hash::{
            backlog::{HashBacklog, HashWork},
            hasher::is_other_length,
            observer::HashObserver,
            open::open_regular,
        },
        problems::Refused,
        reconcile::Reconciler,
        scan::resolve::resolve,
        serve::copies::CopyOpener,
        share::builder::ItemBuilder,
    },
};

/// Maximum bytes read for one report of bad pieces: one piece of the largest files.
pub(crate) const MAX_REPORT_BYTES: u64 = 16 * 1024 * 1024;

/// Checks shared files.
#[derive(Debug)]
pub(crate) struct Checker {
    pub(crate) catalog: Arc<CatalogStore>,
    pub(crate) builder: Arc<ItemBuilder>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) copies: Arc<CopyOpener>,
    pub(crate) backlog: HashBacklog,
    pub(crate) shutdown: CancellationToken,
}

/// The files of an item that are to be checked.
struct ItemFiles {
    number: u64,
    files: Vec<FileToCheck>,
}

struct FileToCheck {
    location: Location,
    path: PathBuf,
    record: FileRecord,
    stamp: Stamp,
}

/// The result of hashing a file.
enum CheckOutcome {
    Intact,
    Damaged,
    /// Its stamp changed too, so it will be hashed again anyway.
    Changed,
    Failed(Problem),
    Cancelled,
}

impl Checker {
    /// Checks all files of the targets. `rate` is the maximum number of bytes per second; 0 means
    /// no limit. Stops early if `events` is closed.
    pub(crate) fn check_targets(
        &self,
        targets: &[CheckTarget],
        rate: u64,
        events: &mpsc::Sender<CheckEvent>,
    ) {
        let send = |event: CheckEvent| events.blocking_send(event).is_ok();
        let mut items: Vec<ItemFiles> = Vec::new();
        for target in targets {
            match self.files_of_target(target) {
                Ok(more) => items.extend(more),
                Err((path, problem)) => {
                    if !send(CheckEvent::Failed { path, problem }) {
                        return;
                    }
                }
            }
        }
        items.sort_by_key(|item| item.number);
        items.dedup_by_key(|item| (item.number, item.files.len()));
        let files = items.iter().flat_map(|item| &item.files);
        let total = files.map(|file| file.record.size).sum();
        let backlog = self.backlog.begin(HashWork::Check);
        backlog.add(total);
        let progress = CheckProgress::new(rate, total, events, &self.shutdown, backlog);
        let (mut files, mut bad) = (0, 0);
        for item in items {
            let mut intact = Vec::new();
            for file in &item.files {
                let problem = match self.check_file(file, &progress) {
                    CheckOutcome::Cancelled => return,
                    CheckOutcome::Intact | CheckOutcome::Changed => None,
                    CheckOutcome::Damaged => Some(damaged_problem()),
                    CheckOutcome::Failed(problem) => Some(problem),
                };
                files += 1;
                progress.end_file(file.record.size);
                let Some(problem) = problem else {
                    intact.push(file.location.entry);
                    continue;
                };
                bad += 1;
                let (path, id) = (file.path.clone(), file.record.id);
                if !send(CheckEvent::Bad { path, id, problem }) {
                    return;
                }
            }
            self.restore_repaired(item.number, &intact);
        }
        let bytes = progress.done();
        tracing::info!(files, bytes, bad, "checked shared files");
        send(CheckEvent::Done { files, bytes, bad });
    }

    /// The files of a target, by item.
    fn files_of_target(&self, target: &CheckTarget) -> Result<Vec<ItemFiles>, Refused> {
        let path = match target {
            CheckTarget::All => {
                let numbers: Vec<u64> = {
                    let catalog = self.catalog.read();
                    catalog.items_after(None).map(|(number, _)| number).collect()
                };
                let numbers = numbers.into_iter();
                return Ok(numbers.map(|number| self.files_of_item(number, None)).collect());
            }
            CheckTarget::Path(path) => path,
        };
        let resolved = resolve(path).unwrap_or_else(|_| path.clone());
        let item = {
            let catalog = self.catalog.read();
            let mut ancestors = resolved.ancestors();
            ancestors.find_map(|ancestor| Some((catalog.item_at(ancestor)?, ancestor.to_owned())))
        };
        let item = item.map(|(number, root)| {
            let below = resolved.strip_prefix(root).ok().and_then(Path::to_str);
            self.files_of_item(number, below.filter(|below| !below.is_empty()))
        });
        match item {
            Some(item) if !item.files.is_empty() => Ok(vec![item]),
            _ => {
                let message = "it is not shared: `potluck ls` lists what is shared";
                Err((path.clone(), Problem::new(Reason::NotFound, message)))
            }
        }
    }

    /// The files of an item, or only those below a path in it.
    fn files_of_item(&self, number: u64, below: Option<&str>) -> ItemFiles {
        let catalog = self.catalog.read();
        let Some(item) = catalog.item(number) else {
            let files = Vec::new();
            return ItemFiles { number, files };
        };
        let file = |entry: EntryIndex| {
            Some(FileToCheck {
                location: Location { item: number, entry },
                path: item.locate(entry)?,
                record: item.record(entry)?,
                stamp: item.stamp(entry)?,
            })
        };
        let is_below = |path: &str| {
            below.is_none_or(|below| {
                let rest = path.strip_prefix(below);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let files = match &item.body {
            ItemBody::File(_) => file(WHOLE_ITEM).into_iter().collect(),
            ItemBody::Collection(folder) => {
                let entries = (0..).zip(folder.manifest.entries()).filter(|(_, entry)| {
                    matches!(entry.content, EntryContent::File { .. })
                        && is_below(entry.path.as_str())
                });
                entries.filter_map(|(index, _)| file(index)).collect()
            }
        };
        ItemFiles { number, files }
    }

    /// Hashes a file and compares the root. Withdraws a damaged file; restores damaged piece hashes
    /// of an intact one.
    fn check_file(&self, to_check: &FileToCheck, progress: &CheckProgress<'_>) -> CheckOutcome {
        let FileToCheck {
            location,
            path,
            record,
            stamp,
        } = to_check;
        let item = location.item;
        let body = self.catalog.read().item(item).map(|item| item.body.clone());
        let Some(body) = body else {
            return CheckOutcome::Changed;
        };
        let (file, now) = match open_regular(path) {
            Ok(opened) => opened,
            Err(problem) if problem.reason == Reason::NotFound => {
                self.reconciler.withdraw(*location, &body);
                return CheckOutcome::Failed(problem);
            }
            Err(problem) => return CheckOutcome::Failed(problem),
        };
        if now != *stamp {
            self.reconciler.withdraw(*location, &body);
            return CheckOutcome::Changed;
        }
        drop_cached_pages(&file);
        match hash_file(&file, record.size, 1, &|bytes| progress.on_bytes(path, bytes)) {
            Ok(tree) if tree.root == record.root => {
                self.restore_layer(record, tree);
                CheckOutcome::Intact
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => CheckOutcome::Cancelled,
            Err(error) if !is_other_length(&error) => CheckOutcome::Failed(Problem::new(
                Reason::Internal,
                format!("it cannot be read: {error}"),
            )),
            Ok(_) | Err(_) => match self.set_damaged(*location, &body, &file, stamp) {
                true => CheckOutcome::Damaged,
                false => CheckOutcome::Changed,
            },
        }
    }

    /// Stores a file's piece hashes again if the stored ones are missing or differ.
    fn restore_layer(&self, record: &FileRecord, tree: FileTree) {
        let is_shared = self.catalog.read().record(&record.id).is_some();
        if tree.piece_hashes.is_empty() || !is_shared {
            return;
        }
        let stored = self.catalog.layer(&record.id).ok().flatten();
        if stored.is_some_and(|stored| *stored == tree.piece_hashes[..]) {
            return;
        }
        tracing::warn!(
            id = %record.id,
            "the stored piece hashes of a file were missing or damaged: they are stored again"
        );
        self.catalog.put_layer(record.id, tree.piece_hashes.into());
    }

    /// Withdraws a damaged copy and notifies its owner through the log.
    ///
    /// False if the stamp changed too: then the file is hashed again, as after any change. `seen`
    /// is the item as it was when `file` was opened.
    fn set_damaged(&self, location: Location, seen: &ItemBody, file: &File, stamp: &Stamp) -> bool {
        let now = file.metadata().map(|metadata| stamp_of(&metadata));
        if now.is_ok_and(|now| now != *stamp) {
            self.reconciler.withdraw(location, seen);
            return false;
        }
        // A failure is already logged, and the next read finds the damage again.
        let (damaged, _) = self.catalog.writer().apply(|catalog, delta| {
            let item = catalog.item(location.item);
            let item = item.filter(|item| item.body.is(seen))?;
            let (path, id) = (item.locate(location.entry), item.id(location.entry));
            let is_new = catalog.set_damaged(location, delta);
            Some(path.zip(id).filter(|_| is_new))
        });
        let Some(damaged) = damaged else { return false };
        if let Some((path, id)) = damaged {
            tracing::error!(
                path = %path.display(), %id,
                "a shared file is damaged: its bytes differ from the hashed ones although its size \
                 and times did not change. It is no longer offered: restore it from a copy, or \
                 share it again as it is"
            );
            // The file may have another copy, and the handle may be of this one.
            self.catalog.handles().close(&[id]);
        }
        true
    }

    /// Offers an item again if all its damaged entries are in `intact`.
    fn restore_repaired(&self, number: u64, intact: &[EntryIndex]) {
        let path = {
            let catalog = self.catalog.read();
            let item = catalog
                .item(number)
                .filter(|_| catalog.is_repaired(number, intact));
            item.map(|item| item.path.clone())
        };
        let Some(path) = path else { return };
        let is_cancelled = || self.shutdown.is_cancelled();
        let observer = HashObserver::silent(&is_cancelled);
        let cause = PutCause::Changed(number);
        let result = self.builder.build_and_put(&path, None, cause, &observer);
        let path = path.display();
        match result {
            Ok((item, _)) => {
                tracing::info!(%path, id = %item.record.id, "a repaired path is offered again");
            }
            Err(_) => tracing::warn!(%path, "a repaired path cannot be offered again"),
        }
    }

    /// Checks pieces that another peer reported as bad, in every copy that may have been read.
    /// Reads at most `max` bytes.
    pub(crate) fn check_pieces(&self, pieces: &BadPieces, max: u64) {
        let Some(record) = self.catalog.read().record(&pieces.id) else {
            return;
        };
        let Some(layout) = FileLayout::new(record.size) else {
            return;
        };
        let layer = match layout.piece_count() {
            0 => return,
            1 => vec![record.root.0],
            _ => match self.copies.verified_layer(&record) {
                Ok(Some(layer)) => layer.to_vec(),
                Ok(None) | Err(_) => return,
            },
        };
        // The limit covers all copies together: uploads read the first.
        let mut left = max;
        for candidate in self.copies.candidates(&record.id) {
            if let Some(manifest) = candidate.manifest() {
                // Compares the manifest and writes it again if it is damaged.
                let _ = self.catalog.manifests().open(&record.id, manifest);
                continue;
            }
            let Ok((file, stamp)) = open_regular(&candidate.path) else {
                continue;
            };
            if !candidate.expected.matches(&stamp) {
                self.reconciler.withdraw(candidate.location, &candidate.body);
                continue;
            }
            let last = pieces.first.saturating_add(pieces.count.max(1));
            for piece in (pieces.first..last).map_while(|piece| layout.piece(piece)) {
                let range = layout.range(piece);
                let Some(rest) = left.checked_sub(range.end - range.start) else {
                    break;
                };
                left = rest;
                let expected = layer.get(piece.get() as usize);
                if has_piece_hash(&file, &layout, range, expected) == Some(false) {
                    self.set_damaged(candidate.location, &candidate.body, &file, &stamp);
                    break;
                }
            }
        }
    }
}

/// Whether a piece of a file has this hash; `None` if it cannot be read.
fn has_piece_hash(
    file: &File,
    layout: &FileLayout,
    range: Range<u64>,
    expected: Option<&Hash>,
) -> Option<bool> {
    let len = range.end - range.start;
    let mut buffer = ReadBuffer::new(len.min(READ_SIZE as u64) as usize);
    if layout.piece_count() == 1 {
        file.read_exact_at(&mut buffer, range.start).ok()?;
        return Some(Some(&merkle::root_of(&buffer).0) == expected);
    }
    let mut hasher = PieceHasher::new(layout);
    let mut offset = range.start;
    while offset < range.end {
        let len = (range.end - offset).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..len], offset).ok()?;
        hasher.update(&buffer[..len]);
        offset += len as u64;
    }
    Some(Some(&hasher.finish()) == expected)
}

fn damaged_problem() -> Problem {
    Problem::new(
        Reason::VerificationFailed,
        "its bytes differ from the hashed ones although its size and times did not change: restore \
         it from a copy, or share it again as it is",
    )
}

/// Drops a file from the page cache, so that it is read from the disk: the cached bytes may be
/// intact while those on the disk are not.
fn drop_cached_pages(file: &File) {
    #[cfg(target_os = "linux")]
    // Best effort: if it fails, the check may miss damage.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}
