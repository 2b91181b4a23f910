//! Splits a transfer into units: a pure function of a file's size or a collection's manifest,
//! equal on all peers.
//!
//! All distinct content together determines the size of a unit, as a file's size determines that
//! of its pieces ([`piece_size`]): a folder has about as many units as a file of its size, and
//! spreads as fast through a crowd.
//!
//! - The units of a plain file are its pieces.
//! - In a collection, distinct content counts once, in manifest order. Files that fit in a unit
//!   are packed whole into bundles, which come first. Each larger file then has units of its own,
//!   each of one or several pieces. Empty files need no unit.
//!
//! A download that needs only some of the files leaves the others out ([`Plan::without`]). The units
//! keep their numbers, which other peers use, but contain only the bytes of the remaining files.
//!
//! Invariant: the units cover every byte of every distinct file that is not left out exactly once.
//! Non-goals: scheduling and storage.

use std::{ops::Range, sync::Arc};

use crate::{
    FileId, FileLayout,
    bitfield::Bitfield,
    collection::{
        limits::BUNDLE_FILES,
        manifest::{EntryContent, Manifest},
    },
    identity::layout::piece_size,
};

/// Bytes that any collection may write without confirmation. Disks have this much space, and the
/// duplicates in shared source trees and package caches take less (hundreds of MiB).
pub const EXPANSION_FREE: u64 = 1 << 30;

/// Maximum ratio of written bytes to distinct content before a larger collection needs
/// confirmation. Backups, the most repetitive folders in common use, have about five to ten copies
/// of each file.
pub const EXPANSION_RATIO: u64 = 10;

/// A distinct file of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanFile {
    /// File id.
    pub id: FileId,
    /// Size in bytes.
    pub size: u64,
}

/// A part of a unit: a byte range of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanSpan {
    /// Number of the file, as in [`Plan::file`].
    pub file: usize,
    /// File id.
    pub id: FileId,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Whether the span is the whole file, verified by its id. Otherwise it is one or several
    /// pieces, verified by the piece layer.
    pub is_whole_file: bool,
}

/// A file with units of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LargeFile {
    first_unit: u32,
    /// Number of the pieces of all large files before it.
    first_piece: u32,
    file: u32,
}

/// Small files that form one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bundle {
    /// End of the range of file numbers. The range starts at the previous bundle's end; large and
    /// empty files in it are skipped.
    end: u32,
    len: u32,
}

/// The distinct files of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PlanFiles {
    One(PlanFile),
    /// Index of the first entry of each distinct content, in ascending order.
    Collection(Arc<Manifest>, Vec<u32>),
}

/// The units of a transfer. Takes a few bytes per file; everything else is in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    files: PlanFiles,
    /// Maximum bytes of a unit: a power of two, at least the piece size of every file.
    unit_size: u64,
    bundles: Vec<Bundle>,
    /// Sorted by unit. Their units follow those of the bundles.
    large_files: Vec<LargeFile>,
    unit_count: u32,
    total_bytes: u64,
    /// The files that are left out, if any.
    left_out: Option<LeftOut>,
}

/// The files of a collection that a download does not need.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    /// One bit for each distinct file.
    files: Bitfield,
    /// Bytes that the remaining files take, at all of their paths that are needed.
    written_bytes: u64,
}

impl Plan {
    /// The plan of a plain file: its units are its pieces. `None` if the size is over the limit.
    pub fn of_file(id: FileId, size: u64) -> Option<Self> {
        let layout = FileLayout::new(size)?;
        let large = LargeFile {
            first_unit: 0,
            first_piece: 0,
            file: 0,
        };
        Some(Self {
            files: PlanFiles::One(PlanFile { id, size }),
            unit_size: layout.piece_size(),
            bundles: Vec::new(),
            large_files: if size == 0 { Vec::new() } else { vec![large] },
            unit_count: layout.piece_count(),
            total_bytes: size,
            left_out: None,
        })
    }

    /// The plan of a collection.
    pub fn of_collection(manifest: &Arc<Manifest>) -> Self {
        let mut plan = Self {
            files: PlanFiles::Collection(Arc::clone(manifest), first_entries(manifest)),
            unit_size: 0,
            bundles: Vec::new(),
            large_files: Vec::new(),
            unit_count: 0,
            total_bytes: 0,
            left_out: None,
        };
        plan.total_bytes = plan.files().map(|file| file.size).sum();
        plan.unit_size = piece_size(plan.total_bytes);
        plan.pack_bundles();
        plan.number_large_files();
        plan
    }

    /// Leaves out these distinct files, by number. `written_bytes` is what the others take at all of
    /// their paths that are needed.
    ///
    /// # Panics
    /// If `files` does not have one bit for each distinct file.
    #[must_use]
    pub fn without(mut self, files: Bitfield, written_bytes: u64) -> Self {
        assert_eq!(files.len() as usize, self.file_count(), "one bit for each file");
        self.left_out = Some(LeftOut { files, written_bytes });
        let mut bundles = std::mem::take(&mut self.bundles);
        let mut start = 0;
        for bundle in &mut bundles {
            let files = (start..bundle.end as usize).filter(|&file| self.needs(file));
            let small = files
                .filter_map(|file| self.file(file))
                .filter(|file| self.is_small(file));
            // Fits: the bundle had at least these bytes before.
            bundle.len = small.map(|file| file.size).sum::<u64>() as u32;
            start = bundle.end as usize;
        }
        self.bundles = bundles;
        let needed = (0..self.file_count()).filter(|&file| self.needs(file));
        self.total_bytes = needed
            .filter_map(|file| self.file(file))
            .map(|file| file.size)
            .sum();
        self
    }

    /// Whether the file is not left out.
    pub fn needs(&self, file: usize) -> bool {
        self.left_out
            .as_ref()
            .is_none_or(|out| !out.files.get(file as u32))
    }

    /// The units from which files are left out, in whole or in part; `None` if there are none.
    pub fn incomplete_units(&self) -> Option<Bitfield> {
        let out = &self.left_out.as_ref()?.files;
        let mut units = Bitfield::new(self.unit_count);
        for file in out.ones() {
            // Empty files have no unit.
            for unit in self.units_of(file as usize, 0..u64::MAX) {
                units.set(unit, true);
            }
        }
        Some(units)
    }

    fn pack_bundles(&mut self) {
        let mut bundles = Vec::new();
        let (mut count, mut len) = (0, 0_u64); // of the open bundle
        for (index, file) in (0..).zip(self.files()).filter(|(_, file)| self.is_small(file)) {
            if count == BUNDLE_FILES || len + file.size > self.unit_size {
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

    fn number_large_files(&mut self) {
        let mut large_files = Vec::new();
        let (mut first_unit, mut first_piece) = (self.unit_count, 0);
        for (file, planned) in (0..).zip(self.files()) {
            if planned.size > self.unit_size {
                large_files.push(LargeFile {
                    first_unit,
                    first_piece,
                    file,
                });
                // Both fit: a manifest has at most 2^22 units of at most 128 pieces.
                first_unit += planned.size.div_ceil(self.unit_size) as u32;
                first_piece += piece_count(planned.size);
            }
        }
        large_files.shrink_to_fit();
        (self.large_files, self.unit_count) = (large_files, first_unit);
    }

    /// Number of units.
    pub const fn unit_count(&self) -> u32 {
        self.unit_count
    }

    /// Total bytes of all units: each distinct file that is needed counts once.
    pub const fn total(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes written to disk: each path that is needed counts, including duplicates.
    pub fn written(&self) -> u64 {
        match (&self.files, &self.left_out) {
            (_, Some(out)) => out.written_bytes,
            (PlanFiles::One(one), None) => one.size,
            (PlanFiles::Collection(manifest, _), None) => manifest.content_size(),
        }
    }

    /// Whether a small manifest could fill the disk: it writes more than [`EXPANSION_FREE`] bytes,
    /// and more than [`EXPANSION_RATIO`] times the distinct content.
    pub fn expands(&self) -> bool {
        self.written() > EXPANSION_FREE && self.written() / EXPANSION_RATIO > self.total_bytes
    }

    /// Number of distinct files.
    pub const fn file_count(&self) -> usize {
        match &self.files {
            PlanFiles::One(_) => 1,
            PlanFiles::Collection(_, firsts) => firsts.len(),
        }
    }

    /// A distinct file by its number. Files are numbered from 0 in the order of their first entry.
    pub fn file(&self, file: usize) -> Option<PlanFile> {
        match &self.files {
            PlanFiles::One(one) => (file == 0).then_some(*one),
            PlanFiles::Collection(manifest, firsts) => {
                match manifest.content(*firsts.get(file)?)? {
                    EntryContent::File { id, size, .. } => Some(PlanFile { id, size }),
                    _ => None,
                }
            }
        }
    }

    /// The distinct files in order of their numbers.
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

    /// Index of the first manifest entry with this file's content; further entries are copies.
    /// `None` for a plain file.
    pub fn first_entry(&self, file: usize) -> Option<u32> {
        match &self.files {
            PlanFiles::One(_) => None,
            PlanFiles::Collection(_, firsts) => firsts.get(file).copied(),
        }
    }

    /// The manifest of a collection; `None` for a plain file.
    pub const fn manifest(&self) -> Option<&Arc<Manifest>> {
        match &self.files {
            PlanFiles::One(_) => None,
            PlanFiles::Collection(manifest, _) => Some(manifest),
        }
    }

    /// The files with units of their own, by number: those of a collection that are too large for
    /// a bundle, or a plain file.
    pub fn large_files(&self) -> impl ExactSizeIterator<Item = usize> {
        self.large_files.iter().map(|large| large.file as usize)
    }

    /// Whether the file has units of its own, instead of a part of a bundle.
    pub fn is_large(&self, file: usize) -> bool {
        self.large_file(file).is_some()
    }

    /// The pieces of a large file, numbered through all large files; empty for other files.
    pub fn pieces_of(&self, file: usize) -> Range<u32> {
        let (Some(large), Some(planned)) = (self.large_file(file), self.file(file)) else {
            return 0..0;
        };
        large.first_piece..large.first_piece + piece_count(planned.size)
    }

    /// The large file that this piece belongs to, numbered as in [`Plan::pieces_of`].
    pub fn file_of_piece(&self, piece: u32) -> Option<usize> {
        let after = self
            .large_files
            .partition_point(|large| large.first_piece <= piece);
        let file = self.large_files.get(after.checked_sub(1)?)?.file as usize;
        self.pieces_of(file).contains(&piece).then_some(file)
    }

    fn large_file(&self, file: usize) -> Option<LargeFile> {
        let by_file = |large: &LargeFile| large.file as usize;
        let index = self.large_files.binary_search_by_key(&file, by_file).ok()?;
        Some(self.large_files[index])
    }

    /// Whether the file is a part of a bundle.
    const fn is_small(&self, file: &PlanFile) -> bool {
        0 < file.size && file.size <= self.unit_size
    }

    /// Length of a unit in bytes; 0 if there is no such unit.
    pub fn unit_len(&self, unit: u32) -> u64 {
        match self.bundles.get(unit as usize) {
            Some(bundle) => bundle.len.into(),
            None => self.large_span(unit).map_or(0, |span| span.len),
        }
    }

    /// The parts of a unit in request order; none if there is no such unit.
    pub fn spans(&self, unit: u32) -> impl Iterator<Item = PlanSpan> + '_ {
        let needed = self.bundle(unit).filter(|&file| self.needs(file));
        let small = needed.filter_map(|file| {
            let planned = self.file(file).filter(|file| self.is_small(file))?;
            Some(PlanSpan {
                file,
                id: planned.id,
                offset: 0,
                len: planned.size,
                is_whole_file: true,
            })
        });
        small.chain(self.large_span(unit))
    }

    /// The units that contain this byte range of a file, needed or not; empty if the range is
    /// outside the file.
    pub fn units_of(&self, file: usize, range: Range<u64>) -> Range<u32> {
        let Some(planned) = self.file(file) else {
            return 0..0;
        };
        let range = range.start..range.end.min(planned.size);
        if range.is_empty() {
            return 0..0;
        }
        if let Some(large) = self.large_file(file) {
            // Fits: below the number of units.
            let at = |byte: u64| large.first_unit + (byte / self.unit_size) as u32;
            return at(range.start)..at(range.end - 1) + 1;
        }
        let bundle = self.bundles.partition_point(|bundle| bundle.end as usize <= file) as u32;
        bundle..bundle + 1
    }

    /// The range of file numbers that a bundle covers, including skipped files; empty if the unit
    /// is not a bundle.
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

    /// The span of a unit that belongs to a large file.
    fn large_span(&self, unit: u32) -> Option<PlanSpan> {
        let after = self.large_files.partition_point(|large| large.first_unit <= unit);
        let large = self.large_files.get(after.checked_sub(1)?)?;
        let file = large.file as usize;
        let PlanFile { id, size } = self.file(file).filter(|_| self.needs(file))?;
        let offset = u64::from(unit - large.first_unit) * self.unit_size;
        (offset < size).then(|| PlanSpan {
            file,
            id,
            offset,
            len: self.unit_size.min(size - offset),
            is_whole_file: size <= self.unit_size,
        })
    }
}

/// Number of pieces of a file; a plan has only files of valid size.
fn piece_count(size: u64) -> u32 {
    FileLayout::new(size).map_or(0, |layout| layout.piece_count())
}

/// Index of the first entry of each distinct content, in ascending order.
fn first_entries(manifest: &Manifest) -> Vec<u32> {
    let mut firsts: Vec<u32> = manifest.contents().map(|entries| entries[0]).collect();
    firsts.sort_unstable();
    firsts.shrink_to_fit();
    firsts
}

#[cfg(test)]
mod tests;
