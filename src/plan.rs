//! What a transfer is cut into: units, a pure function of the file's size or of the collection's manifest, the same everywhere.
//!
//! Of a plain file the units are its pieces. Of a collection, distinct content counts once, in the order of the manifest: files
//! of up to [`BUNDLE_SIZE`] are taken whole and packed one after the other into bundles, which come first; each larger file then
//! gives one unit for each of its pieces. Empty files need no unit: their content is known.
//!
//! Invariant: the units cover every byte of every distinct file exactly once. Non-goals: who fetches what, and where bytes land.

use std::{collections::HashMap, ops::Range};

use crate::{
    FileId, FileLayout,
    manifest::{Content, Manifest},
};

/// Most bytes in a bundle, and the largest file that goes into one. Big enough that thousands of small files do not cost a round
/// trip each, small enough to hold in memory until it is verified.
pub const BUNDLE_SIZE: u64 = 4 * 1024 * 1024;

/// Most files in a bundle: each is a span of some 45 bytes in the request, and a request takes at most 4,096 spans.
pub const BUNDLE_FILES: usize = 1024;

/// Most units of a transfer: one bit of each for every peer is 512 KiB, which fits a message. Files of any allowed size have
/// fewer pieces; a manifest with more units is refused.
pub const MAX_UNITS: u32 = 1 << 22;

/// A distinct file of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFile {
    /// Its id.
    pub id: FileId,
    /// Its size in bytes.
    pub size: u64,
    /// Where its content goes: indexes into the manifest's entries, in order. Empty for a plain file.
    pub entries: Vec<usize>,
}

/// A part of a unit: a range of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanSpan {
    /// Index into [`Plan::files`].
    pub file: usize,
    /// First byte, as an offset in the file.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u64,
    /// Whether this is the whole file, to be verified by its id; otherwise it is one piece, verified by the piece layer.
    pub whole: bool,
}

/// A file that gives one unit for each of its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Large {
    first_unit: u32,
    file: u32,
    layout: FileLayout,
}

/// The units of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    files: Vec<PlanFile>,
    /// Of each file, the first unit that has bytes of it; 0 for an empty one.
    first_units: Vec<u32>,
    /// Files in bundles, in order.
    bundled: Vec<u32>,
    /// Of each bundle, where in `bundled` it ends, and its length in bytes.
    bundles: Vec<(u32, u32)>,
    /// In order of their units, which follow those of the bundles.
    large: Vec<Large>,
    unit_count: u32,
    total: u64,
}

impl Plan {
    /// The plan of a plain file: its units are its pieces. `None` for a size that no file may have.
    pub fn file(id: FileId, size: u64) -> Option<Self> {
        let layout = FileLayout::new(size)?;
        let large = Large {
            first_unit: 0,
            file: 0,
            layout,
        };
        Some(Self {
            files: vec![PlanFile {
                id,
                size,
                entries: Vec::new(),
            }],
            first_units: vec![0],
            bundled: Vec::new(),
            bundles: Vec::new(),
            large: if size == 0 { Vec::new() } else { vec![large] },
            unit_count: layout.piece_count(),
            total: size,
        })
    }

    /// The plan of a collection's content.
    pub fn collection(manifest: &Manifest) -> Self {
        let files = distinct_files(manifest);
        let mut plan = Self {
            first_units: vec![0; files.len()],
            bundled: Vec::new(),
            bundles: Vec::new(),
            large: Vec::new(),
            unit_count: 0,
            total: files.iter().map(|file| file.size).sum(),
            files,
        };
        plan.pack_bundles();
        plan.number_pieces();
        plan
    }

    fn pack_bundles(&mut self) {
        let mut bundle = (0_u32, 0_u64); // files and bytes in the bundle that is open
        for (index, file) in self.files.iter().enumerate() {
            if file.size == 0 || file.size > BUNDLE_SIZE {
                continue;
            }
            if bundle.0 as usize == BUNDLE_FILES || bundle.1 + file.size > BUNDLE_SIZE {
                self.bundles.push((self.bundled.len() as u32, bundle.1 as u32));
                bundle = (0, 0);
            }
            self.first_units[index] = self.bundles.len() as u32;
            self.bundled.push(index as u32);
            bundle = (bundle.0 + 1, bundle.1 + file.size);
        }
        if bundle.0 > 0 {
            self.bundles.push((self.bundled.len() as u32, bundle.1 as u32));
        }
        self.unit_count = self.bundles.len() as u32;
    }

    fn number_pieces(&mut self) {
        for (index, file) in self.files.iter().enumerate() {
            // A manifest bounds every size.
            let Some(layout) = FileLayout::new(file.size).filter(|_| file.size > BUNDLE_SIZE) else {
                continue;
            };
            self.first_units[index] = self.unit_count;
            self.large.push(Large {
                first_unit: self.unit_count,
                file: index as u32,
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
        self.total
    }

    /// The distinct files, in the order of their first entry in the manifest.
    pub fn files(&self) -> &[PlanFile] {
        &self.files
    }

    /// Length of a unit in bytes; 0 where there is no such unit.
    pub fn unit_len(&self, unit: u32) -> u64 {
        match self.bundles.get(unit as usize) {
            Some(&(_, len)) => len.into(),
            None => self.piece_span(unit).map_or(0, |span| span.len),
        }
    }

    /// The parts of a unit in the order in which they are asked for; none where there is no such unit.
    pub fn spans(&self, unit: u32) -> impl Iterator<Item = PlanSpan> + '_ {
        let bundle = self.bundle(unit).iter().map(|&file| PlanSpan {
            file: file as usize,
            offset: 0,
            len: self.files[file as usize].size,
            whole: true,
        });
        bundle.chain(self.piece_span(unit))
    }

    /// The units that have these bytes of a file; none where the range holds no byte of it.
    pub fn units_of(&self, file: usize, range: Range<u64>) -> Range<u32> {
        let Some(size) = self.files.get(file).map(|file| file.size) else {
            return 0..0;
        };
        let first = self.first_units[file];
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            return first..first;
        }
        if (first as usize) < self.bundles.len() {
            return first..first + 1;
        }
        let Some(large) = self.large_of(first) else {
            return first..first;
        };
        let piece_size = large.layout.piece_size();
        // Fits: both are below the number of pieces.
        let at = |byte: u64| first + (byte / piece_size) as u32;
        at(range.start)..at(range.end - 1) + 1
    }

    /// Files of a bundle; none where the unit is no bundle.
    fn bundle(&self, unit: u32) -> &[u32] {
        let Some(&(end, _)) = self.bundles.get(unit as usize) else {
            return &[];
        };
        let start = match unit {
            0 => 0,
            _ => self.bundles[unit as usize - 1].0,
        };
        &self.bundled[start as usize..end as usize]
    }

    /// The file whose pieces' units hold this one.
    fn large_of(&self, unit: u32) -> Option<&Large> {
        let after = self.large.partition_point(|large| large.first_unit <= unit);
        self.large.get(after.checked_sub(1)?)
    }

    fn piece_span(&self, unit: u32) -> Option<PlanSpan> {
        let large = self.large_of(unit)?;
        let piece = large.layout.piece(unit - large.first_unit)?;
        let range = large.layout.range(piece);
        let len = range.end - range.start;
        let whole = len == large.layout.size();
        Some(PlanSpan {
            file: large.file as usize,
            offset: range.start,
            len,
            whole,
        })
    }
}

fn distinct_files(manifest: &Manifest) -> Vec<PlanFile> {
    let mut files: Vec<PlanFile> = Vec::new();
    let mut known: HashMap<FileId, usize> = HashMap::new();
    for (index, entry) in manifest.entries.iter().enumerate() {
        let Content::File { id, size, .. } = entry.content else {
            continue;
        };
        match known.get(&id) {
            Some(&file) => files[file].entries.push(index),
            None => {
                known.insert(id, files.len());
                files.push(PlanFile {
                    id,
                    size,
                    entries: vec![index],
                });
            }
        }
    }
    files
}

#[cfg(test)]
mod tests;
