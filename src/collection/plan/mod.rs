//! What a transfer is cut into: units, a pure function of the file's size or of the collection's manifest, the same everywhere.
//!
//! Of a plain file the units are its pieces. Of a collection, distinct content counts once, in the order of the manifest: files
//! of up to [`BUNDLE_SIZE`] are taken whole and packed one after the other into bundles, which come first; each larger file then
//! gives one unit for each of its pieces. Empty files need no unit: their content is known.
//!
//! Invariant: the units cover every byte of every distinct file exactly once. Non-goals: who fetches what, and where bytes land.

use std::{ops::Range, sync::Arc};

use crate::{
    FileId, FileLayout,
    collection::manifest::{EntryContent, Manifest},
};

/// Most bytes in a bundle, and the largest file that goes into one. Big enough that thousands of small files do not cost a round
/// trip each, small enough to hold in memory until it is verified.
pub const BUNDLE_SIZE: u64 = 4 * 1024 * 1024;

/// Most files in a bundle: each is a span of some 45 bytes in the request, and a request takes at most 4,096 spans.
pub const BUNDLE_FILES: usize = 1024;

/// Most units of a transfer: one bit of each for every peer is 512 KiB, which fits a message. Files of any allowed size have
/// fewer pieces; a manifest with more units is refused.
pub const MAX_UNITS: u32 = 1 << 22;

/// Bytes that a collection may write whatever its distinct content: the room that any disk in use has, and more than the duplicates
/// of the source trees and package caches that people share (hundreds of MiB).
pub const EXPANSION_FREE: u64 = 1 << 30;

/// How many times its distinct content a larger collection may write before its owner is asked. Folders of backups that share most
/// content, the most repetitive that are common, have some five to ten copies of each file.
pub const EXPANSION_RATIO: u64 = 10;

/// A distinct file of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanFile {
    /// Its id.
    pub id: FileId,
    /// Its size in bytes.
    pub size: u64,
}

/// A part of a unit: a range of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanSpan {
    /// Number of the file: see [`Plan::file`].
    pub file: usize,
    /// Its id.
    pub id: FileId,
    /// First byte, as an offset in the file.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u64,
    /// Whether this is the whole file, to be verified by its id; otherwise it is one piece, verified by the piece layer.
    pub is_whole_file: bool,
}

/// A file that gives one unit for each of its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LargeFile {
    first_unit: u32,
    file: u32,
    layout: FileLayout,
}

/// Small files that make one unit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bundle {
    /// The number after its last file's. It begins where the one before ends; those between that are not small are not in it.
    end: u32,
    len: u32,
}

/// What the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PlanFiles {
    One(PlanFile),
    /// The first entry of each distinct content, in order.
    Collection(Arc<Manifest>, Vec<u32>),
}

/// The units of a transfer. A few bytes for each file: all else is in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    files: PlanFiles,
    bundles: Vec<Bundle>,
    /// In order of their units, which follow those of the bundles.
    large_files: Vec<LargeFile>,
    unit_count: u32,
    total_bytes: u64,
}

impl Plan {
    /// The plan of a plain file: its units are its pieces. `None` for a size that no file may have.
    pub fn of_file(id: FileId, size: u64) -> Option<Self> {
        let layout = FileLayout::new(size)?;
        let large = LargeFile {
            first_unit: 0,
            file: 0,
            layout,
        };
        Some(Self {
            files: PlanFiles::One(PlanFile { id, size }),
            bundles: Vec::new(),
            large_files: if size == 0 { Vec::new() } else { vec![large] },
            unit_count: layout.piece_count(),
            total_bytes: size,
        })
    }

    /// The plan of a collection's content.
    pub fn of_collection(manifest: &Arc<Manifest>) -> Self {
        let mut plan = Self {
            files: PlanFiles::Collection(Arc::clone(manifest), first_entries(manifest)),
            bundles: Vec::new(),
            large_files: Vec::new(),
            unit_count: 0,
            total_bytes: 0,
        };
        plan.pack_bundles();
        plan.number_pieces();
        plan.total_bytes = plan.files().map(|file| file.size).sum();
        plan
    }

    fn pack_bundles(&mut self) {
        let mut bundles = Vec::new();
        let (mut count, mut len) = (0, 0_u64); // of the bundle that is open
        for (index, file) in (0..).zip(self.files()).filter(|(_, file)| file.is_small()) {
            if count == BUNDLE_FILES || len + file.size > BUNDLE_SIZE {
                bundles.push(Bundle {
                    end: index,
                    len: len as u32,
                });
                (count, len) = (0, 0);
            }
            (count, len) = (count + 1, len + file.size);
        }
        if count > 0 {
            bundles.push(Bundle {
                end: self.file_count() as u32,
                len: len as u32,
            });
        }
        self.unit_count = bundles.len() as u32;
        self.bundles = bundles;
    }

    fn number_pieces(&mut self) {
        let mut large = Vec::new();
        for (file, planned) in (0..).zip(self.files()) {
            // A manifest bounds every size.
            let Some(layout) = FileLayout::new(planned.size).filter(|_| planned.size > BUNDLE_SIZE) else {
                continue;
            };
            large.push((file, layout));
        }
        for (file, layout) in large {
            self.large_files.push(LargeFile {
                first_unit: self.unit_count,
                file,
                layout,
            });
            self.unit_count += layout.piece_count();
        }
    }

    /// How many units there are.
    pub const fn unit_count(&self) -> u32 {
        self.unit_count
    }

    /// Bytes in all units: each distinct file counts once.
    pub const fn total(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes that are written: each path of a collection counts, whatever content it shares with others.
    pub fn written(&self) -> u64 {
        match &self.files {
            PlanFiles::One(one) => one.size,
            PlanFiles::Collection(manifest, _) => manifest.content_size(),
        }
    }

    /// Whether far more is written than fetched, so that a small manifest could fill a disk: more than [`EXPANSION_FREE`], and more than
    /// [`EXPANSION_RATIO`] times the distinct content.
    pub fn expands(&self) -> bool {
        self.written() > EXPANSION_FREE && self.written() / EXPANSION_RATIO > self.total_bytes
    }

    /// How many distinct files there are.
    pub const fn file_count(&self) -> usize {
        match &self.files {
            PlanFiles::One(_) => 1,
            PlanFiles::Collection(_, firsts) => firsts.len(),
        }
    }

    /// A distinct file by its number: they are counted from 0 in the order of their first entry in the manifest.
    pub fn file(&self, file: usize) -> Option<PlanFile> {
        match &self.files {
            PlanFiles::One(one) => (file == 0).then_some(*one),
            PlanFiles::Collection(manifest, firsts) => match manifest.content(*firsts.get(file)?)? {
                EntryContent::File { id, size, .. } => Some(PlanFile { id, size }),
                _ => None,
            },
        }
    }

    /// The distinct files in order.
    pub fn files(&self) -> impl Iterator<Item = PlanFile> {
        (0..self.file_count()).filter_map(|file| self.file(file))
    }

    /// The number of the file with this id.
    pub fn find(&self, id: &FileId) -> Option<usize> {
        match &self.files {
            PlanFiles::One(one) => (one.id == *id).then_some(0),
            PlanFiles::Collection(manifest, firsts) => {
                firsts.binary_search(manifest.with_id(id).first()?).ok()
            }
        }
    }

    /// The first entry of the manifest that has a file's content; the others are copies. `None` for a plain file.
    pub fn first_entry(&self, file: usize) -> Option<u32> {
        match &self.files {
            PlanFiles::One(_) => None,
            PlanFiles::Collection(_, firsts) => firsts.get(file).copied(),
        }
    }

    /// The manifest, of a collection.
    pub const fn manifest(&self) -> Option<&Arc<Manifest>> {
        match &self.files {
            PlanFiles::One(_) => None,
            PlanFiles::Collection(manifest, _) => Some(manifest),
        }
    }

    /// Length of a unit in bytes; 0 where there is no such unit.
    pub fn unit_len(&self, unit: u32) -> u64 {
        match self.bundles.get(unit as usize) {
            Some(bundle) => bundle.len.into(),
            None => self.piece_span(unit).map_or(0, |span| span.len),
        }
    }

    /// The parts of a unit in the order in which they are asked for; none where there is no such unit.
    pub fn spans(&self, unit: u32) -> impl Iterator<Item = PlanSpan> + '_ {
        let small = self.bundle(unit).filter_map(|file| {
            let planned = self.file(file).filter(PlanFile::is_small)?;
            Some(PlanSpan {
                file,
                id: planned.id,
                offset: 0,
                len: planned.size,
                is_whole_file: true,
            })
        });
        small.chain(self.piece_span(unit))
    }

    /// The units that have these bytes of a file; none where the range holds no byte of it.
    pub fn units_of(&self, file: usize, range: Range<u64>) -> Range<u32> {
        let Some(planned) = self.file(file) else {
            return 0..0;
        };
        let range = range.start..range.end.min(planned.size);
        if range.is_empty() {
            return 0..0;
        }
        if let Ok(large) = self
            .large_files
            .binary_search_by_key(&(file as u32), |large| large.file)
        {
            let large = &self.large_files[large];
            let piece_size = large.layout.piece_size();
            // Fits: both are below the number of pieces.
            let at = |byte: u64| large.first_unit + (byte / piece_size) as u32;
            return at(range.start)..at(range.end - 1) + 1;
        }
        let bundle = self.bundles.partition_point(|bundle| bundle.end as usize <= file) as u32;
        bundle..bundle + 1
    }

    /// The files that a bundle is made of, others among them; none where the unit is no bundle.
    fn bundle(&self, unit: u32) -> Range<usize> {
        let Some(bundle) = self.bundles.get(unit as usize) else {
            return 0..0;
        };
        let start = match unit {
            0 => 0,
            _ => self.bundles[unit as usize - 1].end,
        };
        start as usize..bundle.end as usize
    }

    /// The file whose pieces' units hold this one.
    fn large_file_of(&self, unit: u32) -> Option<&LargeFile> {
        let after = self.large_files.partition_point(|large| large.first_unit <= unit);
        self.large_files.get(after.checked_sub(1)?)
    }

    fn piece_span(&self, unit: u32) -> Option<PlanSpan> {
        let large = self.large_file_of(unit)?;
        let piece = large.layout.piece(unit - large.first_unit)?;
        let id = self.file(large.file as usize)?.id;
        let range = large.layout.range(piece);
        let len = range.end - range.start;
        let whole = len == large.layout.size();
        Some(PlanSpan {
            file: large.file as usize,
            id,
            offset: range.start,
            len,
            is_whole_file: whole,
        })
    }
}

/// The first entry of each distinct content, in order.
fn first_entries(manifest: &Manifest) -> Vec<u32> {
    let mut firsts: Vec<u32> = manifest.contents().map(|entries| entries[0]).collect();
    firsts.sort_unstable();
    firsts.shrink_to_fit();
    firsts
}

impl PlanFile {
    /// Whether it goes into a bundle of a collection.
    const fn is_small(&self) -> bool {
        self.size > 0 && self.size <= BUNDLE_SIZE
    }
}

#[cfg(test)]
mod tests;
